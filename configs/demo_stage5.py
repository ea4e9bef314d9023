"""The demo checkpoint's fifth stage: questions alone, several about each picture.

Costs: 20 minutes on 2 CPU cores, about 2 GiB of memory.
Run:   mogao train --config=configs/demo_stage5.py --workdir runs/demo_stage5
       (bash launch/demo.sh trains all stages and exports what ships with the package)
"""

from demo_stage4 import get_config as fourth_stage

from mogao_jax.config.convert import source


def questions(weights):
    """Sources of questions and quizzes: an answer is a word or two, so each counts more."""
    return {
        "_".join((task, category)).strip("_"): source(
            kind="shapes", task=task, category=category, weight=weight, ntp_weight=8.0
        )
        for (task, category), weight in weights.items()
    }


def get_config():
    c = fourth_stage()
    c.name = "demo_stage5"
    c.data.sources = questions(
        {
            ("quiz", "relation"): 0.30,
            ("quiz", ""): 0.15,
            ("qa", "relation"): 0.20,
            ("qa", "where"): 0.10,
            ("qa", "count"): 0.05,
            ("qa", ""): 0.05,
        }
    )
    # Where the thing is has to be known as soon as it is named.
    c.data.sources["state_placed"] = source(
        kind="shapes", task="state", category="placed", weight=0.15, ntp_weight=4.0
    )

    # In proportion to this mixture (`mogao data budgets`); nothing is drawn.
    c.packing.und_tokens = 768
    c.packing.clean_tokens = 4
    c.packing.noised_tokens = 4
    c.packing.images = 1
    c.packing.vit_patches = 640

    # Muon where text is read: it learns what AdamW takes far longer for.
    c.optimizer.kind = "muon"
    c.optimizer.muon_on = "und"
    c.optimizer.learning_rate = 2e-3
    c.optimizer.adam_share = 0.5
    c.train.init_from = "runs/demo_stage4"
    c.train.max_minutes = 20.0
    return c
