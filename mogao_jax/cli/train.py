"""`mogao train --config=configs/X.py [--config.a.b=...] --workdir DIR`: trains, or goes on.

The run folder decides: where it holds a checkpoint of the same config, training resumes from it.
Everything that can be known to fail is checked before time is spent.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import logging
import pathlib
import signal
import sys
from collections.abc import Callable
from typing import Any

import jax

from mogao_jax.checkpoints.sidecar_files import describe_tokenizer, keep_origin, keep_tokenizer
from mogao_jax.config.checks import check, check_on_mesh
from mogao_jax.config.convert import parse_config_args, to_dict
from mogao_jax.config.schema import AttentionConfig, MogaoConfig
from mogao_jax.console.compile_cache import keep_compiled_programs
from mogao_jax.console.logs import configure_logging
from mogao_jax.data.encoded import open_encoded
from mogao_jax.data.pipeline import make_train_iterator, make_validation_batches
from mogao_jax.errors import ConfigError
from mogao_jax.models.encoder_weights import file_digests
from mogao_jax.models.modules import (
    EncoderParams,
    Modules,
    count_parameters,
    init_params,
    load_modules,
)
from mogao_jax.precompute import check_encoded
from mogao_jax.process_memory import peak_bytes
from mogao_jax.sequence.batch import EMPTY
from mogao_jax.sharding import multihost, rules
from mogao_jax.sharding.mesh import (
    check_rows,
    encoder_shardings,
    make_mesh,
    row_reader,
    split_cpu,
)
from mogao_jax.tokenizer import Tokenizer, load_tokenizer
from mogao_jax.tools.report.data_view import save_data_sample
from mogao_jax.tools.report.run_facts import save_run_facts
from mogao_jax.training import workdir
from mogao_jax.training.checkpointing import Checkpointer
from mogao_jax.training.frozen import count_trained
from mogao_jax.training.init_from import load_initial_params
from mogao_jax.training.loop import Counters, Evaluator, Parts, evaluated_params, train
from mogao_jax.training.metrics import MetricsWriter, read_metrics
from mogao_jax.training.optimizer import Optimizer, make_optimizer
from mogao_jax.training.state import (
    TrainState,
    abstract_state,
    init_state,
    num_bytes,
    shardings_of,
    state_from,
)
from mogao_jax.training.step import make_eval_step, make_train_step
from mogao_jax.training.validation import hide_pictures, make_evaluator

logger = logging.getLogger(__name__)


def main(argv: list[str]) -> int:
    """Parses the command line and runs; returns the exit status."""
    config, rest = parse_config_args(argv)
    parser = argparse.ArgumentParser(
        prog="mogao train --config=FILE [--config.FIELD=VALUE ...]", description=__doc__
    )
    parser.add_argument("--workdir", required=True, help="the run's folder; made if need be")
    parser.add_argument(
        "--restart-data", action="store_true", help="on resuming, begin the data anew"
    )
    arguments = parser.parse_args(rest)
    configure_logging()
    split_cpu(config.mesh.cpu_devices)
    multihost.initialize()
    keep_compiled_programs()  # a run that goes on starts at once
    run(config, pathlib.Path(arguments.workdir), restart_data=arguments.restart_data)
    return 0


def run(config: MogaoConfig, folder: pathlib.Path, *, restart_data: bool = False) -> None:
    """One run, from the checks to the last evaluation."""
    check(config)
    tokenizer = load_tokenizer(config.tokenizer)
    mesh = make_mesh(config.mesh)
    check_on_mesh(config, mesh.shape)
    check_rows(mesh, config.train.global_batch_rows)
    if config.train.max_minutes and multihost.process_count() > 1:
        raise ConfigError(
            "config.train.max_minutes needs a single process: the clocks of several would not "
            "agree on the last step. Set it to 0 and give config.train.num_steps."
        )
    folder = workdir.prepare(folder)
    if multihost.is_main():
        keep_tokenizer(folder, config.tokenizer)
    reader, num_readers = row_reader(mesh)
    data = make_train_iterator(
        config,
        tokenizer=tokenizer,
        reader=reader,
        num_readers=num_readers,
    )
    modules, encoders = load_modules(config, tokenizer.vocab_size)
    if config.data.encoded:
        check_encoded(open_encoded(config.data.encoded), modules, encoders)
    encoders = jax.device_put(encoders, encoder_shardings(mesh, encoders, config.mesh.encoders))

    optimizer = make_optimizer(config.optimizer, config.train.num_steps)
    init = functools.partial(init_params, config, modules.model, jax.random.key(config.seed))
    ema_decay = config.optimizer.ema_decay
    abstract = abstract_state(init, optimizer.transform, mesh, ema_decay, config.mesh.param_axes)
    state_bytes = num_bytes(abstract)
    workdir.prepare(folder, workdir.checkpoint_bytes(state_bytes, config.train.keep_checkpoints))

    made_with = {
        "tokenizer": describe_tokenizer(config.tokenizer, tokenizer),
        "encoders": file_digests(config),
    }
    with (
        rules.on_mesh(mesh, config.mesh.param_axes),
        Checkpointer(folder, config, made_with=made_with, report=_say) as checkpointer,
    ):
        restored = checkpointer.restore(abstract, data=data, restart_data=restart_data)
        counters = Counters(**restored.counters) if restored else Counters()
        state = restored.state if restored else None
        step = restored.step if restored else 0
        if _is_over(folder, config, counters, step):
            _say(f"{folder} has already finished training at step {step}; nothing to do.")
            return
        if state is None:
            state = _first_state(config, init, abstract, optimizer, mesh, tokenizer)
            workdir.write_config(folder, to_dict(config))
            if config.train.init_from and multihost.is_main():
                keep_origin(folder, config.train.init_from)
        parameters = count_parameters(state.params)
        trained = count_trained(state.params, config.optimizer)
        if multihost.is_main():
            save_run_facts(folder, parameters=parameters, devices=jax.devices())
        attention = modules.model.config.attention
        _say(_summary(config, folder, mesh, parameters, trained, state_bytes, step, attention))

        with MetricsWriter(folder, resume_step=step, tensorboard=multihost.is_main()) as writer:
            evaluators, final = _evaluators(config, modules, encoders, tokenizer, mesh, folder)
            if step == 0 and "validation" in evaluators:
                untrained = evaluators["validation"](evaluated_params(state))
                writer.write(0, untrained, split="validation_untrained")
            parts = Parts(
                config=config,
                mesh=mesh,
                train_step=jax.jit(
                    make_train_step(modules, optimizer.transform),
                    donate_argnums=0,
                    # As they came in: else XLA re-shards small leaves, and cannot reuse them.
                    out_shardings=(shardings_of(abstract), None),
                ),
                encoders=encoders,
                data=data,
                schedule=optimizer.schedule,
                evaluators=evaluators,
                final_evaluators=final,
                checkpointer=checkpointer,
                writer=writer,
                sources=modules.sources,
                should_stop=_stop_on_signals(),
            )
            state = train(parts, state, counters)
        if multihost.is_main():
            save_run_facts(folder, parameters=parameters, devices=jax.devices(), **_peak_memory())
    finished = _is_over(folder, config, counters, int(state.step))
    _say(
        f"{'Done' if finished else 'Stopped'} at step {int(state.step)} after "
        f"{counters.seconds / 60:.1f} minutes and {counters.tokens:,} tokens; saved in {folder}."
        + ("" if finished else " The same command goes on from here.")
    )
    data.close()


def _first_state(
    config: MogaoConfig,
    init: Callable[[], Any],
    abstract: TrainState,
    optimizer: Optimizer,
    mesh: jax.sharding.Mesh,
    tokenizer: Tokenizer,
) -> TrainState:
    """The state at step 0: initialised, or with the parameters of `train.init_from`."""
    if not config.train.init_from:
        ema_decay = config.optimizer.ema_decay
        return init_state(init, optimizer.transform, mesh, ema_decay, config.mesh.param_axes)
    params = load_initial_params(config, abstract.params, tokenizer, report=_say)
    return state_from(params, abstract, optimizer.transform)


def _evaluators(
    config: MogaoConfig,
    modules: Modules,
    encoders: EncoderParams,
    tokenizer: Tokenizer,
    mesh: jax.sharding.Mesh,
    folder: pathlib.Path,
) -> tuple[dict[str, Evaluator], dict[str, Evaluator]]:
    """(those of every evaluation, those of the last one); also saves the report's data sample."""
    reader, num_readers = row_reader(mesh)
    share = {"reader": reader, "num_readers": num_readers}
    batches = make_validation_batches(config, tokenizer, **share)
    if not batches:
        return {}, {}
    if multihost.is_main():
        shown = batches
        if config.data.encoded:  # the report shows pictures, which encoded batches do not hold
            plain = dataclasses.replace(config.data, encoded="")
            shown = make_validation_batches(
                dataclasses.replace(config, data=plain), tokenizer, **share
            )
        save_data_sample(
            shown[0],
            tokenizer,
            folder,
            sources=modules.sources,
            text_reads_vae=config.layout.understanding_encoder == "vae",
        )
    blind = make_validation_batches(config, tokenizer, context=EMPTY, **share)
    blind = [hide_pictures(batch) for batch in blind]
    step = jax.jit(make_eval_step(modules))
    make = functools.partial(make_evaluator, modules, encoders, mesh, eval_step=step)
    return {"validation": make(batches)}, {"validation_no_condition": make(blind)}


