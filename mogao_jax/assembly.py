"""A config put together and trained: `mogao_jax.train`.

    import mogao_jax

    def brightness(params):  # an evaluator: parameters -> {metric: value}
        return {"mean": ...}

    result = mogao_jax.train(
        "configs/quickstart.py", "runs/first", evaluators={"brightness": brightness}
    )
    print(result.step, result.metrics["validation"]["flow_loss"])

`assemble` is the one place where a config becomes a train step. Training, `mogao profile` and
`mogao plan` run what it returns.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from mogao_jax.checkpoints.sidecar_files import describe_tokenizer, keep_origin, keep_tokenizer
from mogao_jax.config.checks import check, check_on_mesh
from mogao_jax.config.convert import from_config_dict, to_dict
from mogao_jax.config.files import load_config
from mogao_jax.config.schema import MogaoConfig
from mogao_jax.data.encoded import open_encoded
from mogao_jax.data.pipeline import make_train_iterator, make_validation_batches
from mogao_jax.errors import ConfigError
from mogao_jax.models.encoder_weights import file_digests
from mogao_jax.models.modules import (
    EncoderParams,
    Modules,
    count_parameters,
    encoder_shapes,
    init_params,
    load_encoders,
    make_modules,
)
from mogao_jax.precompute import check_encoded
from mogao_jax.process_memory import peak_bytes
from mogao_jax.sequence.batch import EMPTY, PackedBatch
from mogao_jax.sharding import multihost, rules
from mogao_jax.sharding.mesh import check_rows, encoder_shardings, make_mesh, row_reader
from mogao_jax.tokenizer import Tokenizer, load_tokenizer
from mogao_jax.training import workdir as workdir_lib
from mogao_jax.training.checkpointing import Checkpointer
from mogao_jax.training.init_from import load_initial_params
from mogao_jax.training.loop import Counters, Evaluator, Trainer
from mogao_jax.training.metrics import (
    UNCONDITIONAL,
    UNTRAINED,
    VALIDATION,
    MetricsWriter,
    Writer,
    read_metrics,
)
from mogao_jax.training.optimizer import Optimizer, count_trained, make_optimizer
from mogao_jax.training.state import (
    TrainState,
    abstract_state,
    init_state,
    num_bytes,
    shardings_of,
    state_from,
)
from mogao_jax.training.step import make_eval_step, make_train_step
from mogao_jax.training.validation import hide_images, make_evaluator


@dataclasses.dataclass(frozen=True, eq=False)
class Assembly:
    """A config's train step on a mesh, and all that it takes but the batches.

    Attributes:
      encoders: frozen parameters, placed on the mesh; ShapeDtypeStructs if no weights were read.
      state: the TrainState as ShapeDtypeStructs with shardings.
      train_step: jitted (state, encoders, batch [A, B, ...], learning_rate float32[]) ->
        (state, metrics). It donates the state. Call or lower it within `on_mesh()`.
    """

    config: MogaoConfig
    mesh: Mesh
    modules: Modules
    encoders: EncoderParams
    optimizer: Optimizer
    state: TrainState
    train_step: Any

    def on_mesh(self) -> contextlib.AbstractContextManager[Mesh]:
        return rules.on_mesh(self.mesh, self.config.mesh.param_axes)

    def init_params(self) -> Any:
        """Initial parameters from the config's seed, boxed with logical axis names."""
        return init_params(self.config, self.modules.model, jax.random.key(self.config.seed))

    def init_state(self) -> TrainState:
        """The state at step 0 with initial parameters, made in place on the mesh."""
        return init_state(self.init_params, self.state, self.optimizer.transform)


