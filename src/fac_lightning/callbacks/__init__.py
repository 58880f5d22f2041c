"""Room callbacks."""
