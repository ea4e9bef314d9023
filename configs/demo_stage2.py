"""The demo checkpoint's second stage: from the first's weights, more of what is learned last.

Counting and places in captions; questions, and statements that ask in every direction.

Costs: 80 minutes on 2 CPU cores, about 2 GiB of memory.
Run:   mogao train --config=configs/demo_stage2.py --workdir runs/demo_stage2
       (bash launch/demo.sh trains all stages and exports what ships with the package)
"""

from demo import get_config as first_stage

from mogao_jax.config.convert import source


def get_config():
    c = first_stage()
    c.name = "demo_stage2"
    captions = {"": 0.14, "counting": 0.15, "position": 0.13, "color_attribution": 0.06}
    for category, weight in captions.items():
        c.data.sources["_".join(("t2i", category)).strip("_")]["weight"] = weight
    c.data.sources["qa"]["weight"] = 0.16
    c.data.sources["state"] = source(kind="shapes", task="state", weight=0.10, ntp_weight=2.0)
    c.data.sources["describe"]["weight"] = 0.04
    c.data.sources["edit"]["weight"] = 0.14
    c.data.sources["story"]["weight"] = 0.05
    c.data.sources["clip"]["weight"] = 0.02
    c.data.sources["text"]["weight"] = 0.01

    c.train.init_from = "runs/demo"
    c.train.max_minutes = 80.0
    return c
