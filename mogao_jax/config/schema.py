"""Every setting of Mogao, as frozen dataclasses with their defaults.

Configs (`configs/*.py`) start from `default_config()` and change fields; `from_config_dict`
turns the result into these types and refuses what cannot work. `[choice]` marks what the paper
leaves open (docs/method.md); the other side is always one of the listed values.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any, Literal

from mogao_jax import registry
from mogao_jax.config.geometry import PIXELS_PER_TOKEN, VAE_GRID, VIT_MERGE, VIT_PATCH
from mogao_jax.errors import ConfigError


def field(default: Any, doc: str = "", **checks: Any) -> Any:
    """A dataclass field with a description and checks.

    Args:
      **checks: minimum, maximum, above; choices (whole values); registry (whose names are the
        choices).
    """
    metadata = {"doc": doc, **checks}
    if isinstance(default, dict) or dataclasses.is_dataclass(default):
        return dataclasses.field(default_factory=lambda: copy.copy(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    kind: str = field(
        "byte",
        "byte: 256 bytes and the special tokens; file: `path`; or what a world brings",
        registry=registry.TOKENIZERS,
    )
    path: str = field("", "folder or tokenizer.json, for kind='file'")


@dataclasses.dataclass(frozen=True)
class ImageConfig:
    """Native resolution: aspect ratio kept, sides rounded to the VAE grid, no padding."""

    max_pixels: int = field(256 * 256, "pixel budget of an image", minimum=PIXELS_PER_TOKEN)
    min_pixels: int = field(PIXELS_PER_TOKEN, "smaller images are enlarged to this", minimum=1)
    max_side: int = field(512, "side of the canvas that every image fits in", minimum=VAE_GRID)
    vit_resize: Literal["native", "match_vae_grid"] = field(
        "native",
        "[choice] native: own 28-pixel grid, tokens at fractional positions of the VAE grid; "
        "match_vae_grid: resized so that both grids coincide",
    )
    vit_max_pixels: int = field(1003520, "pixel budget of the ViT's input", minimum=784)


@dataclasses.dataclass(frozen=True)
class LayoutConfig:
    text_positions: Literal["thw", "t"] = field(
        "thw", "[choice] thw: H = W = T for text (1-D RoPE); t: H = W = 0"
    )
    understanding_encoder: Literal["vit", "vae"] = field(
        "vit", "vae: no ViT, text reads clean VAE tokens (ablations A and B)"
    )
    vit_attention: Literal["bidirectional", "causal"] = field(
        "bidirectional", "[choice] inside one image's ViT tokens"
    )
    lay_out_everything: bool = field(
        False, "also the copies that nothing reads (for comparison: same losses, more cost)"
    )
    end_after_image: Literal["never", "interleaved", "sometimes", "always"] = field(
        "interleaved",
        "whether an end token is trained after a document's last generated image (costs its ViT "
        "tokens): never, only in documents that generate more than one image, sometimes: in these "
        "and in a fourth of the others, or always. Without it, a model does not end by itself "
        "after a single image",
    )
    p_image_only: float = field(
        0.1, "[choice] share of target images in image-only context", minimum=0.0, maximum=1.0
    )
    p_empty: float = field(
        0.1, "[choice] share of target images in empty context", minimum=0.0, maximum=1.0
    )
    drop_positions: Literal["renumber", "keep"] = field(
        "renumber", "[choice] T ids of the reduced contexts: counted anew, or with the holes kept"
    )
    noised_copies: int = field(
        1,
        "[choice] noised copies of each target image, each with its own timestep and noise: a "
        "larger sample of the flow loss for one history",
        minimum=1,
    )
    flow_weight_per: Literal["token", "image"] = field(
        "token", "token: every noised token weighs 1; image: every noised copy weighs 1"
    )

    def __post_init__(self):
        if self.p_image_only + self.p_empty > 1:
            raise ConfigError(
                "layout.p_image_only + layout.p_empty is over 1 "
                f"({self.p_image_only} + {self.p_empty}); the rest is the full context's share."
            )


@dataclasses.dataclass(frozen=True)
class PackingConfig:
    """Sizes of one row. Budgets are separate: a row closes when nothing more fits any of them."""

    und_tokens: int = field(1024, minimum=1)
    clean_tokens: int = field(256, minimum=1)
    noised_tokens: int = field(512, minimum=1)
    images: int = field(32, minimum=1)
    vit_patches: int = field(1024, "before the 2x2 merge", minimum=4)
    pool: int = field(256, "documents held ready to choose from while filling rows", minimum=1)
    over_long: Literal["refuse", "cut"] = field(
        "refuse", "documents over the budgets: skipped and counted, or cut at an item border"
    )


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """One data source of the mixture."""

    kind: str = field(
        "documents",
        "documents: JSONL files or a folder; tfds: a prepared dataset; or what a world brings",
        registry=registry.SOURCES,
    )
    weight: float = field(1.0, "share in the mixture (relative)", minimum=0.0)
    options: dict[str, Any] = field(
        {}, "of this kind alone: fields of its options' dataclass (registry.SourceKind)"
    )
    path: str = field("", "documents: file or folder; tfds: the prepared dataset's folder")
    ntp_weight: float = field(1.0, "weight of its text tokens", minimum=0.0)
    flow_weight: float = field(1.0, "weight of its noised tokens", minimum=0.0)

    def __post_init__(self):
        options = registry.SOURCES.get(self.kind).options(**self.options)  # with its defaults
        object.__setattr__(self, "options", dataclasses.asdict(options))


@dataclasses.dataclass(frozen=True)
class DataConfig:
    sources: dict[str, SourceConfig] = field({}, "name -> source")
    encoded: str = field(
        "", "folder of images encoded beforehand ('mogao data encode'); empty: in every step"
    )
    validation_documents: int = field(
        256, "held-out documents of the fixed validation set, shared out by weight", minimum=1
    )
    num_workers: int = field(0, "worker processes of the pipeline; 0: threads only", minimum=0)
    max_broken: int = field(100, "broken records skipped before training stops", minimum=0)


@dataclasses.dataclass(frozen=True)
class AttentionConfig:
    implementation: Literal["auto", "xla", "dense", "pallas_tpu", "pallas_gpu"] = field(
        "auto",
        "auto: by the devices; xla: blockwise over active blocks, anywhere; pallas_tpu, "
        "pallas_gpu: the same as a kernel; dense: the L x L reference, for tests",
    )
    block_q: int = field(
        0, "queries per block; small ones follow the mask; 0: what suits the devices", minimum=0
    )
    block_kv: int = field(0, "keys per block; 0: what suits the devices", minimum=0)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The deep-fusion transformer. Defaults: Qwen2.5-0.5B's conventions at a small size."""

    num_layers: int = field(6, minimum=1)
    embed_dim: int = field(256, minimum=8)
    mlp_dim: int = field(704, minimum=1)
    num_heads: int = field(4, minimum=1)
    num_kv_heads: int = field(2, minimum=1)
    head_dim: int = field(64, minimum=8)
    rms_norm_eps: float = field(1e-6, above=0.0)
    tie_embeddings: bool = True
    embedding_init: float = field(
        0.02,
        "spread of the token embedding at the start; against a high learning rate, small ones "
        "are soon forgotten",
        above=0.0,
    )
    vocab_size: int = field(0, "rows of the embedding; 0: as many as the tokenizer has", minimum=0)
    fusion: Literal["deep", "shared"] = field(
        "deep", "deep: weights per branch; shared: one set for all tokens (ablations A, B, C)"
    )
    rope: Literal["il_rope", "m_rope"] = "il_rope"
    rope_theta: float = field(1e6, above=0.0)
    rope_tail: float = field(
        0.25,
        "[choice] share of the rotary pairs, at the low-frequency end, that IL-RoPE gives to T "
        "alone; the paper's 16 of 64. 0 interleaves T, H, W to the end (equation 9 as written)",
        minimum=0.0,
        maximum=1.0,
    )
    timestep_embed_dim: int = field(256, "sinusoids before the timestep MLP", minimum=2)
    timestep_scale: float = field(1000.0, "t in [0, 1] is multiplied by this", above=0.0)
    velocity_head: Literal["direct", "residual"] = field(
        "direct",
        "[choice] direct: the head's output is the velocity; residual: it is added, in units of "
        "its spread, to the best linear guess of the velocity from x_t (flow.linear_velocity)",
    )
    connector: Literal["merger", "vit_merger"] = field(
        "merger",
        "[choice] merger: our trainable merger on features before Qwen2-VL's own; vit_merger: "
        "a trainable linear layer on the output of Qwen2-VL's frozen merger",
    )
    scan_layers: bool = field(
        False, "one compiled layer instead of num_layers copies, and one block of the frozen ViT"
    )
    remat: Literal["none", "keep_matmuls", "keep_attention", "full"] = field(
        "none", "what a layer keeps for its backward pass (models/block.py)"
    )
    dtype: Literal["float32", "bfloat16"] = field("float32", "of computation")
    param_dtype: Literal["float32", "bfloat16"] = "float32"
    cross_entropy_chunk: int = field(
        256, "tokens of a row whose logits exist at a time; untrained ones are skipped", minimum=1
    )
    attention: AttentionConfig = field(AttentionConfig())

    def __post_init__(self):
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"model.num_heads ({self.num_heads}) must be a multiple of "
                f"model.num_kv_heads ({self.num_kv_heads})."
            )
        if self.head_dim % 8:
            raise ConfigError(f"model.head_dim ({self.head_dim}) must be a multiple of 8.")


