"""Worlds that ship with the package: data with a known truth, and what judges a model on it.

Importing this enters them into the core's tables (mogao_jax/registry.py) and loads nothing else.
"""

from mogao_jax.worlds import emoji, shapes

__all__ = ["emoji", "shapes"]
