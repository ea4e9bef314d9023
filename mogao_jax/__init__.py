"""Mogao in JAX: one model that reads and writes interleaved text and images (arXiv 2505.05472)."""

__version__ = "0.1.0"