def assemble(
    config: MogaoConfig, vocab_size: int, mesh: Mesh, *, load_weights: bool = True
) -> Assembly:
    """Puts the modules, the encoders, the optimizer and the train step of a config together.

    Args:
      vocab_size: of the tokenizer.
      mesh: of devices that are there, or (without weights) of devices that are only described.
      load_weights: read the frozen encoders' weights and place them; False: their shapes alone.
    Raises:
      CheckpointError, ConfigError: weights that are missing, damaged or of another shape; rows
        that cannot be sharded over the mesh.
    """
    check_rows(mesh, config.train.global_batch_rows)
    modules = make_modules(config, vocab_size, mesh.devices.flat[0].platform)
    encoders = load_encoders(modules) if load_weights else encoder_shapes(modules)
    shardings = encoder_shardings(mesh, encoders, config.mesh.encoders)
    if load_weights:
        encoders = jax.device_put(encoders, shardings)
    else:
        encoders = jax.tree.map(lambda x, s: x.update(sharding=s), encoders, shardings)
    optimizer = make_optimizer(config.optimizer, config.train.num_steps)
    state = abstract_state(
        functools.partial(init_params, config, modules.model, jax.random.key(config.seed)),
        optimizer.transform,
        mesh,
        config.optimizer.ema_decay,
        config.mesh.param_axes,
    )
    train_step = jax.jit(
        make_train_step(modules, optimizer.transform),
        donate_argnums=0,
        # As they came in: else XLA re-shards small leaves, and cannot reuse their buffers.
        out_shardings=(shardings_of(state), None),
    )
    return Assembly(config, mesh, modules, encoders, optimizer, state, train_step)


def training_mesh(config: MogaoConfig) -> Mesh:
    """The config's mesh of all devices, checked against the rest of the config.

    Raises:
      ConfigError, EnvironmentProblem: with the nearest choice that works.
    """
    mesh = make_mesh(config.mesh)
    check_on_mesh(config, mesh.shape)
    check_rows(mesh, config.train.global_batch_rows)
    return mesh


@dataclasses.dataclass(frozen=True)
class RunSetup:
    """What `train(on_start=...)` is told of a run.

    Attributes:
      validation: this process's host batches [B, ...] of the fixed validation set; may be empty.
    """

    workdir: pathlib.Path
    assembly: Assembly
    tokenizer: Tokenizer
    validation: Sequence[PackedBatch]


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """What `train` returns.

    Attributes:
      state: the last one, as in the last checkpoint; its arrays lie on the mesh.
      step: optimizer steps done.
      finished: whether the run is over; False if it was stopped. The same call then resumes it.
      metrics: the last record of every split: {"train": {"loss": ...}, "validation": {...}, ...}.
      counters: seconds trained and tokens seen, over all calls that the run was made of.
      workdir: the run's folder, an absolute path.
    """

    state: TrainState
    step: int
    finished: bool
    metrics: dict[str, dict[str, float]]
    counters: Counters
    workdir: pathlib.Path


