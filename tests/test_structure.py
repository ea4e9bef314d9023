"""What the structure of the package must keep; `python launch/structure.py` prints the figures."""

from __future__ import annotations

import ast
import functools
import pathlib
import re

import pytest

from launch import structure

ROOT = structure.ROOT
MODULES = structure.modules()
TESTS = sorted((ROOT / "tests").rglob("*.py"))
MAX_LINES = 400
MAX_PARAMETERS = 9
MAX_COMPLEX_SHARE = 0.025
MAX_LINES_OF_TRAIN = 120
# Longer files, and why.
LONG = {"mogao_jax.config.schema"}  # every setting, in one place
# Public in spite of their underscore: methods of named tuples.
_NAMED_TUPLE = {"_replace", "_asdict", "_fields", "_make", "_field_defaults"}


@functools.cache
def _tree(path: pathlib.Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"), filename=str(path))


@functools.cache
def _functions() -> dict[str, structure.Function]:
    return {
        f"{path.relative_to(structure.PACKAGE)}:{f.lineno} {f.name}": f
        for path in MODULES.values()
        for f in structure.functions(path)
    }


def test_core_imports_neither_world_nor_tools():
    wrong = {f"{a} -> {b}" for a, b in structure.wrong_imports(structure.graph())}
    assert not wrong


def test_no_module_imports_itself_by_way_of_others():
    assert not {" <-> ".join(loop) for loop in structure.cycles(structure.graph())}


def test_one_file_says_which_order_and_position_comes_next():
    assert structure.cursor_files() == ["sequence/cursor.py"]


def test_the_search_for_cycles():
    edges = {"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}
    assert structure.cycles(edges) == [["b", "c"]]
    assert not structure.cycles({"a": {"b", "c"}, "b": {"c"}, "c": set()})


def test_files_are_short():
    lines = {name: len(path.read_text("utf-8").splitlines()) for name, path in MODULES.items()}
    assert not {name for name, n in lines.items() if n > MAX_LINES} - LONG
    assert lines["mogao_jax.cli.train"] <= MAX_LINES_OF_TRAIN


def test_functions_take_few_parameters():
    many = {
        re.sub(r":\d+", "", name)
        for name, f in _functions().items()
        if structure.num_parameters(f) > MAX_PARAMETERS and not name.startswith(structure.KERNELS)
    }
    assert not many


def test_few_functions_branch_much():
    complexities = {name: structure.complexity(f) for name, f in _functions().items()}
    over = {name: n for name, n in complexities.items() if n > structure.MAX_COMPLEXITY}
    assert len(over) <= MAX_COMPLEX_SHARE * len(complexities), over


def test_the_measure_of_complexity():
    source = """
def f(x, *, y=1, **rest):
    for a in x:
        if a and y or rest:
            return [b for b in a if b]
    try:
        return 1 if y else 2
    except KeyError:
        def inner():
            if x: pass
"""
    (outer, inner) = [f for f in ast.walk(ast.parse(source)) if isinstance(f, structure.Function)]
    assert (
        structure.complexity(outer) == 1 + 1 + 3 + 2 + 1 + 1
    )  # for, if and or, [for if], ?:, except
    assert structure.complexity(inner) == 2
    assert structure.num_parameters(outer) == 3


def _private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in _NAMED_TUPLE


def private_names(tree: ast.AST) -> list[tuple[int, str]]:
    """(line, what) of private names of other modules that a test touches.

    Imports of them, attributes of anything but self and cls, and names given as strings to
    monkeypatch.setattr and its like. Attributes that the test itself sets or defines are its own.
    """
    own = {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mogao_jax"):
            found += [(node.lineno, alias.name) for alias in node.names if _private(alias.name)]
        elif isinstance(node, ast.Attribute) and _private(node.attr) and node.attr not in own:
            if not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")):
                found.append((node.lineno, ast.unparse(node)))
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("attr"):
            names = [a.value for a in node.args[:2] if isinstance(a, ast.Constant)]
            last = [str(name).rpartition(".")[2] for name in names]
            found += [(node.lineno, n) for n in last if _private(n) and n not in own]
    return found


# transformers' own, which tests of parity need, and what notebooks call.
_OF_OTHERS = ("_from_config", "_repr_png_", "_repr_html_")


@pytest.mark.parametrize("path", TESTS, ids=lambda p: str(p.relative_to(ROOT / "tests")))
def test_tests_touch_no_private_name(path):
    file = path.relative_to(ROOT)
    found = {what for _, what in private_names(_tree(path)) if not what.endswith(_OF_OTHERS)}
    assert not {f"{file}: {what}" for what in found}


def test_the_search_for_private_names():
    source = """
from mogao_jax.models.block import _inner, Block
def test(monkeypatch):
    monkeypatch.setattr(block, "_LIMIT", 3)
    monkeypatch.setattr("mogao_jax.models.block._LIMIT", 3)
    assert block._helper(1) and batch._replace(x=1) and self._mine and mine.__class__
"""
    assert [what for _, what in private_names(ast.parse(source))] == [
        "_inner", "_LIMIT", "_LIMIT", "block._helper"]  # fmt: skip