def _is_over(folder: pathlib.Path, config: MogaoConfig, counters: Counters, step: int) -> bool:
    limit = config.train.max_minutes * 60
    over = step >= config.train.num_steps or (0 < limit <= counters.seconds)
    evaluated = [r for r in read_metrics(folder, "validation_no_condition") if r["step"] == step]
    return over and (bool(evaluated) or not read_metrics(folder, "validation_untrained"))


def _stop_on_signals() -> Callable[[], bool]:
    """SIGINT and SIGTERM end the run after the step in hand, with a checkpoint.

    A second SIGINT interrupts at once, as usual. Of several processes jax takes care itself
    (`Checkpointer.reached_preemption`): they must agree on the step.
    """
    if multihost.process_count() > 1:
        return lambda: False
    asked: list[int] = []

    def handle(number: int, frame: Any) -> None:
        del frame
        asked.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        print("\nStopping after this step; press Ctrl-C again to stop at once.", file=sys.stderr)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handle)
    return lambda: bool(asked)


def _peak_memory() -> dict[str, Any]:
    """Peak memory of the process, and of the first device where it keeps count."""
    facts = {"peak memory": f"{peak_bytes() / 2**30:.2f} GiB"}
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        facts["peak device memory"] = f"{stats['peak_bytes_in_use'] / 2**30:.2f} GiB"
    return facts


def _summary(
    config: MogaoConfig,
    folder: pathlib.Path,
    mesh: jax.sharding.Mesh,
    parameters: dict[str, int],
    trained: int,
    state_bytes: int,
    step: int,
    attention: AttentionConfig,
) -> str:
    axes = " x ".join(f"{a}={n}" for a, n in mesh.shape.items() if n > 1) or "one device"
    total = sum(parameters.values())
    counts = ", ".join(f"{part} {n:,}" for part, n in parameters.items())
    frozen = total - trained
    held = f"; {frozen:,} of them frozen (optimizer.frozen)" if frozen else ""
    where = f"resuming at step {step}" if step else "starting"
    return (
        f"{config.name}: {where} in {folder}\n"
        f"  devices     {jax.device_count()} {jax.devices()[0].device_kind} ({axes})\n"
        f"  parameters  {total:,} ({counts}){held}\n"
        f"  state       {state_bytes / 2**20:.0f} MiB\n"
        f"  attention   {attention.implementation}, blocks of {attention.block_q} queries x "
        f"{attention.block_kv} keys\n"
        f"  sources     {', '.join(config.data.sources)}"
    )


def _say(message: str) -> None:
    if multihost.is_main():
        print(message, file=sys.stderr, flush=True)