def train(
    config: MogaoConfig | ConfigDict | str | os.PathLike,
    workdir: str | os.PathLike,
    *,
    evaluators: Mapping[str, Evaluator] | None = None,
    writers: Sequence[Writer] = (),
    on_start: Callable[[RunSetup], None] = lambda setup: None,
    should_stop: Callable[[], bool] = lambda: False,
    restart_data: bool = False,
) -> TrainResult:
    """Trains a model, or resumes the run that the folder holds.

    Validation losses are always measured. Every process of a multi-host run must make the same
    call, after `sharding.multihost.initialize()`.

    Args:
      config: a config, or the path of a file as `--config` takes it.
      workdir: the run's folder, made if it is absent. Where it holds a checkpoint of this config,
        training resumes from it.
      evaluators: {split: function}. Each takes the parameters (the moving average where there is
        one) and returns {metric: value}. It is called every `train.eval_every` steps and at the
        end; its values are written to metrics.jsonl under the split's name.
      writers: get every record besides metrics.jsonl and TensorBoard, in the first process.
      on_start: called once before the first step, with the assembled run.
      should_stop: asked after every step; true ends the run early, with a checkpoint.
      restart_data: on resuming, start the data again.
    Raises:
      ConfigError, EnvironmentProblem, CheckpointError, DataError: before time is spent wherever
        that can be known, with the place and the remedy.
      LossNotFinite: training diverged. Nothing was saved since the last checkpoint.
    """
    config = _typed(config)
    evaluators = dict(evaluators or {})
    _check_run(config, evaluators)
    tokenizer = load_tokenizer(config.tokenizer)
    mesh = training_mesh(config)
    folder = workdir_lib.prepare(workdir)
    if multihost.is_main():
        keep_tokenizer(folder, config.tokenizer)
    share = row_reader(mesh)._asdict()
    data = make_train_iterator(config, tokenizer=tokenizer, **share)
    assembly = assemble(config, tokenizer.vocab_size, mesh)
    if config.data.encoded:
        check_encoded(open_encoded(config.data.encoded), assembly.modules, assembly.encoders)
    num = config.train.keep_checkpoints
    workdir_lib.prepare(folder, workdir_lib.checkpoint_bytes(num_bytes(assembly.state), num))

    made_with = {
        "tokenizer": describe_tokenizer(config.tokenizer, tokenizer),
        "encoders": file_digests(config),
    }
    with (
        contextlib.closing(data),
        assembly.on_mesh(),
        Checkpointer(folder, config, made_with=made_with, report=_say) as checkpointer,
    ):
        restored = checkpointer.restore(assembly.state, data=data, restart_data=restart_data)
        if restored is None:
            state, counters = _first_state(assembly, folder, tokenizer), Counters()
        else:
            state, counters = restored.state, Counters(**restored.counters)
        step = int(state.step)
        if _is_over(folder, config, counters, step):
            _say(f"{folder} has already finished training at step {step}; nothing to do.")
            return TrainResult(state, step, True, _last_metrics(folder), counters, folder)
        _save_run_facts(assembly, folder)
        _say(_summary(assembly, folder, step))
        batches = make_validation_batches(config, tokenizer, **share)
        with MetricsWriter(folder, resume_step=step) as record:
            trainer = Trainer(
                config=config,
                mesh=mesh,
                train_step=assembly.train_step,
                encoders=assembly.encoders,
                data=data,
                schedule=assembly.optimizer.schedule,
                evaluators=evaluators | _validation(assembly, tokenizer, batches),
                checkpointer=checkpointer,
                record=record,
                writers=writers,
                sources=assembly.modules.sources,
                should_stop=should_stop,
            )
            on_start(RunSetup(folder, assembly, tokenizer, batches))
            state = trainer.train(state, counters)
        _save_run_facts(assembly, folder, **_peak_memory())
    step = int(state.step)
    finished = _is_over(folder, config, counters, step)
    _say(
        f"{'Done' if finished else 'Stopped'} at step {step} after "
        f"{counters.seconds / 60:.1f} minutes and {counters.tokens:,} tokens; saved in {folder}."
        + ("" if finished else " The same command goes on from here.")
    )
    return TrainResult(state, step, finished, _last_metrics(folder), counters, folder)


def _typed(config: MogaoConfig | ConfigDict | str | os.PathLike) -> MogaoConfig:
    if isinstance(config, MogaoConfig):
        return config
    if isinstance(config, (str, os.PathLike)):
        return load_config(os.fspath(config))
    return from_config_dict(config)


def _check_run(config: MogaoConfig, evaluators: Mapping[str, Evaluator]) -> None:
    check(config)
    if taken := evaluators.keys() & {"train", VALIDATION, UNCONDITIONAL, UNTRAINED}:
        raise ConfigError(f"evaluators: {', '.join(sorted(taken))} is a split of the run itself.")
    if config.train.max_minutes and multihost.process_count() > 1:
        raise ConfigError(
            "config.train.max_minutes needs a single process: the clocks of several would not "
            "agree on the last step. Set it to 0 and give config.train.num_steps."
        )


