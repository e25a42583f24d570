"""Scores of every training row for every single target row."""
