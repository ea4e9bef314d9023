"""Conditions between fields of a config: what can be known to fail before time is spent."""

from __future__ import annotations

from collections.abc import Mapping

from mogao_jax.config.geometry import PIXELS_PER_TOKEN, VAE_GRID
from mogao_jax.config.schema import MogaoConfig
from mogao_jax.errors import ConfigError
from mogao_jax.paths import expanded
from mogao_jax.registry import SOURCES, Contents

MAX_B2_BFLOAT16 = 0.99  # see training/optimizer.py: _stored_as


def check(config: MogaoConfig) -> None:
    """Raises ConfigError where two fields contradict each other; says which to change."""
    _check_files(config)
    check_without_files(config)


def check_without_files(config: MogaoConfig) -> None:
    """As `check`, for a config whose data and tokenizer are not here, nor named yet."""
    _check_mixture(config)
    _check_images(config)
    _check_packing(config)
    _check_model(config)
    _check_encoders(config)
    _check_training(config)
    _check_mesh(config)


def check_architecture(config: MogaoConfig) -> None:
    """As `check`, of the model and the encoders alone: for a config without data."""
    _check_model(config)
    _check_encoders(config)


def image_tokens(config: MogaoConfig) -> int:
    """VAE tokens (16x16 pixels each) of the largest image that `config.images` lets through."""
    images = config.images
    return max(1, min(images.max_pixels, images.max_side**2) // PIXELS_PER_TOKEN)


def vit_tokens(config: MogaoConfig) -> int:
    """ViT tokens (after the merge) of a square image of that size."""
    images, need = config.images, image_tokens(config)
    if images.vit_resize == "match_vae_grid":
        return need
    unit = config.vit.patch_size * config.vit.merge_size
    side = max(1, round((need * PIXELS_PER_TOKEN) ** 0.5 / unit))
    return max(1, min(side * side, images.vit_max_pixels // unit**2))


def check_on_mesh(config: MogaoConfig, sizes: Mapping[str, int]) -> None:
    """Raises ConfigError for heads or parts of a row that a mesh does not divide.

    Args:
      sizes: devices per axis, known (without -1) at least for "tensor" and "context".
    """
    tensor, context = sizes["tensor"], sizes["context"]
    heads = config.model.num_heads
    if heads % tensor:
        near = min(
            (d for d in range(1, heads + 1) if heads % d == 0), key=lambda d: abs(d - tensor)
        )
        raise ConfigError(
            f"config.model.num_heads ({heads}) are not divisible by config.mesh.tensor ({tensor}), "
            f"over which heads are split; the nearest that works is mesh.tensor={near}."
        )
    for name in ("und_tokens", "clean_tokens", "noised_tokens"):
        tokens = getattr(config.packing, name)
        if tokens % context:
            lower = tokens // context * context
            choices = f"{lower} or {lower + context}" if lower else f"{context}"
            raise ConfigError(
                f"config.packing.{name} ({tokens}) is not divisible by config.mesh.context "
                f"({context}), over which the tokens of a row are split; use {choices}."
            )


def _check_mixture(config: MogaoConfig) -> None:
    sources = config.data.sources
    if sources and not any(s.weight > 0 for s in sources.values()):
        raise ConfigError(
            "config.data.sources: every weight is 0, so nothing would be trained on; "
            "give at least one source a weight above 0."
        )


def _check_files(config: MogaoConfig) -> None:
    sources = config.data.sources
    if not sources:
        raise ConfigError(
            "config.data.sources is empty: add at least one, for example "
            "config.data.sources.pairs = source(kind='documents', path='pairs.jsonl')."
        )
    for name, s in sources.items():
        if SOURCES.get(s.kind).needs_path and s.weight > 0 and not s.path:
            raise ConfigError(
                f"config.data.sources.{name}.path is empty; a source of kind {s.kind!r} needs it: "
                f"--config.data.sources.{name}.path=PATH"
            )
    if config.tokenizer.kind == "file":
        path = config.tokenizer.path
        if not path or not expanded(path).exists():
            raise ConfigError(
                f"config.tokenizer.path is {path!r}, where nothing is; kind 'file' needs a "
                "tokenizer.json or the folder that holds one."
            )


def _check_images(config: MogaoConfig) -> None:
    images = config.images
    if images.max_side % VAE_GRID:
        lower = images.max_side // VAE_GRID * VAE_GRID
        raise ConfigError(
            f"config.images.max_side ({images.max_side}) must be a multiple of {VAE_GRID}, the "
            f"size of a VAE token; use {lower} or {lower + VAE_GRID}."
        )
    if images.min_pixels > min(images.max_pixels, images.max_side**2):
        raise ConfigError(
            f"config.images.min_pixels ({images.min_pixels}) is over what max_pixels "
            f"({images.max_pixels}) and max_side ({images.max_side}) allow; lower it."
        )


def _contents(config: MogaoConfig) -> Contents:
    """What documents of all sources in use hold."""
    used = [s for s in config.data.sources.values() if s.weight > 0]
    contents = [Contents(False), *(SOURCES.get(s.kind).contents(s) for s in used)]
    return Contents(*map(any, zip(*contents, strict=True)))


def _check_packing(config: MogaoConfig) -> None:
    """Each budget must hold the largest image, if documents of the sources put one into it."""
    generates, reads, reads_back = _contents(config)
    by_vit = reads and config.layout.understanding_encoder == "vit"
    need, tokens = image_tokens(config), vit_tokens(config)
    patches = tokens * config.vit.merge_size**2
    of_vae, of_vit = f"{need} tokens", f"{patches} ViT patches, {tokens} ViT tokens"
    for name, needed, least, sizes in (
        ("noised_tokens", generates, need, of_vae),
        ("clean_tokens", reads_back or (reads and not by_vit), need, of_vae),
        ("vit_patches", by_vit, patches, of_vit),
        ("und_tokens", by_vit, tokens, of_vit),
    ):
        budget = getattr(config.packing, name)
        if needed and budget < least:
            most = f" to {budget * PIXELS_PER_TOKEN}" if sizes is of_vae else ""
            raise ConfigError(
                f"config.packing.{name} ({budget}) holds no image of config.images.max_pixels "
                f"({config.images.max_pixels} pixels are {sizes}); raise the first to at least "
                f"{least}, or lower the second{most}."
            )


def _check_model(config: MogaoConfig) -> None:
    model = config.model
    if model.timestep_embed_dim % 2:
        raise ConfigError(
            f"config.model.timestep_embed_dim ({model.timestep_embed_dim}) must be even: it holds "
            "as many sines as cosines."
        )
    if model.connector == "merger" and config.vit.merger_dim:
        raise ConfigError(
            "config.model.connector is 'merger', which reads features before the tower's own "
            f"merger, but config.vit.merger_dim is {config.vit.merger_dim}; set it to 0, or use "
            "connector 'vit_merger'."
        )
    if model.connector == "vit_merger" and config.vit.merger_dim == 0:
        raise ConfigError(
            "config.model.connector is 'vit_merger', but config.vit.merger_dim is 0 (a tower "
            "without a merger); set its width, or use connector 'merger'."
        )


def _check_encoders(config: MogaoConfig) -> None:
    vae, vit = config.vae, config.vit
    if vae.kind == "flux":
        if len(vae.block_channels) != 4:
            raise ConfigError(
                f"config.vae.block_channels has {len(vae.block_channels)} entries; an 8x "
                "autoencoder has 4."
            )
        for channels in vae.block_channels:
            if channels < 1 or channels % vae.norm_groups:
                raise ConfigError(
                    f"config.vae.block_channels: {channels} is not a multiple of "
                    f"config.vae.norm_groups ({vae.norm_groups})."
                )
    if vit.embed_dim % vit.num_heads or (vit.embed_dim // vit.num_heads) % 4:
        raise ConfigError(
            f"config.vit.embed_dim ({vit.embed_dim}) must be config.vit.num_heads "
            f"({vit.num_heads}) times a multiple of 4 (2-D rotary positions)."
        )


def _check_training(config: MogaoConfig) -> None:
    optimizer = config.optimizer
    for name in ("b1", "b2", "ema_decay"):
        if getattr(optimizer, name) >= 1:
            raise ConfigError(f"config.optimizer.{name} must be below 1: at 1 nothing is learned.")
    if optimizer.moments_dtype == "bfloat16" and optimizer.b2 > MAX_B2_BFLOAT16:
        raise ConfigError(
            f"config.optimizer.b2 is {optimizer.b2} with moments in bfloat16, whose rounding would "
            f"keep the second moment from moving; use b2 up to {MAX_B2_BFLOAT16}, or "
            "config.optimizer.moments_dtype='float32'."
        )
    if optimizer.end_learning_rate > optimizer.learning_rate:
        raise ConfigError(
            f"config.optimizer.end_learning_rate ({optimizer.end_learning_rate}) is over "
            f"learning_rate ({optimizer.learning_rate})."
        )
    if optimizer.frozen == "llm" and config.model.fusion == "shared":
        raise ConfigError(
            "config.optimizer.frozen is 'llm' with config.model.fusion='shared', where images "
            "are made by the LLM's own weights: nothing would learn to. Use fusion='deep', or "
            "frozen='nothing'."
        )
    if optimizer.warmup_steps > config.train.num_steps:
        raise ConfigError(
            f"config.optimizer.warmup_steps ({optimizer.warmup_steps}) is over "
            f"config.train.num_steps ({config.train.num_steps}): warm-up would never end."
        )


def _check_mesh(config: MogaoConfig) -> None:
    mesh = config.mesh
    _check_axes(config)
    if "data" in mesh.param_axes and mesh.num_slices > 1:
        raise ConfigError(
            f"config.mesh.param_axes is {mesh.param_axes}, but with "
            f"mesh.num_slices={mesh.num_slices} the data axis goes over the network between "
            "slices, which every layer's weights would cross; set mesh.param_axes=fsdp."
        )
    ways = mesh.data * mesh.fsdp  # negative where one of them is what is left
    if ways > 0 and config.train.global_batch_rows % ways:
        raise ConfigError(
            f"config.train.global_batch_rows ({config.train.global_batch_rows}) must be a "
            f"multiple of mesh.data x mesh.fsdp ({ways}), over which rows are sharded."
        )


def _check_axes(config: MogaoConfig) -> None:
    sizes = {axis: getattr(config.mesh, axis) for axis in ("data", "fsdp", "tensor", "context")}
    for name, size in sizes.items():
        if size != -1 and size < 1:
            raise ConfigError(
                f"config.mesh.{name} is {size}; it must be a number of devices, or -1 for what "
                "is left."
            )
    if list(sizes.values()).count(-1) > 1:
        raise ConfigError("config.mesh: only one axis can be -1 (what is left).")
    check_on_mesh(config, {axis: max(size, 1) for axis, size in sizes.items()})
