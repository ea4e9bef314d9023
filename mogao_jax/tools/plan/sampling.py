"""The sampler's step, generating an image, compiled for one chip of a machine.

The sampler serves from one device that holds all parameters; more chips are more servers.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mogao_jax.config.checks import check_architecture, image_tokens, vit_tokens
from mogao_jax.config.geometry import LATENT_PATCH
from mogao_jax.config.schema import MogaoConfig
from mogao_jax.models import cache as kv_cache
from mogao_jax.models.modules import Modules, make_modules, param_shapes
from mogao_jax.ops.attention.parts import Parts
from mogao_jax.sampling import guided_flow
from mogao_jax.sequence.masking import TokenMeta
from mogao_jax.tools.flops import branch_weights
from mogao_jax.tools.plan import topology as topologies
from mogao_jax.tools.plan.plan import Compiled, vocab_size
from mogao_jax.tools.plan.printing import table
from mogao_jax.tools.plan.roofline import EFFICIENCY
from mogao_jax.tools.plan.topology import Topology
from mogao_jax.training.state import num_bytes

CONTEXTS = 3  # full, image-only, empty: computed together
PROMPT = 128  # und tokens of the history, besides those of one image
STEPS_PER_PROGRAM = 10


@dataclasses.dataclass(frozen=True)
class SamplingPlan:
    """Bytes and FLOPs on one chip; seconds by a roofline.

    Attributes:
      images: generated together, each in three contexts.
      tokens: of an image.
      history: (und, clean) tokens in the cache that a step looks at.
      parameters: bytes.
      cache: bytes.
      peak, temporaries: the compiler's; None where there is none.
      step_flops: of one step of the solver.
      step_seconds, compute_seconds, memory_seconds: of one step.
    """

    name: str
    topology: Topology
    images: int
    tokens: int
    history: tuple[int, int]
    num_steps: int
    parameters: float
    cache: float
    peak: float | None
    temporaries: float | None
    compile_seconds: float | None
    step_flops: float
    compute_seconds: float
    memory_seconds: float

    @property
    def step_seconds(self) -> float:
        return max(self.compute_seconds, self.memory_seconds)

    @property
    def held(self) -> float:
        """Bytes at the peak; without a compiler, parameters and cache alone."""
        return self.peak if self.peak is not None else self.parameters + self.cache


def make_sampling_plan(
    config: MogaoConfig,
    topology: Topology,
    *,
    images: int = 1,
    compile_it: bool = True,
    say: Callable[[str], None] = lambda _: None,
) -> SamplingPlan:
    """Plans `integrate_flow`, Euler's method, after a history of a prompt and one image.

    Raises:
      MogaoError: as `make_plan`.
    """
    check_architecture(config)
    compile_it = compile_it and topology.compiles
    if compile_it:
        topologies.check_compiler()
    modules = make_modules(config, vocab_size(config), topology.chip.platform)
    tokens, und = image_tokens(config), PROMPT + vit_tokens(config)
    lines = CONTEXTS * images
    params = param_shapes(config, modules.model)
    cache = jax.eval_shape(
        lambda: Parts(*(kv_cache.allocate(config.model, lines, n) for n in (und, tokens)))
    )
    compiled = None
    if compile_it:
        device = topologies.devices(topology)[0]
        say(f"compiling an image's steps for one chip of {topology}")
        program = _lowered(modules, params, cache, images, (und, tokens), device)
        compiled, _ = Compiled.of(program)
    m, chip = config.model, topology.chip
    matmuls = 2.0 * branch_weights(m) * tokens * lines
    pairs = lines * tokens * (und + 2 * tokens)  # history, a clean image, and itself
    attention = 4.0 * m.num_layers * m.num_heads * m.head_dim * pairs
    compute = matmuls / EFFICIENCY["matmuls"] + attention / EFFICIENCY["attention"]
    read = jnp.dtype(m.param_dtype).itemsize * branch_weights(m) + num_bytes(cache)
    return SamplingPlan(
        name=config.name,
        topology=topology,
        images=images,
        tokens=tokens,
        history=(und, tokens),
        num_steps=config.sampling.num_steps,
        parameters=float(num_bytes(params)),
        cache=float(num_bytes(cache)),
        peak=compiled.peak if compiled else None,
        temporaries=compiled.temporaries if compiled else None,
        compile_seconds=compiled.seconds if compiled else None,
        step_flops=matmuls + attention,
        compute_seconds=compute / chip.flops,
        memory_seconds=read / (chip.bandwidth * EFFICIENCY["memory"]),
    )


def _lowered(
    modules: Modules, params: Any, cache: Any, images: int, history: tuple[int, int], device: Any
) -> Any:
    """The steps of some images after (und, clean) tokens of history, lowered for a device."""
    und, tokens = history
    num_lines, i32, f32 = CONTEXTS * images, jnp.int32, jnp.float32

    def array(dtype: Any, *shape: int) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype)

    lines = guided_flow.GuidanceBatch(
        rows=array(i32, num_lines),
        image=array(i32, num_lines),
        meta=TokenMeta(*(array(i32, num_lines, tokens) for _ in range(3))),
        positions=array(f32, num_lines, tokens, 3),
        index=array(i32, images, CONTEXTS),
        weights=array(f32, images, CONTEXTS),
        interval=array(f32, images, 2),
    )
    channels = modules.config.vae.latent_channels * LATENT_PATCH**2
    settings = guided_flow.FlowSettings(und_length=und, clean_length=tokens, solver="euler")
    steps = functools.partial(guided_flow.integrate_flow, modules, settings=settings)
    sharding = jax.sharding.SingleDeviceSharding(device)
    return jax.jit(steps, in_shardings=sharding).lower(
        params,
        cache,
        array(f32, images, tokens, channels),
        array(f32, STEPS_PER_PROGRAM + 1, images),
        array(i32),
        lines,
    )


def as_text(plan: SamplingPlan) -> str:
    """The report."""
    gib, chip = 2.0**30, plan.topology.chip
    rows = [
        ("chip", f"one {chip.name}, {chip.memory / gib:.1f} GiB"),
        ("images", f"{plan.images}, of {plan.tokens:,} tokens, in {CONTEXTS} contexts each"),
        ("history", f"{plan.history[0]:,} und and {plan.history[1]:,} clean tokens"),
        ("parameters", f"{plan.parameters / gib:.2f} GiB"),
        ("cache", f"{plan.cache / gib:.2f} GiB"),
    ]
    if plan.peak is not None and plan.temporaries is not None:
        rows += [
            ("temporaries", f"{plan.temporaries / gib:.2f} GiB"),
            ("peak (compiler)", f"{plan.peak / gib:.2f} GiB ({plan.peak / chip.memory:.0%}), "
                                f"compiled in {plan.compile_seconds:.0f} s"),
        ]  # fmt: skip
    else:
        rows.append(("peak", "not known without a compiler; the frozen VAE's decoder adds to it"))
    seconds = plan.step_seconds * plan.num_steps
    limit = "arithmetic" if plan.compute_seconds >= plan.memory_seconds else "memory bandwidth"
    rows += [
        ("a step", f"{plan.step_flops:.4g} FLOP, {plan.step_seconds * 1e3:.1f} ms, limited by "
                   f"{limit}"),
        ("images/s", f"{plan.images / seconds:.3g} a chip, {seconds:.2f} s for {plan.num_steps} "
                     "steps"),
    ]  # fmt: skip
    assumed = ", ".join(f"{k} {EFFICIENCY[k]:.0%}" for k in ("matmuls", "attention", "memory"))
    flags = []
    if plan.held > chip.memory:
        flags = [
            "",
            f"OUT OF MEMORY: {plan.held / gib:.1f} of {chip.memory / gib:.1f} GiB. Try fewer "
            "images at a time, config.model.param_dtype='bfloat16', or a chip with more memory.",
        ]
    return "\n".join(
        [
            f"Plan of sampling from {plan.name!r}",
            "",
            *table(rows),
            f"An estimate; assumed shares of published peaks: {assumed}.",
            *flags,
        ]
    )


def as_json(plan: SamplingPlan) -> dict[str, Any]:
    """The same figures."""
    return dataclasses.asdict(plan) | {"step_seconds": plan.step_seconds}
