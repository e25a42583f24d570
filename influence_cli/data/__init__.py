"""Rows: manifests, the tables that travel between stages, sources that rows come from."""
