"""The house's one direction of imports, read from the source; and what no room may use.

    config -> tokenizer, images -> sequence -> data
    config, sequence -> ops -> models
    models, flow, losses -> training, sampling
    core -> evals -> worlds -> tools -> cli

A module may import rooms of a lower rank and its own room. Imports inside functions count too: a
lazy import is still a dependency. Only mogao_jax/__init__.py, which composes, may import anything.
"""

from __future__ import annotations

import ast
import pathlib
import subprocess
import sys

import pytest

from launch.structure import PACKAGE, ROOT, imported_names, modules, parse

MODULES = list(modules().values())

RANK = {
    # core
    "errors": 0,
    "process_memory": 0,
    "registry": 1,
    "paths": 1,
    "key_tables": 1,
    "safetensors_files": 1,
    "atomic": 2,
    "sharding": 2,
    "config": 3,
    "chat": 3,
    "tokenizer": 4,
    "images": 4,
    "sequence": 5,
    "data": 6,
    "flow": 6,
    "losses": 6,
    "ops": 6,
    "checkpoints": 7,
    "models": 7,
    "porting": 8,
    "precompute": 8,
    "training": 9,
    "sampling": 9,
    "assembly": 10,
    "own_data": 10,
    "compile_cache": 0,
    "gallery": 10,
    "console": 11,
    # what stands beside it
    "evals": 12,
    "worlds": 13,
    "tools": 14,
    "cli": 15,
}
# Lower in rank, and still not to be imported: the loop is handed its data and its evaluators.
FORBIDDEN = {
    "ops": {"data", "tokenizer", "images"},
    "models": {"data", "tokenizer"},
    "checkpoints": {"data"},
    "flow": {"data", "tokenizer", "images"},
    "losses": {"data", "tokenizer", "images"},
    "training": {"data"},
    "sampling": {"data"},
}
# Data workers start no backend.
HOST_ONLY = {"chat", "config", "tokenizer", "images", "sequence", "data"}
JAX = {"jax", "jaxlib", "flax", "optax", "orbax", "chex"}
TESTS_ONLY = {"torch", "torchvision", "transformers", "diffusers", "tensorflow", "clu"}
# What is measured beside us needs its own libraries; nothing else of the package imports these.
PEERS = "mogao_jax.tools.bench.peers"
UNSAFE_MODULES = {"pickle", "cPickle", "cloudpickle", "dill", "marshal", "shelve"}
UNSAFE_CALLS = {"eval", "exec", "compile", "__import__"}


def _room(module: str) -> str:
    """The room of a dotted module name: 'mogao_jax.sequence.masking' -> 'sequence'."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def _name(path: pathlib.Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _wrong_direction(importer: str, imported: str) -> str | None:
    """Why the room `importer` may not import the room `imported`; None if it may."""
    if importer == imported or not importer or not imported:
        return None
    for room in (importer, imported):
        if room not in RANK:
            return f"room {room!r} has no rank: give it one in RANK"
    if imported in FORBIDDEN.get(importer, ()):
        return f"{importer} must not import {imported}"
    if RANK[imported] >= RANK[importer]:
        return f"{importer} (rank {RANK[importer]}) imports {imported} (rank {RANK[imported]})"
    return None


def _all_imports(path: pathlib.Path) -> list[tuple[int, str]]:
    return imported_names(parse(path), _name(path), path.name == "__init__.py")


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_imports_go_one_way(path):
    importer = _room(_name(path))
    if importer == "__main__":
        return
    wrong = []
    for line, name in _all_imports(path):
        if name.split(".")[0] == "mogao_jax":
            room = _room(name)
            if room in RANK or (PACKAGE / room).exists():  # else a name such as __version__
                reason = _wrong_direction(importer, room)
                wrong += [f"{path.relative_to(ROOT)}:{line}: {reason}"] if reason else []
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_core_names_no_world_and_no_tool(path):
    """Not as text either, which the registry could import."""
    if RANK.get(_room(_name(path)), 0) >= RANK["worlds"]:
        return
    texts = [n.value for n in ast.walk(parse(path)) if isinstance(n, ast.Constant)]
    assert not [x for x in texts if str(x).startswith(("mogao_jax.worlds.", "mogao_jax.tools."))]


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_outside_libraries_stay_in_their_rooms(path):
    refused = UNSAFE_MODULES if _name(path) == PEERS else TESTS_ONLY | UNSAFE_MODULES
    if _room(_name(path)) in HOST_ONLY:
        refused = refused | JAX
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: imports {name}"
        for line, name in _all_imports(path)
        if name.split(".")[0] in refused
    ]
    assert not wrong, "\n".join(wrong)


def _unsafe_calls(tree: ast.AST) -> list[tuple[int, str]]:
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Name) and node.func.id in UNSAFE_CALLS:
            found.append((node.lineno, f"{node.func.id}()"))
        for keyword in node.keywords:
            true = isinstance(keyword.value, ast.Constant) and keyword.value.value is True
            if true and keyword.arg in ("allow_pickle", "shell"):
                found.append((node.lineno, f"{keyword.arg}=True"))
    return found


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_data_is_never_run(path):
    """Config files are the one kind of trusted code (mogao_jax/config/convert.py)."""
    assert not _unsafe_calls(parse(path))


def test_the_checks_themselves():
    tree = ast.parse("from .. import data\ndef f():\n    from mogao_jax.models import block\n")
    assert imported_names(tree, "mogao_jax.ops.rope", False) == [
        (1, "mogao_jax.data"),
        (3, "mogao_jax.models.block"),
    ]
    assert imported_names(ast.parse("from . import x"), "mogao_jax.ops", True) == [
        (1, "mogao_jax.ops.x")
    ]
    assert _wrong_direction("data", "sequence") is None
    assert _wrong_direction("sequence", "images") is None and _wrong_direction("images", "sequence")
    assert _wrong_direction("sharding", "models")
    assert _wrong_direction("training", "sampling") and _wrong_direction("sampling", "training")
    assert _wrong_direction("training", "data") and _wrong_direction("config", "data")
    assert "no rank" in _wrong_direction("cli", "attic")
    assert [what for _, what in _unsafe_calls(ast.parse("eval(x); f(allow_pickle=True)"))] == [
        "eval()",
        "allow_pickle=True",
    ]


def test_every_room_has_a_rank():
    rooms = {_room(_name(p)) for p in MODULES} - {"", "__main__"}
    assert rooms <= set(RANK)


_FRESH = """
import importlib, pkgutil, sys
import mogao_jax
def load(room):
    module = importlib.import_module("mogao_jax." + room)
    for found in pkgutil.walk_packages(getattr(module, "__path__", []), module.__name__ + "."):
        importlib.import_module(found.name)
for room in {light}:
    load(room)
    assert "jax" not in sys.modules, "importing " + room + " imports jax"
load("data")
if "jax" in sys.modules:  # grain's doing; what matters is that no backend has started
    from jax._src import xla_bridge
    assert not xla_bridge.backends_are_initialized(), "importing data starts a JAX backend"
"""


def test_host_rooms_start_no_jax_backend():
    light = [
        r
        for r in ("config", "tokenizer", "images", "sequence")
        if (PACKAGE / r).exists() or (PACKAGE / f"{r}.py").exists()
    ]
    result = subprocess.run(
        [sys.executable, "-c", _FRESH.format(light=light)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-2000:]
