"""How long a step takes at best: arithmetic, memory and links, each by its own speed.

A model of the machine, not a measurement. Arithmetic and communication are assumed to overlap, as
XLA's latency-hiding scheduler makes them. A step takes the longest of them, then the optimizer's
pass over the state, which overlaps with nothing.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping

import jax.numpy as jnp

from mogao_jax.config.schema import ModelConfig, MogaoConfig
from mogao_jax.sharding.rules import MESH_AXES
from mogao_jax.tools.flops import branch_weights
from mogao_jax.tools.plan.topology import Topology

# Shares of a chip's published peaks that are reached: assumptions, printed with every estimate.
# Matmuls as MaxText reports of dense models (docs/performance.md); attention's
# tiles and the encoders' convolutions are less regular.
EFFICIENCY = {"matmuls": 0.75, "attention": 0.45, "encoders": 0.45, "links": 0.8, "memory": 0.8}


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds per step on each chip, by resource.

    Attributes:
      compute, links, network, memory: each alone.
      optimizer: the pass over the state, which overlaps with no other.
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
        """The resource that limits the step."""
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
      executed: FLOPs of the model per step, all chips (`profile.executed.executed_flops`).
      encoder_flops: executed by the encoders per step, all chips.
      sent: bytes that each chip sends per step, "links" and "network".
      state_bytes: of the training state per chip.
      tensor: devices that a layer's weights stay sharded over while in use.
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
    # Gathered weights are read in the forward pass, its recomputation and twice in the backward.
    passes = 3 + (m.remat != "none")
    weights = 2.0 * transformer_weights(m) / tensor * passes * config.train.grad_accum_steps
    memory = chip.bandwidth * EFFICIENCY["memory"]
    return Roofline(
        compute=compute,
        links=sent.get("links", 0.0) / (chip.link_bandwidth * EFFICIENCY["links"]),
        network=sent.get("network", 0.0) / (chip.network_bandwidth * EFFICIENCY["links"]),
        memory=weights / memory,
        optimizer=2 * state_bytes / memory,  # read and written
    )


def transformer_weights(model: ModelConfig) -> int:
    """Weights of the matmuls of all branches and layers."""
    return (2 if model.fusion == "deep" else 1) * branch_weights(model)


def sent_by_formula(
    config: MogaoConfig, mesh_shape: Mapping[str, int], vocab_size: int
) -> dict[str, dict]:
    """Bytes that each chip sends per step, by axis, where there is no program to read it from.

    Every micro-step, over:
      fsdp (with data or context, where `mesh.param_axes` names both): weights all-gathered in
        the model's dtype for the forward and for the backward pass, gradients reduce-scattered.
      data: gradients' shards all-reduced.
      tensor: two all-reduces of activations per layer and direction.
      context: keys and values all-gathered per layer, their gradients reduce-scattered; and
        gradients' shards all-reduced, since every device has seen only some of the tokens.

    Args:
      mesh_shape: devices per axis.
      vocab_size: rows of the embedding.
    Returns:
      {axis: {"sent": bytes, "what": words}} for axes of more than one device; axes that are used
      together are joined by "+".
    """
    m, p = config.model, config.packing
    data, fsdp, tensor, context = (mesh_shape[x] for x in ("data", "fsdp", "tensor", "context"))
    adaln = 6 * m.num_layers * m.embed_dim**2
    weights = transformer_weights(m) + adaln + vocab_size * m.embed_dim
    llm = branch_weights(m) + vocab_size * m.embed_dim
    trained = weights - (llm if config.optimizer.frozen == "llm" else 0)
    width = jnp.dtype(m.dtype).itemsize
    gradient = trained / tensor * jnp.dtype(m.param_dtype).itemsize
    row = p.und_tokens + p.clean_tokens + p.noised_tokens
    tokens = (
        row * config.train.global_batch_rows / (data * fsdp)
    )  # of a micro-step, by context's chips
    hidden = tokens / context * m.embed_dim * width
    kv = tokens * 2 * m.num_kv_heads * m.head_dim / tensor

    sharded = [x for x in MESH_AXES if x in config.mesh.param_axes and mesh_shape[x] > 1]
    ways = math.prod(mesh_shape[x] for x in sharded)

    def part(size: int) -> float:  # what each of so many chips gets from the others
        return (size - 1) / size

    def all_reduced(axis: str) -> float:  # gradients' shards, unless they are sharded over it
        return 0.0 if axis in sharded else 2 * part(mesh_shape[axis]) * gradient / ways

    transfers = (  # nothing is sent along axes of one device
        ("+".join(sharded), part(ways) * (weights / tensor * 2 * width + gradient),
         "weights gathered twice, gradients scattered"),
        ("data", all_reduced("data"), "gradients summed"),
        ("tensor", 2 * part(tensor) * hidden * 4 * m.num_layers,
         "activations summed after attention and FFN"),
        ("context", part(context) * kv * m.num_layers * (2 * width + 4) + all_reduced("context"),
         "keys and values gathered, gradients of these and of weights summed"),
    )  # fmt: skip
    found: dict[str, dict] = {}
    for axes, sent, what in transfers:
        if sent:
            so_far = found.setdefault(axes, {"sent": 0.0, "what": []})
            so_far["sent"] += config.train.grad_accum_steps * sent
            so_far["what"].append(what)
    return {axes: row | {"what": "; ".join(row["what"])} for axes, row in found.items()}


def by_link(
    sent: Iterable[tuple[tuple[str, ...], float]],
    topology: Topology,
    mesh_shape: Mapping[str, int],
) -> dict[str, float]:
    """Bytes sent inside a slice or node, and between them.

    Devices are numbered in the order of the mesh's axes, the last of them fastest. So the groups of
    an axis span as many chips as it and those after it have devices. What spans more than a slice
    or node, or does not divide it, is counted for the network, all of it. (Between TPU slices only
    sums cross, of what each slice has summed already; a chip sends its share of them.)

    Args:
      sent: (axes of a collective, bytes that each chip sends); "?" where they are not known.
      mesh_shape: devices per axis.
    """
    several, each = topology.num_slices > 1, topology.num_chips // topology.num_slices
    crossing = {"?"} if several else set()
    span = 1
    for axis in reversed(MESH_AXES):
        span *= mesh_shape[axis]
        if several and mesh_shape[axis] > 1 and each % span:
            crossing.add(axis)
    links = network = 0.0
    for axes, size in sent:
        if crossing & set(axes):
            network += size
        else:
            links += size
    return {"links": links, "network": network}
