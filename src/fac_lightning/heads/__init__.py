"""Room heads."""
