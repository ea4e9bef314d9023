"""BAGEL's packed mixture of transformers (github.com/ByteDance-Seed/Bagel), from a clone of it.

Run as in its training, with a mask per sample. Three patches let it run without CUDA: `flash_attn`,
which it imports and its training path does not call, is an empty module; its request for CUDA's
memory-efficient attention is ignored, so that torch chooses its CPU kernel; and its casts to
bfloat16 around attention become casts to float32. Needs torch and transformers 4.49.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.machinery
import pathlib
import sys
import types
from collections.abc import Callable
from typing import Any

import numpy as np

from mogao_jax.errors import EnvironmentProblem
from mogao_jax.tools.bench.packed_documents import Sequence, Setting


def make_step(
    setting: Setting, rows: list[list[Sequence]], folder: pathlib.Path
) -> Callable[[], None]:
    """A call that computes the gradients of all parameters and of the input.

    Raises:
      EnvironmentProblem: the folder has no BAGEL, or a library it needs is not here.
    """
    module = _module(folder)
    import torch

    torch.manual_seed(0)
    config = module.Qwen2Config(
        vocab_size=8,
        hidden_size=setting.width,
        intermediate_size=setting.mlp,
        num_hidden_layers=setting.layers,
        num_attention_heads=setting.heads,
        num_key_value_heads=setting.kv_heads,
        qk_norm=True,
        layer_module="Qwen2MoTDecoderLayer",
        freeze_und=False,
        pad_token_id=0,
    )
    model = module.Qwen2Model(config).float().train()
    # The documents of all rows are one packed sequence.
    documents = [d for row in rows for d in row]
    is_gen = np.concatenate([d.is_gen for d in documents])
    sequence = torch.randn(len(is_gen), setting.width, requires_grad=True)
    masks = [
        torch.zeros(d.mask.shape).masked_fill_(torch.from_numpy(~d.mask), float("-inf"))
        for d in documents
    ]
    arguments = {
        "sample_lens": [len(d.is_gen) for d in documents],
        "attention_mask": masks,
        "packed_position_ids": torch.from_numpy(
            np.concatenate([d.order for d in documents])
        ).long(),
        "packed_und_token_indexes": torch.from_numpy(np.flatnonzero(~is_gen)),
        "packed_gen_token_indexes": torch.from_numpy(np.flatnonzero(is_gen)),
    }

    def step() -> None:
        model.zero_grad(set_to_none=True)
        sequence.grad = None
        model(packed_sequence=sequence, **arguments).pow(2).mean().backward()

    return step


class _Float32:
    """torch, with float32 in place of bfloat16."""

    def __init__(self, torch: Any):
        self._torch = torch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._torch, "float32" if name == "bfloat16" else name)


def _module(folder: pathlib.Path) -> Any:
    source = folder / "modeling" / "bagel" / "qwen2_navit.py"
    if not source.is_file():
        raise EnvironmentProblem(f"--bagel: {folder} is no clone of BAGEL: {source} is not there.")
    try:
        import torch
        import transformers
    except ImportError as e:
        raise EnvironmentProblem(f"--bagel needs torch and transformers 4.49: {e}.") from e
    stub: Any = types.ModuleType("flash_attn")
    stub.flash_attn_varlen_func = None
    # transformers asks for a specification, and by the missing version knows not to use it.
    stub.__spec__ = importlib.machinery.ModuleSpec("flash_attn", None)
    sys.modules.setdefault("flash_attn", stub)
    # Its packages import encoders that need more libraries. Empty packages with the same paths
    # load only the modules that are asked for.
    for name in ("modeling", "modeling.bagel", "modeling.cache_utils", "modeling.qwen2"):
        package: Any = types.ModuleType(name)
        package.__path__ = [str(folder.joinpath(*name.split(".")))]
        sys.modules[name] = package
    try:
        module: Any = importlib.import_module("modeling.bagel.qwen2_navit")
    except ImportError as e:
        raise EnvironmentProblem(
            f"--bagel: BAGEL does not run with transformers {transformers.__version__} "
            f"(it is written for 4.49): {e}."
        ) from e
    module.sdpa_kernel = lambda *args, **kwargs: contextlib.nullcontext()
    module.torch = _Float32(torch)
    return module
