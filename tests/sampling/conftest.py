"""Tests of the sampler run tiny programs a few times each: compiling is all they cost."""

from __future__ import annotations

import jax
import pytest


@pytest.fixture(autouse=True, scope="module")
def light_compiler():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
