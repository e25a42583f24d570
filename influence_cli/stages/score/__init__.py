"""(2) Store to score columns."""
