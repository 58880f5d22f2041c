"""Room generation."""
