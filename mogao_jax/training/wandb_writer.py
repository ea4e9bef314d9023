"""Records of a run at Weights & Biases, beside metrics.jsonl and TensorBoard (extra wandb)."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from mogao_jax.atomic import write_file
from mogao_jax.config.convert import to_dict
from mogao_jax.config.schema import MogaoConfig
from mogao_jax.errors import EnvironmentProblem

_ID = "wandb_run.txt"  # in the run's folder: a run that resumes goes on there


class WandbWriter:
    """A `training.metrics.Writer`: every record as SPLIT/METRIC at its step.

    The project is `config.train.wandb`; the run has `config.train.experiment` (or the config's
    name) and `config.train.tags`. Offline mode and keys are wandb's own (WANDB_MODE, wandb login).
    """

    def __init__(self, config: MogaoConfig, workdir: pathlib.Path):
        """Raises EnvironmentProblem if wandb is missing, or cannot begin a run."""
        try:
            import wandb
        except ImportError:
            raise EnvironmentProblem(
                'train.wandb needs the package wandb: pip install "mogao_jax[wandb]"'
            ) from None
        workdir.mkdir(parents=True, exist_ok=True)
        file = workdir / _ID
        known = file.read_text(encoding="utf-8").strip() if file.is_file() else None
        try:
            self._run: Any = wandb.init(
                project=config.train.wandb,
                name=config.train.experiment or config.name,
                tags=list(config.train.tags),
                config=to_dict(config),
                dir=str(workdir),
                id=known,
                resume="allow" if known else None,
            )
        except Exception as e:  # noqa: BLE001  (wandb's own: no login, no network)
            raise EnvironmentProblem(
                f"wandb cannot begin a run of project {config.train.wandb!r} ({e}). Log in with "
                "`wandb login`, set WANDB_MODE=offline, or leave train.wandb empty."
            ) from None
        write_file(file, f"{self._run.id}\n")

    def write(self, step: int, metrics: Mapping[str, float], split: str = "train") -> None:
        """One record."""
        self._run.log({f"{split}/{name}": value for name, value in metrics.items()}, step=step)

    def close(self) -> None:
        """Sends what is left."""
        self._run.finish()
