"""Room synthesizers."""