@dataclasses.dataclass(frozen=True)
class VaeConfig:
    """FLUX's autoencoder (8x, 16 channels) at any width, or TAEF1. Frozen."""

    kind: Literal["flux", "taef1"] = "flux"
    weights: str = field(
        "embedded", "'embedded' (tiny, ships with the package), or a safetensors file or folder"
    )
    block_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = field(2, minimum=1)
    norm_groups: int = field(32, minimum=1)
    latent_channels: int = field(16, minimum=1)
    scaling_factor: float = field(0.3611, above=0.0)
    shift_factor: float = 0.1159
    sample_posterior: bool = field(True, "[choice] False: the posterior's mean")


@dataclasses.dataclass(frozen=True)
class VitConfig:
    """Qwen2-VL's vision tower at any width. Frozen."""

    weights: str = field("embedded", "'embedded', or a safetensors file or folder")
    depth: int = field(32, minimum=1)
    embed_dim: int = field(1280, minimum=8)
    num_heads: int = field(16, minimum=1)
    mlp_dim: int = field(5120, minimum=1)
    patch_size: int = field(VIT_PATCH, minimum=1)
    merge_size: int = field(VIT_MERGE, minimum=1)
    temporal_patch_size: int = field(2, minimum=1)
    rope_theta: float = field(10000.0, above=0.0)
    layer_norm_eps: float = field(1e-6, above=0.0)
    merger_dim: int = field(0, "width of the tower's own merger's output; 0: no merger", minimum=0)


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """lambda * L_NTP + L_flow (equation 7)."""

    ntp_weight: float = field(1.0, "[choice] lambda", minimum=0.0)
    timesteps: Literal["logit_normal", "uniform"] = field("logit_normal", "[choice]")
    logit_mean: float = field(0.0, "of the logit-normal, before the shift")
    logit_std: float = field(1.0, above=0.0)
    shift: Literal["none", "constant", "resolution"] = field(
        "resolution",
        "[choice] towards noise: none; constant: `shift_factor`; resolution: "
        "sqrt(tokens / shift_base_tokens) (SD3, equation 23)",
    )
    shift_factor: float = field(1.0, above=0.0)
    shift_base_tokens: int = field(256, "tokens of an image at shift 1", minimum=1)


