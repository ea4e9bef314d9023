"""`mogao train --config=configs/X.py [--config.a.b=...] --workdir DIR`: trains, or resumes.

The run folder decides: where it holds a checkpoint of the same config, training resumes from it.
Everything that can be known to fail is checked before time is spent.
"""

from __future__ import annotations

import argparse
import dataclasses
import signal
import sys
from typing import Any

from mogao_jax.assembly import RunSetup, train
from mogao_jax.compile_cache import keep_compiled_programs
from mogao_jax.config.files import parse_config_args
from mogao_jax.console.output import configure_logging
from mogao_jax.data.pipeline import make_validation_batches
from mogao_jax.sharding import multihost
from mogao_jax.sharding.mesh import row_reader, split_cpu
from mogao_jax.tools.report.data_sample import save_data_sample


def main(argv: list[str]) -> int:
    """Parses the command line and runs; returns the exit status."""
    config, rest = parse_config_args(argv)
    parser = argparse.ArgumentParser(
        prog="mogao train --config=FILE [--config.FIELD=VALUE ...]", description=__doc__
    )
    parser.add_argument("--workdir", required=True, help="the run's folder; made if it is absent")
    parser.add_argument(
        "--restart-data", action="store_true", help="on resuming, start the data again"
    )
    arguments = parser.parse_args(rest)
    configure_logging()
    split_cpu(config.mesh.cpu_devices)
    multihost.initialize()
    keep_compiled_programs()  # a run that resumes starts at once
    stop = StopOnSignals()

    def on_start(setup: RunSetup) -> None:
        save_sample(setup)
        stop.install()

    train(
        config,
        arguments.workdir,
        on_start=on_start,
        should_stop=stop,
        restart_data=arguments.restart_data,
    )
    return 0


def save_sample(setup: RunSetup) -> None:
    """Saves a packed row for the report, in the first process."""
    config, mesh = setup.assembly.config, setup.assembly.mesh
    if not setup.validation or not multihost.is_main():
        return
    batches = setup.validation
    if config.data.encoded:  # the report shows images, which encoded batches do not hold
        plain = dataclasses.replace(config, data=dataclasses.replace(config.data, encoded=""))
        share = row_reader(mesh)._asdict()
        batches = make_validation_batches(plain, setup.tokenizer, **share)
    save_data_sample(
        batches[0],
        setup.tokenizer,
        setup.workdir,
        sources=setup.assembly.modules.sources,
        text_reads_vae=config.layout.understanding_encoder == "vae",
    )


class StopOnSignals:
    """SIGINT and SIGTERM end the run after the step in hand, with a checkpoint.

    A second SIGINT interrupts at once, as usual. Of several processes jax takes care itself
    (`Checkpointer.reached_preemption`): they must agree on the step.
    """

    def __init__(self) -> None:
        self._asked = False

    def __call__(self) -> bool:
        return self._asked

    def install(self) -> None:
        if multihost.process_count() == 1:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, self._handle)

    def _handle(self, number: int, frame: Any) -> None:
        del number, frame
        self._asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        print("\nStopping after this step; press Ctrl-C again to stop at once.", file=sys.stderr)
