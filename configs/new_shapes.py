"""Teaches the demo checkpoint three shapes that it has never seen: diamonds, hearts and arrows.

Costs: 8 minutes on 2 CPU cores, about 2 GiB of memory.
Reach: see README (`bash launch/quickstart.sh`).
Run:   mogao train --config=configs/new_shapes.py --workdir runs/new_shapes
       mogao eval shapes --checkpoint runs/new_shapes --world novel
"""

from demo import NTP_WEIGHTS, STAGES
from demo import get_config as demo

from mogao_jax.worlds.shapes.recipes import about, mixture


def get_config():
    c = demo(str(len(STAGES)))
    c.name = "new_shapes"
    c.about = about("grid", "novel")
    new = {
        "t2i": 0.31, "t2i_counting": 0.17, "t2i_position": 0.11, "t2i_color_attribution": 0.15,
        "qa": 0.02, "edit": 0.04,
    }  # fmt: skip
    old = {  # so that nothing is forgotten
        "t2i": 0.02, "t2i_counting": 0.04, "t2i_position": 0.03,
        "qa": 0.06, "edit": 0.04, "story": 0.01,
    }  # fmt: skip
    c.data.sources = {
        **mixture(new, world="novel", ntp_weights=NTP_WEIGHTS, prefix="new_"),
        **mixture(old, world="grid", ntp_weights=NTP_WEIGHTS),
    }
    p = c.packing
    p.und_tokens, p.clean_tokens, p.noised_tokens, p.images, p.vit_patches = (320, 60, 436, 13, 208)
    c.optimizer.kind = "adamw"  # Muon would take half of each step, in so small a batch
    c.optimizer.learning_rate = 1.5e-3
    c.optimizer.warmup_steps = 30
    c.optimizer.ema_decay = 0.97
    c.sampling.guidance_scale = 3.0  # what is new is a weak signal yet

    c.train.init_from = "demo"
    c.train.max_minutes = 8.0
    c.train.checkpoint_every = 500
    c.train.eval_every = 500
    return c
