"""The README.md of a whole model: what it is, where its parts come from, how to run it."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import mogao_jax
from mogao_jax.config.schema import MogaoConfig

_PARTS = {"llm": "language model", "vit": "vision tower", "vae": "autoencoder"}


def model_card(
    config: MogaoConfig,
    *,
    parameters: Mapping[str, int],
    dtype: str,
    step: int,
    weights: str,
    porting: Mapping[str, Any],
) -> str:
    """Markdown, with the header that Hugging Face's hub reads."""
    model = config.model
    trained = f"{step:,} steps of training" if step else "not trained: a model at its start"
    average = " (moving average of the weights)" if weights == "ema" else ""
    has_vit = config.layout.understanding_encoder == "vit"
    encoders = "The frozen autoencoder is in `vae/`, in its own layout"
    if has_vit:
        encoders = "The frozen encoders are in `vae/` and `vit/`, in their own layouts"
    lines = [
        "---",
        "library_name: mogao_jax",
        "pipeline_tag: any-to-any",
        "tags: [mogao, interleaved, text-to-image, image-to-text]",
        "---",
        "",
        f"# {config.name}",
        "",
        "A Mogao model (arXiv 2505.05472): one deep-fusion transformer that reads and writes "
        "interleaved text and images.",
        "",
        f"- state: {trained}{average}",
        f"- {model.num_layers} layers of width {model.embed_dim}, FFN {model.mlp_dim}, "
        f"{model.num_heads} heads of {model.head_dim}, {model.num_kv_heads} of keys and values; "
        f"fusion {model.fusion}, rotary embedding {model.rope}",
        f"- tensors in {dtype}, written by mogao_jax {mogao_jax.__version__}",
        *_origins(porting),
        "",
        "| part | parameters |",
        "|---|---:|",
        *(f"| {part} | {count:,} |" for part, count in parameters.items()),
        f"| all | {sum(parameters.values()):,} |",
        "",
        f"{encoders}; the whole config is in `config.json`.",
        "",
        "To run it, make it a checkpoint of mogao_jax again:",
        "",
        "```",
        f"mogao port from-hf --llm FOLDER {'--vit FOLDER/vit ' if has_vit else ''}"
        "--vae FOLDER/vae --out CKPT",
        'mogao sample --checkpoint CKPT "a red circle"',
        "```",
        "",
        "Its licence follows from the parts it was made of and the data it was trained on.",
    ]
    return "\n".join(lines) + "\n"


def _origins(porting: Mapping[str, Any]) -> list[str]:
    """What it was built from; names of folders alone, no one's paths."""
    lines = []
    for part, name in _PARTS.items():
        record = porting.get(part)
        if record:
            lines.append(f"- {name}: {pathlib.Path(record['place']).name}")
    if porting.get("missing"):
        lines.append(f"- initialised though expected: {', '.join(porting['missing'])}")
    return lines
