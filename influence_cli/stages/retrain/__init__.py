"""(4) Edited manifest to checkpoint."""
