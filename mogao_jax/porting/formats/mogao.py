"""The whole model as Hugging Face lays checkpoints out: shards, index, config.json, model card.

One tensor per parameter and layer, in our own shapes, named as in `params.py`, so that a file
can be read with and without `model.scan_layers`. config.json holds our whole config.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import mogao_jax
from mogao_jax.config.convert import to_dict
from mogao_jax.config.schema import MogaoConfig, VaeConfig, VitConfig
from mogao_jax.models.encoder_weights import EMBEDDED
from mogao_jax.porting.card_results import NOTHING, Results
from mogao_jax.porting.formats.fields import Field, compare
from mogao_jax.porting.tensor_sources import TensorSource

MODEL_TYPE = "mogao"
NAME = "a Mogao model"
ENCODERS = ("vit", "vae")  # folders below it, too
# Fields of `model` that decide what the parameters mean (the others: how they are computed).
_MEANING = (
    "num_layers", "embed_dim", "mlp_dim", "num_heads", "num_kv_heads", "head_dim", "rms_norm_eps",
    "tie_embeddings", "fusion", "rope", "rope_theta", "rope_tail", "timestep_embed_dim",
    "timestep_scale", "velocity_head", "connector",
)  # fmt: skip
_LAYOUT = ("text_positions", "understanding_encoder")
# Fields of the encoders that say how weights are used or where they lie, not what they are.
_FREE = ("weights", "sample_posterior")

_PARTS = {"llm": "language model", "vit": "vision tower", "vae": "autoencoder"}
_CARD = """---
library_name: mogao_jax
pipeline_tag: any-to-any
tags: [mogao, interleaved, text-to-image, image-to-text]
{header}---

# {config.name}

A Mogao model (arXiv 2505.05472): one deep-fusion transformer that reads and writes interleaved \
text and images.{about}

- state: {state}{average}
- {model.num_layers} layers of width {model.embed_dim}, FFN {model.mlp_dim}, \
{model.num_heads} heads of {model.head_dim}, {model.num_kv_heads} of keys and values; \
fusion {model.fusion}, rotary embedding {model.rope}
- tensors in {dtype}, written by mogao_jax {version}
{origins}
| part | parameters |
|---|---:|
{counts}

The frozen {encoders}; the whole config is in `config.json`.

## Use

```python
import mogao_jax

model = mogao_jax.load("FOLDER or ORG/NAME")
items = list(model.generate("a red circle"))  # texts and images
```

Or `mogao sample --checkpoint FOLDER "a red circle"`. To train it further, set `train.init_from` \
to the folder.
{results}
Its licence follows from the parts it was made of and the data it was trained on.
"""


def is_mogao(source: TensorSource) -> bool:
    """Whether a source holds a whole model of ours."""
    return source.config.get("model_type") == MODEL_TYPE or "latent_in.kernel" in source.shapes


def check_config(source: TensorSource, config: MogaoConfig) -> None:
    """Raises CheckpointError with every field of its config that makes it another model.

    These also decide which features it learned with: the encoders', of images resized how, at
    which positions. A field that its config does not have has its default.
    """
    usual = MogaoConfig()
    sections: dict[str, tuple[str, ...]]
    sections = {"model": _MEANING, "layout": _LAYOUT, "vae": _fields(config.vae)}
    if config.layout.understanding_encoder == "vit":
        sections |= {"images": ("vit_resize",), "vit": _fields(config.vit)}
    fields = [
        Field(
            f"config.{section}.{name}",
            f"{section}.{name}",
            getattr(getattr(config, section), name),
            getattr(getattr(usual, section), name),
        )
        for section, names in sections.items()
        for name in names
    ]
    compare(source.config, fields, place=source.place, what=NAME)


def _fields(encoder: VaeConfig | VitConfig) -> tuple[str, ...]:
    return tuple(f.name for f in dataclasses.fields(encoder) if f.name not in _FREE)


def to_config(config: MogaoConfig, *, dtype: str) -> dict[str, Any]:
    """The config.json, which names no place outside its folder."""
    fields = _without_places(to_dict(config))
    for part in ENCODERS:
        if fields[part]["weights"] != EMBEDDED:
            fields[part]["weights"] = part  # the folder that it is written into
    return {
        "architectures": ["Mogao"],
        "model_type": MODEL_TYPE,
        "torch_dtype": dtype,
        "mogao_jax_version": mogao_jax.__version__,
        "config": fields,
    }


def _without_places(value: Any) -> Any:
    """A config with "" for whatever is an absolute path: it means nothing on another machine."""
    if isinstance(value, dict):
        return {key: _without_places(x) for key, x in value.items()}
    if isinstance(value, list | tuple):
        return [_without_places(x) for x in value]
    kinds = pathlib.PurePosixPath, pathlib.PureWindowsPath
    is_place = isinstance(value, str) and (
        value.startswith("~") or any(kind(value).is_absolute() for kind in kinds)
    )
    return "" if is_place else value


def model_card(
    config: MogaoConfig,
    *,
    parameters: Mapping[str, int],
    dtype: str,
    step: int,
    weights: str,
    porting: Mapping[str, Any],
    results: Results = NOTHING,
) -> str:
    """The README.md, with the header that Hugging Face's hub reads."""
    model = config.model
    has_vit = config.layout.understanding_encoder == "vit"
    counts = [*parameters.items(), ("all", sum(parameters.values()))]
    return _CARD.format(
        config=config,
        model=model,
        state=f"{step:,} steps of training" if step else "not trained: a model at its start",
        average=" (moving average of the weights)" if weights == "ema" else "",
        dtype=dtype,
        version=mogao_jax.__version__,
        origins="".join(f"- {origin}\n" for origin in _origins(porting)),
        counts="\n".join(f"| {part} | {count:,} |" for part, count in counts),
        encoders="encoders are in `vae/` and `vit/`, in their own layouts"
        if has_vit
        else "autoencoder is in `vae/`, in its own layout",
        about=f" It knows {config.about}." if config.about else "",
        header="".join(f"{line}\n" for line in results.header),
        results="".join(f"{line}\n" for line in results.lines),
    )


def _origins(porting: Mapping[str, Any]) -> list[str]:
    """What it was built from; names of folders alone, no one's paths."""
    lines = [
        f"{name}: {pathlib.Path(porting[part]['place']).name}"
        for part, name in _PARTS.items()
        if porting.get(part)
    ]
    if porting.get("missing"):
        lines.append(f"initialised though expected: {', '.join(porting['missing'])}")
    return lines