@dataclasses.dataclass(frozen=True)
class PortingConfig:
    """How a model begins that is built around a pretrained LLM (`mogao port from-hf`)."""

    gen_branch: Literal["copy", "fresh"] = field(
        "copy", "copy: of the LLM, as the und branch; fresh: initialised"
    )
    adaln: Literal["zero", "open"] = field(
        "zero",
        "[choice] zero: the gen stream passes every block unchanged (AdaLN-Zero); open: gates of "
        "one, each block begins as the LLM's own",
    )
    velocity_head: Literal["zero", "fresh"] = field("zero", "[choice] the output projection")
    vocabulary: Literal["exact", "extend"] = field(
        "exact",
        "extend: model.vocab_size may be over the LLM's; new rows get the spread of the old ones",
    )


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW or Muon, linear warm-up, then constant or cosine."""

    kind: Literal["adamw", "muon"] = field(
        "adamw",
        "[choice] muon: matrices of the transformer by Muon (its update scaled to AdamW's size, "
        "so that learning rates carry over), the rest by AdamW with Nesterov's momentum",
    )
    muon_on: Literal["all", "und"] = field(
        "all",
        "[choice] und: only the understanding branch's layers by Muon, which teaches small models "
        "to look for the thing that a question names; AdamW learns images as well, for less",
    )
    adam_share: float = field(
        1.0, "muon: the rest's learning rate over that of the matrices", above=0.0
    )
    learning_rate: float = field(1e-4, above=0.0)
    end_learning_rate: float = field(0.0, "at the end of a cosine schedule", minimum=0.0)
    schedule: Literal["constant", "cosine"] = "cosine"
    warmup_steps: int = field(100, minimum=0)
    b1: float = field(0.9, minimum=0.0, maximum=1.0)
    b2: float = field(0.95, minimum=0.0, maximum=1.0)
    eps: float = field(1e-8, above=0.0)
    weight_decay: float = field(0.0, "on matrices only: no norms, biases or embeddings", minimum=0)
    clip_norm: float = field(1.0, "global gradient norm; 0: none", minimum=0.0)
    ema_decay: float = field(0.999, "0: no moving average", minimum=0.0, maximum=1.0)
    frozen: Literal["nothing", "llm"] = field(
        "nothing",
        "[choice] llm: what comes with a language model (understanding branch, embedding, head) "
        "is not trained: answers to text stay the same to the bit",
    )
    moments_dtype: Literal["float32", "bfloat16"] = field(
        "float32",
        "[choice] of Adam's and Muon's moments between steps; the arithmetic is float32 in both",
    )


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    num_steps: int = field(1000, minimum=1)
    init_from: str = field(
        "",
        "checkpoint (ported, exported, or a run's folder) whose parameters a new run starts from; "
        "the average, if any, starts as their copy",
    )
    global_batch_rows: int = field(4, "rows per micro-step over the whole mesh", minimum=1)
    grad_accum_steps: int = field(1, "micro-steps per optimizer step", minimum=1)
    max_minutes: float = field(
        0.0, "stop cleanly after this long (the schedule follows the clock); 0: no limit", minimum=0
    )
    log_every: int = field(10, minimum=1)
    eval_every: int = field(0, "0: only at the end", minimum=0)
    checkpoint_every: int = field(500, minimum=1)
    keep_checkpoints: int = field(2, minimum=1)
    timestep_bins: int = field(4, "flow loss is logged per bin of t", minimum=1)
    experiment: str = field("", "a name of this run for people; empty: the config's name")
    tags: tuple[str, ...] = field((), "words to find this run by")
    wandb: str = field("", "project at Weights & Biases to log to as well (extra wandb)")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices per axis; -1 takes what is left (at most once)."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    context: int = 1
    param_axes: tuple[str, ...] = field(
        ("fsdp",),
        "axes that weights, moments and averages are sharded over; over two, weights are "
        "all-gathered in two steps. With data: for TPUs' tori, which gather along a line or a "
        "plane; with context: for long rows, whose devices otherwise hold the state once each",
        choices=(("fsdp",), ("fsdp", "data"), ("fsdp", "context")),
    )
    num_slices: int = field(
        1,
        "slices (or groups of hosts) joined by a slower network: the data axis goes across them, "
        "the others stay inside one",
        minimum=1,
    )
    encoders: Literal["replicated", "sharded"] = field(
        "replicated", "frozen encoders: a copy per device, or sharded over fsdp and all-gathered"
    )
    cpu_devices: int = field(
        1,
        "devices that a CPU is split into: one per core keeps all cores busy (global_batch_rows "
        "must be a multiple); without effect where there is an accelerator",
        minimum=1,
    )


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """What a model is sampled with unless something else is asked for. Defaults: the paper's."""

    num_steps: int = field(50, "of the ODE solver, per image", minimum=1)
    guidance_scale: float = field(7.5, "gamma", minimum=0.0, maximum=1000.0)
    image_guidance_scale: float = field(1.5, "gamma_img", minimum=0.0, maximum=1000.0)
    temperature: float = field(
        0.7, "[choice] of text; 0: the likeliest token, with which stories repeat", minimum=0.0
    )
    top_p: float = field(
        0.9, "[choice] share of the probability that text is drawn from", above=0.0, maximum=1.0
    )


@dataclasses.dataclass(frozen=True)
class MogaoConfig:
    name: str = "default"
    about: str = field("", "what the model knows, in a sentence: said when it is sampled")
    seed: int = 0
    tokenizer: TokenizerConfig = field(TokenizerConfig())
    images: ImageConfig = field(ImageConfig())
    layout: LayoutConfig = field(LayoutConfig())
    packing: PackingConfig = field(PackingConfig())
    data: DataConfig = field(DataConfig())
    model: ModelConfig = field(ModelConfig())
    vae: VaeConfig = field(VaeConfig())
    vit: VitConfig = field(VitConfig())
    porting: PortingConfig = field(PortingConfig())
    objective: ObjectiveConfig = field(ObjectiveConfig())
    optimizer: OptimizerConfig = field(OptimizerConfig())
    train: TrainConfig = field(TrainConfig())
    mesh: MeshConfig = field(MeshConfig())
    sampling: SamplingConfig = field(SamplingConfig())
