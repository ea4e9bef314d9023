"""Mogao-7B, stage 1: images up to 256x256, captions : understanding = 4 : 1.

Costs: a pod: `mogao plan --config=mogao_7b_stage1:MACHINE --topology MACHINE` says what it takes.
Reach: not trained.
Run:   mogao train --config=configs/mogao_7b_stage1.py:v5p-64 --workdir runs/mogao_7b_stage1
       (machines: v5e-256, v5p-64, v5p-512, v6e-64, 8xH100, 64xH100; stages 2 and 3 as well)
Needs: mogao port from-hf --config=configs/mogao_7b.py ... --out weights/mogao_7b  (docs/porting.md)
       and documents (sequence/document.py) in data/text_to_image and data/understanding.
Plan:  mogao plan --config=configs/mogao_7b_stage1.py:MACHINE --topology MACHINE --no-compile
       printed on 2026-11-24 by formulas, not measured; without --no-compile a compiler is asked:

       machine    GiB a chip   s a step   tokens/s    MFU   10^12 tokens
       v5e-256     8.04 of 16     1.43   1,369,385  46.4%     8.5 days
       v5p-64      9.56 of 95     2.46     797,895  46.4%    14.5 days
       v5p-512     7.80 of 95     0.61   6,385,050  46.4%     1.8 days
       v6e-64      9.56 of 32     1.23   1,593,401  46.3%     7.3 days
       8xH100     23.71 of 75     8.76     223,979  48.4%    51.7 days
       64xH100    23.45 of 75     1.10   1,777,375  48.0%     6.5 days

What the paper says: resolution, ratio, everything trained but the encoders, ECTF. What it leaves
open and is chosen here: rows, batch, number of steps, optimizer, learning rate, loss weights.
"""

from ml_collections import ConfigDict
from mogao_7b import get_config as mogao_7b

from mogao_jax.config import source
from mogao_jax.errors import ConfigError

START = "weights/mogao_7b"  # what `mogao port from-hf` made
TOKENS_PER_STEP = 2**21  # [choice] that the learning rates are meant for

# Devices per axis, and rows per device and micro-step. On a TPU, parameters are sharded over data
# and fsdp, which lie along different axes of the slice's torus (16x16, 4x4x4, 8x8x8, 8x8). On GPUs
# they are sharded over fsdp, inside a node, and replicated over data.
BOTH = {"param_axes": ("fsdp", "data"), "rows": 1, "remat": "full"}
MACHINES = {
    "v5e-256": {"data": 16, "fsdp": 16, **BOTH},
    "v5p-64": {"data": 4, "fsdp": 16, **BOTH},
    "v5p-512": {"data": 8, "fsdp": 64, **BOTH},
    "v6e-64": {"data": 8, "fsdp": 8, **BOTH},
    "8xH100": {"data": 1, "fsdp": 8, "rows": 1, "remat": "full"},
    "64xH100": {"data": 8, "fsdp": 8, "slices": 8, "rows": 1, "remat": "full"},
}


def get_config(machine: str = "v5p-64"):
    c = mogao_7b()
    c.name = "mogao_7b_stage1"
    c.train.init_from = START
    c.vae.weights = f"{START}/vae.safetensors"
    c.vit.weights = f"{START}/vit.safetensors"

    c.images.max_pixels = 256 * 256
    c.images.max_side = 384  # aspect ratios up to 2.25 at full area

    c.data.sources = {
        "text_to_image": source(
            kind="documents", path="data/text_to_image", task="t2i", weight=0.8
        ),
        "understanding": source(
            kind="documents", path="data/understanding", task="qa", weight=0.2, flow_weight=0.0
        ),
    }
    c.data.num_workers = 16
    # A row of 8,192 tokens: some 17 images generated (256 VAE tokens each), 8 looked at (81 ViT
    # tokens each); nothing is read back, but a stream cannot be empty.
    c.packing.und_tokens = 3712
    c.packing.clean_tokens = 128
    c.packing.noised_tokens = 4352
    c.packing.images = 18
    c.packing.vit_patches = 3240
    c.packing.over_long = "cut"

    c.optimizer.learning_rate = 1e-4  # [choice] as is usual for models around 7B
    c.optimizer.schedule = "constant"
    c.optimizer.warmup_steps = 2000
    c.optimizer.ema_decay = 0.9999
    c.objective.ntp_weight = 0.25  # [choice] lambda: the flow loss is small beside it
    c.train.num_steps = 100_000  # [choice] 2 x 10^11 tokens
    c.train.checkpoint_every = 1000
    return on_machine(c, machine)


def on_machine(c: ConfigDict, machine: str) -> ConfigDict:
    """Mesh, rows and remat of a machine; as many micro-steps as make up TOKENS_PER_STEP.

    [choice] Where one micro-step is more than that, the learning rate grows with the square root
    of the tokens per step, as Adam's gradient noise does (Malladi et al. 2022, arXiv 2205.10287).
    """
    if machine not in MACHINES:
        raise ConfigError(f"there is no machine {machine!r}; there are: {', '.join(MACHINES)}.")
    m = MACHINES[machine]
    c.mesh.data, c.mesh.fsdp = m["data"], m["fsdp"]
    c.mesh.param_axes = m.get("param_axes", ("fsdp",))
    c.mesh.num_slices = m.get("slices", 1)
    c.model.remat = m["remat"]
    c.train.global_batch_rows = m["rows"] * m["data"] * m["fsdp"]
    p = c.packing
    tokens = (p.und_tokens + p.clean_tokens + p.noised_tokens) * c.train.global_batch_rows
    c.train.grad_accum_steps = max(1, round(TOKENS_PER_STEP / tokens))
    c.optimizer.learning_rate *= (tokens * c.train.grad_accum_steps / TOKENS_PER_STEP) ** 0.5
    return c
