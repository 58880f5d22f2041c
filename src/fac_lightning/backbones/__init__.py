"""Room backbones."""
