"""Scores of rows split over their tokens."""
