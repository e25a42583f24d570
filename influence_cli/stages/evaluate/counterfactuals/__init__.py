"""What really happens when rows are removed."""
