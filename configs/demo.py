"""The demo checkpoint that ships with the package: the quickstart's model, trained for longer.

Costs: 100 minutes on 2 CPU cores, about 2 GiB of memory.
Run:   mogao train --config=configs/demo.py --workdir runs/demo
       mogao export runs/demo --out mogao_jax/assets/demo.safetensors --dtype float16
"""

from quickstart import get_config as quickstart


def get_config():
    c = quickstart()
    c.name = "demo"
    c.optimizer.ema_decay = 0.9985
    c.optimizer.warmup_steps = 100
    c.train.max_minutes = 100.0
    c.train.checkpoint_every = 1000
    c.train.eval_every = 2000
    c.train.log_every = 50
    return c
