"""Benchmarks on the embedded world, and the scorers that they judge with."""
