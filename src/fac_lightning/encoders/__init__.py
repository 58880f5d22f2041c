"""Room encoders."""
