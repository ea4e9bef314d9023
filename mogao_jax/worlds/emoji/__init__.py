"""Noto emoji as documents: a small world of real images."""

from mogao_jax import registry

registry.DATA_ACTIONS.register(
    "emoji",
    registry.Command(
        "Noto emoji -> documents (captions, names, edits, series)",
        "mogao_jax.worlds.emoji.command:main",
        "--zip PATH --out DIR [--count N]",
    ),
)
