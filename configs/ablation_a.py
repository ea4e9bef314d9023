"""Ablation A of the paper (table 5), on the embedded world: shared weights, M-RoPE, VAE only.

Costs: as quickstart.py, on which it builds.
Reach: not measured yet.
Run:   mogao train --config=configs/ablation_a.py --workdir runs/ablation_a
"""

from quickstart import get_config as quickstart


def get_config():
    c = quickstart()
    c.name = "ablation_a"
    c.model.fusion = "shared"
    c.model.rope = "m_rope"
    c.layout.understanding_encoder = "vae"
    # Images are read as clean VAE tokens: other budgets (`mogao data budgets`).
    c.packing.clean_tokens = 152
    c.packing.noised_tokens = 952
    c.packing.images = 31
    c.packing.vit_patches = 16
    return c
