#!/usr/bin/env python
"""Measures the structure of the package: size, imports, complexity, and the files on two ways.

    python launch/structure.py                # every figure (about 2 minutes on 2 CPU cores)
    python launch/structure.py --no-trace     # all but the two ways (seconds)
    python launch/structure.py --list         # and the names behind the figures

The two ways, from a JSONL line to a loss and from a prompt to an image, are counted by tracing:
a file is on a way if one of its functions runs there, on any thread. Code at module level does
not count. Setting up (config, mesh, parameters, loading a checkpoint) is not on a way.

- loss: the data iterator gives one batch, the batch is put on the mesh, and the training step is
  traced; the way ends with the last function of losses.py.
- image: `generate` of the loaded demo checkpoint draws one image in two steps.
"""

from __future__ import annotations

import argparse
import ast
import collections
import functools
import inspect
import itertools
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "mogao_jax"
KERNELS = "ops/attention/pallas_"  # a kernel's parameters are its operands
MAX_COMPLEXITY = 10

Function = ast.FunctionDef | ast.AsyncFunctionDef
_BRANCHES = (ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler)


# ------------------------------------------------------------------------------------- reading


@functools.cache
def parse(path: pathlib.Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"), filename=str(path))


def modules(package: pathlib.Path = PACKAGE) -> dict[str, pathlib.Path]:
    """Every module of the package by its dotted name."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def neighbourhood(module: str) -> str:
    """core, world or tools."""
    room = module.split(".")[1] if "." in module else ""
    return {"worlds": "world", "tools": "tools"}.get(room, "core")


def imported_names(tree: ast.AST, module: str, is_package: bool) -> list[tuple[int, str]]:
    """(line, dotted name) of all that a module imports; a lazy import in a function counts."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module.split(".")
                package = package[: len(package) - node.level + is_package]
                base = ".".join([*package, base] if base else package)
            found += [(node.lineno, f"{base}.{alias.name}") for alias in node.names]
    return found


def graph() -> dict[str, set[str]]:
    """module -> modules of the package that it imports.

    The package's root is left out: it composes, and everything below it is in it.
    """
    known = modules()
    edges: dict[str, set[str]] = {}
    for module, path in known.items():
        names = imported_names(parse(path), module, path.name == "__init__.py")
        # `from package import module` names the module, `from module import name` does not.
        found = {name if name in known else name.rpartition(".")[0] for _, name in names}
        edges[module] = found & known.keys() - {module, "mogao_jax"}
    del edges["mogao_jax"]
    return edges


def wrong_imports(edges: dict[str, set[str]]) -> list[tuple[str, str]]:
    """(importer, imported): from the core to the world or the tools.

    The command line stands above all three neighbourhoods and may import any of them.
    """
    above = ("mogao_jax.cli", "mogao_jax.__main__")
    return [
        (importer, imported)
        for importer, found in sorted(edges.items())
        for imported in sorted(found)
        if neighbourhood(importer) == "core" != neighbourhood(imported)
        and not importer.startswith(above)
    ]


def cycles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import each other (strongly connected components; Tarjan)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for other in edges.get(module, ()):
            if other not in index:
                visit(other)
                low[module] = min(low[module], low[other])
            elif other in stack:
                low[module] = min(low[module], index[other])
        if low[module] == index[module]:
            start = stack.index(module)
            if len(stack) - start > 1:
                found.append(sorted(stack[start:]))
            del stack[start:]

    for module in edges:
        if module not in index:
            visit(module)
    return found


def functions(path: pathlib.Path) -> Iterator[Function]:
    for node in ast.walk(parse(path)):
        if isinstance(node, Function):
            yield node


def num_parameters(function: Function) -> int:
    """Parameters of a function, without self and cls."""
    a = function.args
    names = [x.arg for x in itertools.chain(a.posonlyargs, a.args, a.kwonlyargs)]
    names += [x.arg for x in (a.vararg, a.kwarg) if x]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def complexity(function: Function) -> int:
    """Cyclomatic complexity as lizard counts it: one, and one more for each branch.

    Branches are if, for, while, except, finally, `and`, `or`, conditional expressions, and the
    loops and conditions of comprehensions. Functions inside the function count for themselves.
    """
    total, waiting = 1, list(ast.iter_child_nodes(function))
    while waiting:
        node = waiting.pop()
        if isinstance(node, Function):
            continue
        if isinstance(node, _BRANCHES):
            total += 1
        elif isinstance(node, ast.BoolOp):
            total += len(node.values) - 1
        elif isinstance(node, ast.comprehension):
            total += 1 + len(node.ifs)
        elif isinstance(node, ast.Try):
            total += bool(node.finalbody)
        elif isinstance(node, ast.Match):
            total += len(node.cases)
        waiting += ast.iter_child_nodes(node)
    return total


def cursor_files() -> list[str]:
    """Files that say which order or position comes next: they add to one, or subtract from it."""
    found = []
    for room in ("sequence", "sampling", "models", "training", "data"):
        for path in sorted((PACKAGE / room).rglob("*.py")):
            if any(map(_advances, ast.walk(parse(path)))):
                found.append(str(path.relative_to(PACKAGE)))
    return found


_ORDER = re.compile(r"(next_|first_|last_)?(orders?|times?|positions?|t_ids?)|next_t")


def _advances(node: ast.AST) -> bool:
    operands: list[ast.expr] = []
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub):
        operands = [node.left, node.right]
    elif isinstance(node, ast.AugAssign):
        operands = [node.target]
    names = [getattr(x, "attr", getattr(x, "id", "")) for x in operands]
    return any(_ORDER.fullmatch(name) for name in names)


