"""(1) Manifest to store."""
