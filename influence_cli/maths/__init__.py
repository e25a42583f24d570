"""Tensors in, tensors out.  Imports torch or NumPy and nothing of ours; what a warm run needs is NumPy alone."""
