"""How long a step takes at best: arithmetic, memory and links, each by its own speed.

A model of the machine, not a measurement. Arithmetic and communication are taken to overlap, as
XLA's latency-hiding scheduler makes them; what is left is the longest of them, and the optimizer's
pass over the state, which overlaps with nothing.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from mogao_jax.config.schema import MogaoConfig
from mogao_jax.sharding.rules import MESH_AXES
from mogao_jax.tools.plan.topology import Topology
from mogao_jax.tools.profile.flops import branch_weights

# Shares of a chip's published peaks that are taken to be reached: assumptions, printed with
# every estimate. Matmuls as MaxText reports of dense models (docs/performance.md); attention's
# tiles and the encoders' convolutions are less regular.
EFFICIENCY = {"matmuls": 0.75, "attention": 0.45, "encoders": 0.45, "links": 0.8, "memory": 0.8}


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds per step on each chip, by resource.

    Attributes:
      compute, links, network, memory: as if each were alone.
      optimizer: the pass over the state; inside no other.
    """

    compute: float
    links: float
    network: float
    memory: float
    optimizer: float

    @property
    def step(self) -> float:
        """Seconds of a step."""
        return max(self.compute, self.links, self.network, self.memory) + self.optimizer

    @property
    def serial(self) -> float:
        """The same if nothing overlapped."""
        return self.compute + self.links + self.network + self.memory + self.optimizer

    @property
    def limit(self) -> str:
        """The resource that decides."""
        names = {
            "arithmetic": self.compute,
            "links inside a slice or node": self.links,
            "network between slices or nodes": self.network,
            "memory bandwidth": self.memory,
        }
        return max(names, key=lambda n: names[n])


def roofline(
    config: MogaoConfig,
    topology: Topology,
    executed: Mapping[str, float],
    encoder_flops: float,
    sent: Mapping[str, float],
    state_bytes: float,
    tensor: int = 1,
) -> Roofline:
    """The estimate.

    Args:
      executed: FLOPs of the model per step, all chips (`profiling.executed.executed_flops`).
      encoder_flops: executed by the encoders per step, all chips.
      sent: bytes that each chip sends per step, "links" and "network".
      state_bytes: of the training state per chip.
      tensor: devices that a layer's weights stay cut over while they are used.
    """
    chip = topology.chip
    peak = chip.flops * topology.num_chips
    attention = sum(v for k, v in executed.items() if k.startswith("attention"))
    matmuls = sum(executed.values()) - attention
    compute = (
        matmuls / EFFICIENCY["matmuls"]
        + attention / EFFICIENCY["attention"]
        + encoder_flops / EFFICIENCY["encoders"]
    ) / peak
    m = config.model
    branches = 2 if m.fusion == "deep" else 1
    # Gathered weights are read in the forward pass, its repetition and twice in the backward.
    passes = 3 + (m.remat != "none")
    weights = 2.0 * branches * branch_weights(m) / tensor * passes * config.train.grad_accum_steps
    memory = chip.bandwidth * EFFICIENCY["memory"]
    return Roofline(
        compute=compute,
        links=sent.get("links", 0.0) / (chip.link_bandwidth * EFFICIENCY["links"]),
        network=sent.get("network", 0.0) / (chip.network_bandwidth * EFFICIENCY["links"]),
        memory=weights / memory,
        optimizer=2 * state_bytes / memory,  # read and written
    )


