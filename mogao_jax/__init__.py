"""Mogao in JAX: one model that reads and writes interleaved text and images (arXiv 2505.05472)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Literal

from mogao_jax import worlds as _worlds  # noqa: F401  (they enter themselves into the registry)

if TYPE_CHECKING:
    from mogao_jax.assembly import train as train
    from mogao_jax.sampling.pipeline import Pipeline

__version__ = "0.1.0"


def load(
    path: str | os.PathLike = "demo",
    *,
    weights: Literal["best", "ema", "raw"] = "best",
    tokenizer: str | os.PathLike | None = None,
    vae: str | os.PathLike | None = None,
    vit: str | os.PathLike | None = None,
    max_length: int | None = None,
) -> Pipeline:
    """Loads a model to generate text and images with.

        model = mogao_jax.load("demo")
        for item in model.generate("a red circle left of a blue square"):
            ...  # str: text as it comes; Image: its pixels (item.pixels), when it is done

    Args:
      path: "demo" (the checkpoint that ships with the package), a file written by `mogao export`,
        a run's folder, one checkpoint's folder, a folder of `mogao port to-hf`, or ORG/NAME of one
        on Hugging Face's Hub.
      weights: ema (the moving average), raw, or best: ema where there is one.
      tokenizer, vae, vit: where these files are, if not where the config says.
      max_length: tokens of text, and of images as the ViT sees them, that a document may have;
        None: as a row of the training data.
    Raises:
      CheckpointError, ConfigError, RequestError: with the place and the remedy.
    """
    from mogao_jax.sampling.loading import open_checkpoint
    from mogao_jax.sampling.pipeline import Pipeline
    from mogao_jax.sampling.requests import token_limits

    opened = open_checkpoint(path, weights=weights, tokenizer=tokenizer, vae=vae, vit=vit)
    token_limits(opened.config, max_length)  # refused before parameters are read
    return Pipeline(opened.load(), max_length=max_length)


def __getattr__(name: str) -> Any:
    """`train` is imported when it is asked for: it imports JAX, which --version does not need."""
    if name == "train":
        from mogao_jax.assembly import train

        return train
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
