"""Mogao-7B, stage 2: as stage 1, images of 512x512.

Costs: a pod: `mogao plan --config=mogao_7b_stage2:MACHINE --topology MACHINE` says what it takes.
Reach: not trained.
Run:   mogao train --config=configs/mogao_7b_stage2.py:v5p-64 --workdir runs/mogao_7b_stage2
Needs: a run of stage 1 in runs/mogao_7b_stage1, and its data.
Plan:  mogao plan --config=configs/mogao_7b_stage2.py:MACHINE --topology MACHINE --no-compile
       printed on 2026-11-24 by formulas, not measured; without --no-compile a compiler is asked:

       machine    GiB a chip   s a step   tokens/s    MFU   10^12 tokens
       v5e-256     7.78 of 16     1.36   1,270,905  44.2%     9.1 days
       v5p-64      9.31 of 95     2.93     740,624  44.2%    15.6 days
       v5p-512     7.53 of 95     0.58   5,926,050  44.2%     2.0 days
       v6e-64      9.31 of 32     1.49   1,454,771  43.4%     8.0 days
       8xH100     23.54 of 75     9.71     206,456  45.8%    56.1 days
       64xH100    23.20 of 75     1.32   1,640,635  45.5%     7.1 days

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
    # A row of 7,168 tokens: 5 images generated (up to 1,024 VAE tokens each), two or three
    # looked at (324 ViT tokens each).
    c.packing.und_tokens = 1920
    c.packing.clean_tokens = 128
    c.packing.noised_tokens = 5120
    c.packing.images = 5
    c.packing.vit_patches = 3888

    c.optimizer.learning_rate = 1e-4
    c.train.num_steps = 50_000  # [choice] 10^11 tokens
    return on_machine(c, machine)