def sent_by_formula(
    config: MogaoConfig, mesh_shape: Mapping[str, int], vocab_size: int
) -> dict[str, dict]:
    """Bytes that each chip sends per step, by axis, where there is no program to read it from.

    fsdp (with data, where `mesh.param_axes` cuts over both): weights gathered in bfloat16 for the
    forward and for the backward pass, gradients scattered in the parameters' dtype, every
    micro-step. data: gradients' parts summed once per micro-step. tensor: two sums of activations
    per layer and direction. context: keys and values gathered per layer, and their gradients back;
    and gradients' parts summed, since every device has seen some of the tokens only.

    Args:
      mesh_shape: devices per axis.
      vocab_size: rows of the embedding.
    Returns:
      {axis: {"sent": bytes, "what": words}} for axes of more than one device; axes that are used
      together are joined by "+".
    """
    m, p, a = config.model, config.packing, config.train.grad_accum_steps
    data, fsdp, tensor, context = (mesh_shape[x] for x in ("data", "fsdp", "tensor", "context"))
    branches = 2 if m.fusion == "deep" else 1
    adaln = 6 * m.num_layers * m.embed_dim**2
    weights = (branches * branch_weights(m) + adaln + vocab_size * m.embed_dim) / tensor
    frozen = branch_weights(m) + vocab_size * m.embed_dim
    trained = weights - (frozen / tensor if config.optimizer.frozen == "llm" else 0)
    width = 2 if m.dtype == "bfloat16" else 4
    gradient = 4 if m.param_dtype == "float32" else 2
    row = p.und_tokens + p.clean_tokens + p.noised_tokens
    tokens = row * config.train.global_batch_rows / (data * fsdp * context)
    found: dict[str, dict] = {}

    def add(axis: str, size: int, sent: float, what: str) -> None:
        if size > 1:  # weights alone over context come before what context sends otherwise
            before = found.get(axis, {"sent": 0.0, "what": ""})
            said = f"{before['what']}; {what}" if before["what"] else what
            found[axis] = {"sent": before["sent"] + sent, "what": said}

    def summed(size: int) -> float:  # gradients, each chip's part of them
        return 2 * (size - 1) / size * gradient * trained / fsdp

    cut = config.mesh.param_axes
    over = "+".join(x for x in MESH_AXES if x in cut and mesh_shape[x] > 1)
    fsdp = math.prod(mesh_shape[x] for x in cut)
    # Whole gradients are summed over what does not cut them.
    data, summing = (1 if x in cut else mesh_shape[x] for x in ("data", "context"))
    share = (fsdp - 1) / fsdp
    add(over, fsdp, a * share * (weights * 2 * width + trained * gradient),
        "weights gathered twice, gradients scattered")  # fmt: skip
    add("data", data, a * summed(data), "gradients summed")
    hidden = tokens * m.embed_dim * width
    add("tensor", tensor, a * 2 * (tensor - 1) / tensor * hidden * 4 * m.num_layers,
        "activations summed after attention and FFN")  # fmt: skip
    kv = tokens * context * 2 * m.num_kv_heads * m.head_dim / tensor
    moved = (context - 1) / context * kv * m.num_layers * (2 * width + 4)
    add("context", context, a * (moved + summed(summing)),
        "keys and values gathered, gradients of these and of weights summed")  # fmt: skip
    return found


def by_link(
    sent_per_axes: Mapping[tuple[str, ...], float],
    topology: Topology,
    mesh_shape: Mapping[str, int],
) -> dict[str, float]:
    """Bytes sent inside a slice or node, and between them.

    Devices follow one another in the order of the mesh's axes, the last of them fastest, so that
    the groups of an axis span as many chips as it and those after it have devices. What spans
    more than a slice or node, or does not divide it, goes over the network, all of it: between TPU
    slices only a sum over what each slice has summed already crosses, and a chip's share of it is
    what it sends.

    Args:
      sent_per_axes: bytes per chip by the axes of a collective; "?" where they are not known.
      mesh_shape: devices per axis.
    """
    several, each = topology.num_slices > 1, topology.num_chips // topology.num_slices
    crossing = {"?"} if several else set()
    span = 1
    for axis in reversed(MESH_AXES):
        span *= mesh_shape[axis]
        if several and mesh_shape[axis] > 1 and each % span:
            crossing.add(axis)
    network = sum((x for axes, x in sent_per_axes.items() if crossing & set(axes)), 0.0)
    return {"links": sum(sent_per_axes.values(), 0.0) - network, "network": network}
