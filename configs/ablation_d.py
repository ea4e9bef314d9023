"""Ablation D of the paper (table 5), on the embedded world: deep fusion, IL-RoPE, VAE and ViT.

Costs: as quickstart.py, on which it builds.
Reach: not measured yet.
Run:   mogao train --config=configs/ablation_d.py --workdir runs/ablation_d
"""

from quickstart import get_config as quickstart


def get_config():
    c = quickstart()
    c.name = "ablation_d"
    c.model.fusion = "deep"
    return c
