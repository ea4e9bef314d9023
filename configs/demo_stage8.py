"""The demo checkpoint's eighth stage: numbers, claims and sides, several questions a picture.

Costs: 22 minutes on 2 CPU cores, about 2 GiB of memory.
Run:   mogao train --config=configs/demo_stage8.py --workdir runs/demo_stage8
       (bash launch/demo.sh trains all stages and exports what ships with the package)
"""

from demo_stage5 import get_config as fifth_stage
from demo_stage5 import questions


def get_config():
    c = fifth_stage()
    c.name = "demo_stage8"
    c.data.sources = questions(
        {
            ("quiz", "yes_no"): 0.34,
            ("quiz", "count"): 0.18,
            ("quiz", "relation"): 0.20,
            ("quiz", ""): 0.04,
            ("qa", "yes_no"): 0.09,
            ("qa", "count"): 0.06,
            ("qa", "relation"): 0.05,
            ("qa", ""): 0.04,
        }
    )

    # In proportion to this mixture (`mogao data budgets`); nothing is drawn.
    c.packing.und_tokens = 768
    c.packing.vit_patches = 512

    c.train.init_from = "runs/demo_stage7"
    c.train.max_minutes = 22.0
    return c
