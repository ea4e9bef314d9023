"""The demo checkpoint's seventh stage: everything in balance again.

Costs: 60 minutes on 2 CPU cores, about 2 GiB of memory.
Run:   mogao train --config=configs/demo_stage7.py --workdir runs/demo_stage7
       (bash launch/demo.sh trains all stages and exports what ships with the package)
"""

from demo_stage4 import get_config as fourth_stage
from demo_stage5 import questions


def get_config():
    c = fourth_stage()
    c.name = "demo_stage7"
    captions = {"": 0.09, "counting": 0.09, "position": 0.06, "color_attribution": 0.04}
    for category, weight in captions.items():
        c.data.sources["_".join(("t2i", category)).strip("_")]["weight"] = weight
    c.data.sources.update(
        questions(
            {
                ("qa", ""): 0.02,
                ("qa", "color"): 0.01,
                ("qa", "relation"): 0.06,
                ("qa", "where"): 0.03,
                ("qa", "count"): 0.07,
                ("qa", "yes_no"): 0.06,
                ("quiz", "relation"): 0.10,
                ("quiz", "told_apart"): 0.03,
                ("quiz", ""): 0.04,
            }
        )
    )
    c.data.sources["state"]["weight"] = 0.05
    c.data.sources["describe"]["weight"] = 0.02
    c.data.sources["edit"]["weight"] = 0.16
    c.data.sources["story"]["weight"] = 0.08
    c.data.sources["clip"]["weight"] = 0.03
    c.data.sources["text"]["weight"] = 0.01

    # In proportion to this mixture (`mogao data budgets`).
    c.packing.und_tokens = 784
    c.packing.clean_tokens = 68
    c.packing.noised_tokens = 524
    c.packing.images = 17
    c.packing.vit_patches = 784

    c.optimizer.kind = "muon"
    c.optimizer.muon_on = "und"
    c.optimizer.learning_rate = 2e-3
    c.optimizer.adam_share = 0.5
    c.train.init_from = "runs/demo_stage6"
    c.train.max_minutes = 60.0
    return c
