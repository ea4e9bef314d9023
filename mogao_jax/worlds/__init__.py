"""Worlds that ship with the package: data with a known truth, and what judges a model on it."""
