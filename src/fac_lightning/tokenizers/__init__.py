"""Room tokenizers."""
