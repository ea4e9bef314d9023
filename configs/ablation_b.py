"""Ablation B of the paper (table 5), on the embedded world: shared weights, IL-RoPE, VAE only.

Costs: as quickstart.py, on which it builds.
Reach: not measured yet.
Run:   mogao train --config=configs/ablation_b.py --workdir runs/ablation_b
"""

from quickstart import get_config as quickstart


def get_config():
    c = quickstart()
    c.name = "ablation_b"
    c.model.fusion = "shared"
    c.layout.understanding_encoder = "vae"
    # Images are read as clean VAE tokens: other budgets (`mogao data budgets`).
    c.packing.clean_tokens = 152
    c.packing.noised_tokens = 952
    c.packing.images = 31
    c.packing.vit_patches = 16
    return c
