"""Mogao-7B, stage 2: as stage 1, pictures of 512x512.

Run:   mogao train --config=configs/mogao_7b_stage2.py:v5p-64 --workdir runs/mogao_7b_stage2
Needs: a run of stage 1 in runs/mogao_7b_stage1, and its data.
Plan:  mogao plan --config=configs/mogao_7b_stage2.py:v5p-64 --topology v5p:4x4x4

[choice] as in stage 1: rows, number of steps, learning rate (the same).
"""

from mogao_7b_stage1 import get_config as stage1
from mogao_7b_stage1 import on_machine


def get_config(machine: str = "v5p-64"):
    c = stage1(machine)
    c.name = "mogao_7b_stage2"
    c.train.init_from = "runs/mogao_7b_stage1"

    c.images.max_pixels = 512 * 512
    c.images.max_side = 768
    # A row of 7,168 tokens: 5 pictures drawn (up to 1,024 VAE tokens each), two or three looked at
    # (324 ViT tokens each).
    c.packing.und_tokens = 1920
    c.packing.clean_tokens = 128
    c.packing.noised_tokens = 5120
    c.packing.images = 5
    c.packing.vit_patches = 3888

    c.optimizer.learning_rate = 1e-4
    c.train.num_steps = 50_000  # [choice] 10^11 tokens
    return on_machine(c, machine)
