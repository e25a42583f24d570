"""The shapes that methods have."""
