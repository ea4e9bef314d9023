"""The demo checkpoint's first stage: the quickstart's recipe, larger and longer.

Costs: 62 minutes on 2 CPU cores, about 2 GiB of memory.
Run:   mogao train --config=configs/demo.py --workdir runs/demo
       (bash launch/demo.sh trains all stages and exports what ships with the package)
"""

from quickstart import captions
from quickstart import get_config as quickstart


def get_config():
    c = quickstart()
    c.name = "demo"
    c.data.world = "grid"  # with every color and shape
    # Half of the captions are of the three categories that are learned last.
    asked = captions({"": 0.18, "counting": 0.07, "position": 0.13, "color_attribution": 0.09})
    for name in asked:
        del c.data.sources[name]
    c.data.sources.update(asked)
    # Answers of a word are a thin signal; descriptions teach the same with thirty words a picture.
    c.data.sources["describe"]["weight"] = 0.14
    c.data.sources["qa"]["weight"] = 0.19
    c.data.sources["qa"]["ntp_weight"] = 8.0
    c.data.sources["edit"]["weight"] = 0.14
    c.data.sources["story"]["weight"] = 0.07
    c.data.sources["clip"]["weight"] = 0.04
    c.data.sources["text"]["weight"] = 0.03
    c.layout.end_after_image = "interleaved"  # the fourth stage learns to end after one picture

    c.packing.und_tokens = 640
    c.packing.clean_tokens = 64
    c.packing.noised_tokens = 608
    c.packing.images = 19
    c.packing.vit_patches = 560

    c.model.num_layers = 6
    c.model.embed_dim = 192
    c.model.mlp_dim = 512
    c.model.head_dim = 48

    # At 3e-3 pictures learn as fast, but text never learns to look at a picture's colors.
    c.optimizer.learning_rate = 1e-3
    c.optimizer.warmup_steps = 100
    c.optimizer.ema_decay = 0.999
    c.train.max_minutes = 62.0
    c.train.checkpoint_every = 1000
    c.train.eval_every = 2000
    c.train.log_every = 50
    return c
