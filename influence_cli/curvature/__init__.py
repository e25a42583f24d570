"""Products, factors and dense matrices of the curvature over the fit rows."""
