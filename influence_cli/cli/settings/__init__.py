"""Options of the commands: declared, resolved and checked."""
