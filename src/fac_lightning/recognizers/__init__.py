"""Room recognizers."""