# ------------------------------------------------------------------------------------- tracing


class Trace:
    """Files of the package whose functions run inside the `with` block, on any thread."""

    def __init__(self) -> None:
        self.calls: list[str] = []  # files in the order of their calls, neighbours made one
        self._prefix = str(PACKAGE) + "/"

    def __enter__(self) -> Trace:
        threading.setprofile(self._record)
        sys.setprofile(self._record)
        return self

    def __exit__(self, *error: object) -> None:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]

    def _record(self, frame: Any, event: str, argument: Any) -> None:
        code = frame.f_code
        # Bodies of modules and classes are not optimised code; functions' are.
        if event == "call" and code.co_flags & inspect.CO_OPTIMIZED:
            name = code.co_filename
            if name.startswith(self._prefix):
                file = name.removeprefix(self._prefix)
                if not self.calls or self.calls[-1] != file:
                    self.calls.append(file)


_TINY = """
import sys
sys.path.insert(0, {configs!r})
from quickstart import get_config as quickstart
from mogao_jax.config.convert import source

def get_config():
    c = quickstart()
    c.tokenizer.kind = "byte"
    c.data.sources = {{"mine": source(kind="documents", path={data!r})}}
    c.model.num_layers = 1
    c.train.global_batch_rows = 1
    c.mesh.cpu_devices = 1
    return c
"""


def _tiny_config(folder: pathlib.Path) -> Any:
    """A tiny model on a JSONL file of one line: text, an image to draw, text."""
    from PIL import Image

    from mogao_jax.config.files import parse_config_args

    Image.new("RGB", (64, 48), "red").save(folder / "image.png")
    items = [
        {"type": "text", "text": "Draw.", "role": "user", "loss": False},
        {"type": "image", "path": "image.png", "role": "assistant", "loss": True},
        {"type": "text", "text": "Here it is.", "role": "assistant", "loss": True},
    ]
    data = folder / "data.jsonl"
    data.write_text((json.dumps({"id": "a", "items": items}) + "\n") * 2)
    recipe = folder / "tiny.py"
    recipe.write_text(_TINY.format(configs=str(ROOT / "configs"), data=str(data)))
    config, _ = parse_config_args([f"--config={recipe}"])
    return config


def trace_loss() -> Trace:
    """From a JSONL line to a loss."""
    import jax
    import jax.numpy as jnp

    from mogao_jax.assembly import assemble, training_mesh
    from mogao_jax.data.pipeline import make_train_iterator
    from mogao_jax.sharding.mesh import global_batch
    from mogao_jax.tokenizer import load_tokenizer

    trace = Trace()
    with tempfile.TemporaryDirectory() as folder:
        config = _tiny_config(pathlib.Path(folder))
        tokenizer = load_tokenizer(config.tokenizer)
        mesh = training_mesh(config)
        run = assemble(config, tokenizer.vocab_size, mesh, load_weights=False)
        data = make_train_iterator(config, tokenizer=tokenizer)
        with run.on_mesh(), trace:
            batch = global_batch(mesh, next(data), batch_axis=1)
            jax.eval_shape(run.train_step, run.state, run.encoders, batch, jnp.float32(0))
        data.close()
    last = max(i for i, file in enumerate(trace.calls) if file == "losses.py")
    trace.calls = trace.calls[: last + 1]
    return trace


