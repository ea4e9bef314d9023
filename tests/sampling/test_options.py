"""The options that a request may have, as fields and as keyword arguments."""

from __future__ import annotations

import typing

from mogao_jax.sampling.options import OptionFields, SamplingOptions


def test_keyword_arguments_are_the_options():
    fields = typing.get_type_hints(SamplingOptions)
    assert typing.get_type_hints(OptionFields) == fields
