"""Benchmarks of what a model generates, one file each, and the scorers they judge with.

from mogao_jax.evals.scorers.reader import read_picture
from mogao_jax.evals.shapes import run
"""
