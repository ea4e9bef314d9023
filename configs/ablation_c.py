"""Ablation C of the paper (table 5), on the embedded world: shared weights, IL-RoPE, VAE and ViT.

Costs: as quickstart.py, on which it builds.
Reach: not measured yet.
Run:   mogao train --config=configs/ablation_c.py --workdir runs/ablation_c
"""

from quickstart import get_config as quickstart


def get_config():
    c = quickstart()
    c.name = "ablation_c"
    c.model.fusion = "shared"
    return c
