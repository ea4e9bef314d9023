"""From an instruction of the compiled step to the part of the model that it computes.

XLA keeps, in each instruction's metadata, the path of names under which JAX traced it
("jit(train_step)/transpose(jvp(Mogao))/layers_0/und.finish/gate/dot_general"). A fusion bears the
name of its last operation: what was fused into it counts there too.
"""

from __future__ import annotations

import re

ATTENTION = "attention"
UND = "und branch: matmuls"
GEN = "gen branch: matmuls"
ADALN = "AdaLN, timesteps, modulation"
ELEMENTWISE = "norms, residuals, elementwise"
ROPE = "rotary embedding"
CONNECTORS = "embedding, connectors, velocity head"
CROSS_ENTROPY = "language head, cross-entropy"
VAE = "VAE (frozen)"
VIT = "ViT (frozen)"
NOISE = "noise and timesteps: drawing"
OPTIMIZER = "optimizer, EMA, gradient norm"
COMMUNICATION = "communication between devices"
OTHER = "other (losses, gathers, copies without a name)"

GROUPS = (
    UND, GEN, ATTENTION, CROSS_ENTROPY, ADALN, ELEMENTWISE, ROPE, CONNECTORS, VAE, VIT, NOISE,
    OPTIMIZER, COMMUNICATION, OTHER,
)  # fmt: skip

_PROJECTIONS = {"query", "key", "value", "output", "gate", "up", "down"}
_RANDOM = re.compile(r"random|threefry|_normal|_uniform|erf_inv|fold_in")
_COLLECTIVE = re.compile(
    r"^(all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)", re.IGNORECASE
)


def group_of(op_name: str, instruction: str = "") -> str:
    """The group of an instruction by its path of names ("" where XLA kept none)."""
    if _COLLECTIVE.match(instruction):
        return COMMUNICATION
    if not op_name:
        return OTHER
    # transpose(jvp(Mogao)) -> transpose, jvp, Mogao: wrappers and names alike.
    names = [n for n in re.split(r"[/()]+", op_name) if n]
    found = set(names)
    heads = {n.split(".")[0] for n in names}
    if "VisionTower" in heads:  # before attention: the tower calls the same one
        return VIT
    if heads & {"FluxVae", "Taef1"}:
        return VAE
    if ATTENTION in found:
        return ATTENTION
    if "cross_entropy" in found:
        return CROSS_ENTROPY
    if "rope" in found:
        return ROPE
    if found & {"adaln", "final_adaln", "modulation", "timestep_embedder", "Mogao._conditioning"}:
        return ADALN
    for branch, group in (("und", UND), ("gen", GEN)):
        if branch in heads and found & _PROJECTIONS:
            return group
    if heads & {"vit_merger", "vit_linear", "latent_in", "velocity_head"}:
        return CONNECTORS
    if "Mogao._embed" in found:
        return CONNECTORS
    if "Mogao" in heads:
        return ELEMENTWISE
    if _RANDOM.search(op_name):
        return NOISE
    if "jvp" not in found and "train_step" in found:  # outside of what is differentiated
        return OPTIMIZER
    return OTHER


_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (.*)$")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) .*\{$")
_OP_NAME = re.compile(r'op_name="((?:[^"\\]|\\.)*)"')
_CALLS = re.compile(r"calls=%?([\w.\-]+)")
_OPERAND = re.compile(r"%([\w.\-]+)")


def op_names(hlo: str) -> dict[str, str]:
    """{instruction: path of names} of a compiled program's text (`compiled.as_text()`).

    An instruction without a path takes that of the root of the computation that it calls, else
    that of its first operand that has one (copies, mostly): "" where that fails too.
    """
    names: dict[str, str] = {}
    sources: dict[str, list[str]] = {}
    roots: dict[str, str] = {}
    computation = ""
    for line in hlo.splitlines():
        opening = _COMPUTATION.match(line)
        if opening:
            computation = opening[1]
            continue
        match = _INSTRUCTION.match(line)
        if not match:
            continue
        name, rest = match.groups()
        if line.lstrip().startswith("ROOT "):
            roots[computation] = name
        found = _OP_NAME.search(rest)
        # A name without a path ("reduce_sum") is that of some inner function.
        names[name] = found[1] if found and "/" in found[1] else ""
        called = _CALLS.search(rest)
        body = rest.split(", metadata=", 1)[0]
        sources[name] = ([f"root:{called[1]}"] if called else []) + _OPERAND.findall(body)

    def resolve(name: str, depth: int) -> str:
        name = roots.get(name[5:], "") if name.startswith("root:") else name
        if names.get(name) or depth == 0:
            return names.get(name, "")
        return next((r for s in sources.get(name, []) if (r := resolve(s, depth - 1))), "")

    return {name: path or resolve(name, 3) for name, path in names.items()}
