"""Teaches the demo checkpoint three shapes that it has never seen: diamonds, hearts and arrows.

Costs: 6 minutes on 2 CPU cores, about 2 GiB of memory.
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
        "t2i": 0.24, "t2i_counting": 0.10, "t2i_position": 0.08, "t2i_color_attribution": 0.08,
        "qa": 0.06, "edit": 0.14, "story": 0.06, "clip": 0.02,
    }  # fmt: skip
    old = {  # so that nothing is forgotten
        "t2i": 0.03, "t2i_counting": 0.04, "t2i_position": 0.03, "t2i_color_attribution": 0.01,
        "qa": 0.04, "edit": 0.04, "story": 0.03,
    }  # fmt: skip
    c.data.sources = {
        **mixture(new, world="novel", ntp_weights=NTP_WEIGHTS, prefix="new_"),
        **mixture(old, world="grid", ntp_weights=NTP_WEIGHTS),
    }
    p = c.packing
    p.und_tokens, p.clean_tokens, p.noised_tokens, p.images, p.vit_patches = (784, 84, 964, 30, 736)
    c.optimizer.learning_rate = 1e-3
    c.optimizer.warmup_steps = 30
    c.optimizer.ema_decay = 0.98
    c.train.init_from = "demo"
    c.train.max_minutes = 6.0
    c.train.checkpoint_every = 500
    c.train.eval_every = 500
    return c