def _first_state(assembly: Assembly, folder: pathlib.Path, tokenizer: Tokenizer) -> TrainState:
    """The state at step 0: initialised, or with the parameters of `train.init_from`."""
    config = assembly.config
    if config.train.init_from:
        params = load_initial_params(config, assembly.state.params, tokenizer, report=_say)
        state = state_from(params, assembly.state, assembly.optimizer.transform)
    else:
        state = assembly.init_state()
    workdir_lib.write_config(folder, to_dict(config))
    if config.train.init_from and multihost.is_main():
        keep_origin(folder, config.train.init_from)
    return state


def _validation(
    assembly: Assembly, tokenizer: Tokenizer, batches: Sequence[PackedBatch]
) -> dict[str, Evaluator]:
    """Evaluators of the fixed validation set: as it is, and without any condition."""
    if not batches:
        return {}
    share = row_reader(assembly.mesh)._asdict()
    blind = make_validation_batches(assembly.config, tokenizer, context=EMPTY, **share)
    make = functools.partial(
        make_evaluator,
        assembly.modules,
        assembly.encoders,
        assembly.mesh,
        eval_step=jax.jit(make_eval_step(assembly.modules)),
    )
    return {VALIDATION: make(batches), UNCONDITIONAL: make([hide_images(b) for b in blind])}


def _is_over(folder: pathlib.Path, config: MogaoConfig, counters: Counters, step: int) -> bool:
    limit = config.train.max_minutes * 60
    over = step >= config.train.num_steps or (0 < limit <= counters.seconds)
    evaluated = [r for r in read_metrics(folder, UNCONDITIONAL) if r["step"] == step]
    return over and (bool(evaluated) or not read_metrics(folder, UNTRAINED))


def _last_metrics(folder: pathlib.Path) -> dict[str, dict[str, float]]:
    return {
        record["split"]: {k: v for k, v in record.items() if isinstance(v, (int, float))}
        for record in read_metrics(folder)
    }


def _save_run_facts(assembly: Assembly, folder: pathlib.Path, **facts: Any) -> None:
    if multihost.is_main():
        parameters = count_parameters(assembly.state.params)
        workdir_lib.save_run_facts(folder, parameters=parameters, devices=jax.devices(), **facts)


def _peak_memory() -> dict[str, Any]:
    """Peak memory of the process, and of the first device where it keeps count."""
    facts = {"peak memory": f"{peak_bytes() / 2**30:.2f} GiB"}
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        facts["peak device memory"] = f"{stats['peak_bytes_in_use'] / 2**30:.2f} GiB"
    return facts


def _summary(assembly: Assembly, folder: pathlib.Path, step: int) -> str:
    config, mesh, params = assembly.config, assembly.mesh, assembly.state.params
    attention = assembly.modules.model.config.attention
    axes = " x ".join(f"{a}={n}" for a, n in mesh.shape.items() if n > 1) or "one device"
    parts = count_parameters(params)
    total = sum(parts.values())
    counts = ", ".join(f"{part} {n:,}" for part, n in parts.items())
    frozen = total - count_trained(params, config.optimizer)
    held = f"; {frozen:,} of them frozen (optimizer.frozen)" if frozen else ""
    where = f"resuming at step {step}" if step else "starting"
    return (
        f"{config.name}: {where} in {folder}\n"
        f"  devices     {jax.device_count()} {jax.devices()[0].device_kind} ({axes})\n"
        f"  parameters  {total:,} ({counts}){held}\n"
        f"  state       {num_bytes(assembly.state) / 2**20:.0f} MiB\n"
        f"  attention   {attention.implementation}, blocks of {attention.block_q} queries x "
        f"{attention.block_kv} keys\n"
        f"  sources     {', '.join(config.data.sources)}"
    )


def _say(message: str) -> None:
    if multihost.is_main():
        print(message, file=sys.stderr, flush=True)
