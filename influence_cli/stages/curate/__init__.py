"""(3) Scores to edits."""
