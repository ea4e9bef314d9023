"""Mogao-7B, stage 3: understanding 20%, text to image 40%, interleaved 40%, 512x512.

Costs: a pod: `mogao plan --config=mogao_7b_stage3:MACHINE --topology MACHINE` says what it takes.
Reach: not trained.
Run:   mogao train --config=configs/mogao_7b_stage3.py:v5p-64 --workdir runs/mogao_7b_stage3
Needs: a run of stage 2 in runs/mogao_7b_stage2, its data, and interleaved documents (web pages,
       captioned frames of videos) in data/interleaved.
Plan:  mogao plan --config=configs/mogao_7b_stage3.py:MACHINE --topology MACHINE --no-compile
       printed on 2026-11-24 by formulas, not measured; without --no-compile a compiler is asked:

       machine    GiB a chip   s a step   tokens/s    MFU   10^12 tokens
       v5e-256    10.16 of 16     3.33   1,191,806  44.2%     9.7 days
       v5p-64     11.67 of 95     2.86     694,115  44.2%    16.7 days
       v5p-512     9.92 of 95     1.43   5,555,137  44.2%     2.1 days
       v6e-64     11.67 of 32     1.43   1,386,445  44.1%     8.3 days
       8xH100     25.83 of 75     10.2     194,074  45.9%    59.6 days
       64xH100    25.56 of 75     1.29   1,541,858  45.5%     7.5 days
       Memory allows less recomputation than remat "full": see --search.

[choice] rows of 16,384 tokens, so that a document of 8 images fits; number of steps; a lower
learning rate that falls to a tenth.
"""

from mogao_7b_stage1 import on_machine
from mogao_7b_stage2 import get_config as stage2

from mogao_jax.config import source

ROWS = {  # und, clean, noised tokens; images; ViT patches
    8192: (1920, 2048, 4224, 4, 5184),
    16384: (3840, 4096, 8448, 8, 10368),
}


def get_config(machine: str = "v5p-64"):
    c = stage2(machine)
    c.name = "mogao_7b_stage3"
    c.train.init_from = "runs/mogao_7b_stage2"

    shares = {"text_to_image": 0.4, "understanding": 0.2}
    for name, share in shares.items():
        c.data.sources[name].weight = share
    c.data.sources.interleaved = source(
        kind="documents", path="data/interleaved", task="story", weight=0.4
    )
    row(c, 16384)

    c.optimizer.learning_rate = 5e-5
    c.optimizer.end_learning_rate = 5e-6
    c.optimizer.schedule = "cosine"
    c.train.num_steps = 50_000  # [choice] 10^11 tokens
    return on_machine(c, machine)


def row(c, tokens: int) -> None:
    """Budgets of a row of so many tokens."""
    p = c.packing
    p.und_tokens, p.clean_tokens, p.noised_tokens, p.images, p.vit_patches = ROWS[tokens]
