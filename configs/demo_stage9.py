"""The demo checkpoint's last stage: everything in balance once more.

Costs: 36 minutes on 2 CPU cores, about 2 GiB of memory.
Run:   mogao train --config=configs/demo_stage9.py --workdir runs/demo_stage9
       (bash launch/demo.sh trains all stages and exports what ships with the package)
"""

from demo_stage5 import questions
from demo_stage7 import get_config as seventh_stage


def get_config():
    c = seventh_stage()
    c.name = "demo_stage9"
    c.data.sources["t2i_counting"]["weight"] = 0.08
    c.data.sources["t2i_position"]["weight"] = 0.08
    c.data.sources["edit"]["weight"] = 0.17
    c.data.sources["story"]["weight"] = 0.07
    c.data.sources["clip"]["weight"] = 0.02
    c.data.sources["state"]["weight"] = 0.02
    c.data.sources["describe"]["weight"] = 0.01
    c.data.sources.update(
        questions(
            {
                ("qa", ""): 0.02,
                ("qa", "color"): 0.01,
                ("qa", "relation"): 0.05,
                ("qa", "where"): 0.03,
                ("qa", "count"): 0.06,
                ("qa", "yes_no"): 0.06,
                ("quiz", "relation"): 0.07,
                ("quiz", "told_apart"): 0.02,
                ("quiz", "count"): 0.05,
                ("quiz", "yes_no"): 0.08,
                ("quiz", ""): 0.02,
            }
        )
    )

    # In proportion to this mixture (`mogao data budgets`).
    c.packing.und_tokens = 784
    c.packing.clean_tokens = 60
    c.packing.noised_tokens = 484
    c.packing.images = 16
    c.packing.vit_patches = 752

    c.train.init_from = "runs/demo_stage8"
    c.train.max_minutes = 36.0
    return c
