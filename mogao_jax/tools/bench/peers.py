"""A training step of ours beside those of other open implementations, on the same documents.

Their code is not part of this package: the caller names the folders that hold it.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.machinery
import os
import pathlib
import sys
import types
from collections.abc import Callable
from typing import Any

import numpy as np

from mogao_jax.errors import EnvironmentProblem
from mogao_jax.sharding.mesh import split_cpu
from mogao_jax.tools.bench import packed_documents
from mogao_jax.tools.bench.instrumentation import alternate
from mogao_jax.tools.bench.packed_documents import Sequence, Setting

BARS = {"bagel": 0.9, "transfusion": 0.5}  # our time over the peer's, at most


def compare(
    bagel_folder: pathlib.Path | None, with_transfusion: bool, num_rounds: int
) -> tuple[dict[str, dict[str, float]], bool]:
    """Times and prints a step of each; returns the figures by name, and whether all bars are met.

    Raises:
      EnvironmentProblem: a peer is not installed.
    """
    setting = Setting()
    split_cpu(min(setting.rows, os.cpu_count() or 1))
    batch = packed_documents.make_batch(setting)
    documents = [d for row in packed_documents.sequences(batch) for d in row]
    peers = {}  # before ours, which takes time to compile: a missing peer fails at once
    if bagel_folder is not None:
        peers["bagel"] = _bagel_step(setting, documents, bagel_folder)
    if with_transfusion:
        peers["transfusion"] = _transfusion_step(setting, documents)
    print(
        f"{setting.layers} layers of width {setting.width}, {setting.rows} rows of "
        f"{setting.documents} documents with {setting.images} images each, "
        f"{packed_documents.num_tokens(batch)} tokens; medians of {num_rounds} rounds"
    )
    ours = packed_documents.make_step(setting, batch)
    measured = alternate({"ours": ours, **peers}, num_rounds)
    record, all_met = {"ours": {"seconds": measured.median("ours")}}, True
    print(f"  {'ours':12} {measured.median('ours'):6.2f} s")
    for name in peers:
        ratio, (low, high) = measured.ratio("ours", name), measured.spread("ours", name)
        is_met = ratio <= BARS[name]
        all_met &= is_met
        record[name] = {"seconds": measured.median(name), "ratio": ratio, "bar": BARS[name]}
        print(
            f"  {name:12} {measured.median(name):6.2f} s   ours over it {ratio:.2f} "
            f"[{low:.2f}, {high:.2f}]   bar {BARS[name]}: {'met' if is_met else 'MISSED'}",
            flush=True,
        )
    return record, all_met


def _bagel_step(
    setting: Setting, documents: list[Sequence], folder: pathlib.Path
) -> Callable[[], None]:
    """BAGEL's packed mixture of transformers (github.com/ByteDance-Seed/Bagel), from a clone of it.

    Run as in its training, all documents in one packed sequence, with a mask per sample. Three
    patches let it run without CUDA: `flash_attn`, which it imports and its training path does not
    call, is an empty module; its request for CUDA's memory-efficient attention is ignored, so that
    torch chooses its CPU kernel; and its casts to bfloat16 around attention become casts to
    float32. Needs torch and transformers 4.49.
    """
    module = _bagel_module(folder)
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
    is_gen = np.concatenate([d.is_gen for d in documents])
    sequence = torch.randn(len(is_gen), setting.width, requires_grad=True)
    masks = [
        torch.zeros(d.mask.shape).masked_fill_(torch.from_numpy(~d.mask), float("-inf"))
        for d in documents
    ]
    forward = functools.partial(
        model,
        packed_sequence=sequence,
        sample_lens=[len(d.is_gen) for d in documents],
        attention_mask=masks,
        packed_position_ids=torch.from_numpy(np.concatenate([d.order for d in documents])).long(),
        packed_und_token_indexes=torch.from_numpy(np.flatnonzero(~is_gen)),
        packed_gen_token_indexes=torch.from_numpy(np.flatnonzero(is_gen)),
    )
    return functools.partial(_compute_gradients, model, sequence, forward)


class _Float32:
    """torch, with float32 in place of bfloat16."""

    def __init__(self, torch: Any):
        self._torch = torch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._torch, "float32" if name == "bfloat16" else name)


def _bagel_module(folder: pathlib.Path) -> Any:
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


def _transfusion_step(setting: Setting, documents: list[Sequence]) -> Callable[[], None]:
    """The transformer of github.com/lucidrains/transfusion-pytorch, installed.

    One stream with adaptive norms for the tokens of images, a row of the batch per document, padded
    to the longest, with our mask. Its defaults except for sizes; it has no grouped queries.
    """
    try:
        import torch
        from transfusion_pytorch.transfusion import Transformer
    except ImportError as e:
        raise EnvironmentProblem(
            f"--transfusion needs the package: pip install transfusion-pytorch ({e})."
        ) from e
    torch.manual_seed(0)
    model = Transformer(
        setting.width,
        depth=setting.layers,
        dim_head=setting.head_dim,
        heads=setting.heads,
        # Its gated layer is two thirds as wide as this; so it gets our width.
        ff_expansion_factor=setting.mlp * 3 / 2 / setting.width,
    ).train()
    count, longest = len(documents), max(len(d.is_gen) for d in documents)
    mask = np.tile(np.eye(longest, dtype=bool), (count, 1, 1))
    is_gen = np.zeros((count, longest), bool)
    for i, d in enumerate(documents):
        length = len(d.is_gen)
        mask[i, :length, :length] = d.mask
        is_gen[i, :length] = d.is_gen
    times = torch.rand(count, longest)
    given = torch.randn(count, longest, setting.width, requires_grad=True)
    forward = functools.partial(
        model,
        given,
        times=times,
        attn_mask=torch.from_numpy(mask),
        is_any_modality=torch.from_numpy(is_gen),
    )
    return functools.partial(_compute_gradients, model, given, forward)


def _compute_gradients(model: Any, given: Any, forward: Callable[[], Any]) -> None:
    """The gradients of all parameters and of the input."""
    model.zero_grad(set_to_none=True)
    given.grad = None
    forward().pow(2).mean().backward()
