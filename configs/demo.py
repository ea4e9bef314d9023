"""The demo checkpoint that ships with the package: the quickstart's recipe, larger and longer.

Costs: 100 minutes on 2 CPU cores, about 2 GiB of memory.
Run:   mogao train --config=configs/demo.py --workdir runs/demo
       mogao export runs/demo --out mogao_jax/assets/demo.safetensors
"""

from quickstart import get_config as quickstart


def get_config():
    c = quickstart()
    c.name = "demo"
    c.data.sources["t2i"]["weight"] = 0.52
    c.data.sources["qa"]["weight"] = 0.15
    c.data.sources["edit"]["weight"] = 0.15
    c.data.sources["story"]["weight"] = 0.09
    c.data.sources["clip"]["weight"] = 0.05
    c.data.sources["text"]["weight"] = 0.04

    c.packing.und_tokens = 768
    c.packing.clean_tokens = 96
    c.packing.noised_tokens = 484
    c.packing.images = 29
    c.packing.vit_patches = 688

    c.data.sources["qa"]["ntp_weight"] = 1.0
    c.model.rope_theta = 1e6
    c.model.num_layers = 6
    c.model.embed_dim = 192
    c.model.mlp_dim = 512
    c.model.head_dim = 48

    c.optimizer.learning_rate = 3e-3
    c.optimizer.warmup_steps = 100
    c.optimizer.ema_decay = 0.999
    c.train.max_minutes = 100.0
    c.train.checkpoint_every = 1000
    c.train.eval_every = 2000
    c.train.log_every = 50
    return c
