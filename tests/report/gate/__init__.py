"""Tests of the forms that CI reads."""
