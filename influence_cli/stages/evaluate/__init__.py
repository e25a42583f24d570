"""(5) How far scores can be trusted."""