def trace_image() -> Trace:
    """From a prompt to an image."""
    import mogao_jax

    trace = Trace()
    model = mogao_jax.load("demo")
    with trace:
        options = {"max_images": 1, "draw_first": True, "num_steps": 2}
        images = [item for item in model.generate("a red circle", **options) if item != ""]
    if not images:
        raise SystemExit("the demo checkpoint drew no image")
    return trace


WAYS = {"a JSONL line to a loss": trace_loss, "a prompt to an image": trace_image}


def files_on(way: str) -> list[str]:
    """The files on a way, traced in a process of its own (a program that is compiled already
    is not traced again)."""
    command = [sys.executable, __file__, "--trace", way]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(f"tracing {way!r} failed:\n{result.stderr[-3000:]}")
    return json.loads(result.stdout.splitlines()[-1])


# ------------------------------------------------------------------------------------- printing


def _percentile(values: list[int], share: float) -> int:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def _largest(counts: dict[str, int], above: int) -> list[str]:
    return [f"{n:6,} {name}" for name, n in collections.Counter(counts).most_common() if n > above]


def report(listed: bool, traced: bool) -> None:
    """Prints every figure; `listed`: and the names behind it."""

    def say(figure: str, value: Any, names: Sequence[str] = (), always: bool = False) -> None:
        print(f"{figure:48} {value}")
        for name in names if listed or always else ():
            print(f"    {name}")

    known = modules()
    lines = {name: len(path.read_text("utf-8").splitlines()) for name, path in known.items()}
    sums, rooms = collections.Counter[str](), collections.Counter[str]()
    for name, count in lines.items():
        sums[neighbourhood(name)] += count
        depth = 2 if neighbourhood(name) == "core" else 3
        rooms[".".join(name.split(".")[:depth])] += count
    parts = " / ".join(f"{sums[n]:,}" for n in ("core", "world", "tools"))
    say("lines: core / world / tools", parts, _largest(rooms, 0))
    say("lines: all three", f"{sums.total():,}")

    edges = graph()
    wrong = [f"{a} -> {b}" for a, b in wrong_imports(edges)]
    say("imports from core to world or tools", len(wrong), wrong, always=True)
    loops = [" <-> ".join(loop) for loop in cycles(edges)]
    say("import cycles", len(loops), loops, always=True)

    places = cursor_files()
    say("files that define a token's order or position", len(places), places)

    found = {
        f"{path.relative_to(PACKAGE)}:{f.lineno} {f.name}": f
        for path in known.values()
        for f in functions(path)
    }
    branches = _largest({name: complexity(f) for name, f in found.items()}, MAX_COMPLEXITY)
    share = f"{len(branches)} of {len(found):,} ({len(branches) / len(found):.1%})"
    say(f"functions of a complexity over {MAX_COMPLEXITY}", share, branches)
    outside = {n: num_parameters(f) for n, f in found.items() if not n.startswith(KERNELS)}
    values = list(outside.values())
    middle, high = _percentile(values, 0.5), _percentile(values, 0.9)
    figures = f"{middle} / {high} / {max(values)}"
    say("parameters outside kernels: p50 / p90 / max", figures, _largest(outside, 7))

    say("lines of cli/train.py", lines["mogao_jax.cli.train"])
    say("longest file", max(lines.values()), _largest(lines, 300))
    for way in WAYS if traced else ():
        files = files_on(way)
        say(f"files from {way}", len(files), files)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--list", action="store_true", help="print the names behind each figure")
    parser.add_argument("--no-trace", action="store_true", help="leave out the two traced ways")
    parser.add_argument("--trace", choices=tuple(WAYS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.trace:
        sys.path.insert(0, str(ROOT))
        print(json.dumps(sorted(set(WAYS[arguments.trace]().calls))))
    else:
        report(arguments.list, not arguments.no_trace)


if __name__ == "__main__":
    main()
