"""The demo checkpoint's fourth stage: everything in balance, and an end after a single picture.

Costs: 40 minutes on 2 CPU cores, about 2 GiB of memory.
Run:   mogao train --config=configs/demo_stage4.py --workdir runs/demo_stage4
       (bash launch/demo.sh trains all stages and exports what ships with the package)
"""

from demo_stage3 import get_config as third_stage


def get_config():
    c = third_stage()
    c.name = "demo_stage4"
    captions = {"": 0.12, "counting": 0.11, "position": 0.08, "color_attribution": 0.05}
    for category, weight in captions.items():
        c.data.sources["_".join(("t2i", category)).strip("_")]["weight"] = weight
    c.data.sources["qa"]["weight"] = 0.04
    questions = {"color": 0.01, "relation": 0.05, "where": 0.05, "count": 0.03}
    for category, weight in questions.items():
        c.data.sources[f"qa_{category}"]["weight"] = weight
    c.data.sources["state"]["weight"] = 0.08
    c.data.sources["describe"]["weight"] = 0.02
    c.data.sources["edit"]["weight"] = 0.20
    c.data.sources["story"]["weight"] = 0.10
    c.data.sources["clip"]["weight"] = 0.04
    c.data.sources["text"]["weight"] = 0.02
    # So that it ends by itself after a picture that was asked for.
    c.layout.end_after_image = "sometimes"

    # In proportion to this mixture (`mogao data budgets`).
    c.packing.und_tokens = 768
    c.packing.clean_tokens = 92
    c.packing.noised_tokens = 764
    c.packing.images = 25
    c.packing.vit_patches = 864

    c.train.init_from = "runs/demo_stage3"
    c.train.max_minutes = 40.0
    return c
