"""What `mogao train` does once its command line is understood."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses

from mogao_jax.assembly import RunSetup, train
from mogao_jax.compile_cache import keep_compiled_programs
from mogao_jax.config.schema import MogaoConfig
from mogao_jax.console.output import configure_logging
from mogao_jax.console.signals import StopOnSignals
from mogao_jax.data.pipeline import make_validation_batches
from mogao_jax.paths import expanded
from mogao_jax.sharding import multihost
from mogao_jax.sharding.mesh import row_reader, split_cpu
from mogao_jax.tools.report.data_sample import save_data_sample


def run(config: MogaoConfig, arguments: argparse.Namespace) -> int:
    """Trains; returns the exit status."""
    configure_logging()
    split_cpu(config.mesh.cpu_devices)
    multihost.initialize()
    keep_compiled_programs()  # a run that resumes starts at once
    stop = StopOnSignals()

    writers = []
    if config.train.wandb and multihost.is_main():
        from mogao_jax.training.wandb_writer import WandbWriter

        writers.append(WandbWriter(config, expanded(arguments.workdir)))

    def on_start(setup: RunSetup) -> None:
        save_sample(setup)
        stop.install()

    with contextlib.ExitStack() as stack:
        for writer in writers:
            stack.callback(writer.close)
        result = train(
            config,
            arguments.workdir,
            writers=writers,
            on_start=on_start,
            should_stop=stop,
            restart_data=arguments.restart_data,
        )
    return 0 if result.finished else stop.status


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
