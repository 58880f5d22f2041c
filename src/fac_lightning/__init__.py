"""fac_lightning: Fun-Audio-Chat as interchangeable parts on PyTorch Lightning."""

__all__ = ["__version__"]

__version__ = "0.1.0"
