"""The demo checkpoint's sixth stage: which of two things a question means.

After the stage before, answers about sides had the right axis and a side at random: both things
were found, and not which was asked about. Asked where one of two is, in the same words, it
learns to tell within 150 steps, and the sides follow.

Costs: 14 minutes on 2 CPU cores, about 2 GiB of memory.
Run:   mogao train --config=configs/demo_stage6.py --workdir runs/demo_stage6
       (bash launch/demo.sh trains all stages and exports what ships with the package)
"""

from demo_stage5 import get_config as fifth_stage
from demo_stage5 import questions


def get_config():
    c = fifth_stage()
    c.name = "demo_stage6"
    c.data.sources = questions(
        {
            ("quiz", "told_apart"): 0.50,
            ("quiz", "relation"): 0.20,
            ("quiz", ""): 0.05,
            ("qa", "relation"): 0.15,
            ("qa", "where"): 0.05,
            ("qa", ""): 0.05,
        }
    )

    c.train.init_from = "runs/demo_stage5"
    c.train.max_minutes = 14.0
    return c
