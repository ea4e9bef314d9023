"""The demo checkpoint's third stage: questions, while what was learned is kept up.

Whose colour, where, on which side: the answers that take two objects or a place.

Costs: 30 minutes on 2 CPU cores, about 2 GiB of memory.
Run:   mogao train --config=configs/demo_stage3.py --workdir runs/demo_stage3
       (bash launch/demo.sh trains all stages and exports what ships with the package)
"""

from demo_stage2 import get_config as second_stage

from mogao_jax.config.convert import source


def get_config():
    c = second_stage()
    c.name = "demo_stage3"
    captions = {"": 0.07, "counting": 0.06, "position": 0.05, "color_attribution": 0.02}
    for category, weight in captions.items():
        c.data.sources["_".join(("t2i", category)).strip("_")]["weight"] = weight
    c.data.sources["qa"]["weight"] = 0.06
    questions = {"color": 0.09, "relation": 0.10, "where": 0.09, "count": 0.07}
    for category, weight in questions.items():
        c.data.sources[f"qa_{category}"] = source(
            kind="shapes", task="qa", category=category, weight=weight, ntp_weight=8.0
        )
    c.data.sources["state"]["weight"] = 0.15
    c.data.sources["describe"]["weight"] = 0.02
    c.data.sources["edit"]["weight"] = 0.12
    c.data.sources["story"]["weight"] = 0.06
    c.data.sources["clip"]["weight"] = 0.02
    c.data.sources["text"]["weight"] = 0.01

    # In proportion to this mixture (`mogao data budgets`).
    c.packing.und_tokens = 768
    c.packing.clean_tokens = 60
    c.packing.noised_tokens = 448
    c.packing.images = 16
    c.packing.vit_patches = 800

    c.optimizer.learning_rate = 7e-4
    c.train.init_from = "runs/demo_stage2"
    c.train.max_minutes = 30.0
    return c
