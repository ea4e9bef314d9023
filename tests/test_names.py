"""One name for one thing: names and phrases that were replaced do not come back.

docs/architecture.md has the glossary of what is truly ours, and the names that stayed.
"""

from __future__ import annotations

import ast
import functools
import pathlib
import re

import pytest

from launch.structure import PACKAGE, ROOT, modules

# Old name of a class, function or constant -> today's. Locals and methods of others may have it.
DEFINITIONS = {
    "Choice": "SamplingParams",
    "Drawn": "EncodedImage",
    "Generator": "Pipeline",
    "Joined": "chained",
    "Lines": "GuidanceBatch",
    "Mean": "WeightedMean",
    "NOWHERE": "OUT_OF_RANGE",
    "OwnModel": "MogaoCheckpoint",
    "Picture": "Image",
    "Piece": "TokenSpan",
    "Share": "Proportion",
    "Slot": "ParamSpec",
    "System": "Modules",
    "Turned": "transformed",
    "Work": "ExportJob, TokenCounts",
    "WeightedSum": "WeightedMean",
    "Writing": "DecodeState",
    "all_or_few": "batch_bucket",
    "fine": "round_up_bucket",
    "free_axes": "unmapped_axes",
    "gathered": "all_gather",
    "halved": "halve_while_fits",
    "lay_out_lines": "build_guidance_batch",
    "load_start": "load_initial_params",
    "nowhere": "pad_row",
    "power": "round_up_pow2",
    "splitting_axes": "sharded_axes",
    "unfinished": "atomic_directory",
    "ways": "axis_size",
}

# Old name of a file -> today's.
FILES = {
    "benchmarks/bare.py": "tools/bench/lower_bounds.py",
    "benchmarks/other_ways.py": "tools/bench/baselines.py",
    "benchmarks/staging.py": "tools/bench/baselines.py",
    "benchmarks/subjects.py": "tools/bench/fixtures.py",
    "benchmarks/watching.py": "tools/bench/instrumentation.py",
    "checkpoints/by_parts.py": "checkpoints/chunked_io.py",
    "checkpoints/carried.py": "checkpoints/sidecar_files.py",
    "evals/chance.py": "worlds/shapes/evals/baselines.py",
    "evals/shares.py": "evals/proportion.py",
    "models/embed.py": "models/layers.py",
    "models/masked.py": "models/masked_layers.py",
    "models/system.py": "models/modules.py",
    "planning/flags.py": "tools/plan/diagnostics.py",
    "planning/program.py": "tools/plan/plan.py",
    "porting/own.py": "porting/mogao_checkpoint.py",
    "porting/slots.py": "porting/params.py",
    "porting/unfinished.py": "atomic.py",
    "sampling/buckets.py": "sampling/programs.py",
    "sampling/generator.py": "sampling/pipeline.py",
    "sampling/image.py": "sampling/guided_flow.py",
    "sampling/interleaved.py": "sampling/sampler.py",
    "sampling/phases.py": "sampling/scheduler.py",
    "sampling/text.py": "sampling/decode.py",
    "training/starting.py": "training/init_from.py",
}

# Riddles, and what to say instead.
PHRASES = {
    "at hand": "local, available",
    "cut (over|up)": "sharded",
    "gone on with": "resumed",
    "in so many words": "explicitly",
    "jax along": "imports JAX",
    "made whole": "all-gathered",
    "of no account": "replaced, ignored",
    "what came of it": "result",
    "would be news": "what is compared with what",
}


# Where "picture" stays, and why; everywhere else the word is image.
PICTURE = {
    "CHANGELOG.md": "the old name of a command",
    "CONTRIBUTING.md": "says so",
    "README.md": "a prompt in the world's language; a file",
    "mogao_jax/cli/eval.py": "the old name of a command",
    "mogao_jax/data/encoded.py": "a stored format",
    "mogao_jax/tools/plan/command.py": "the old name of a flag",
    "mogao_jax/tools/report/data_sample.py": "the old name of a stored field",
    "mogao_jax/worlds/emoji/documents.py": "captions that are learned",
    "mogao_jax/worlds/shapes/captions.py": "the world's language",
    "mogao_jax/worlds/shapes/evals/scorers/sentences.py": "the world's language",
    "mogao_jax/worlds/shapes/facts.py": "the world's language",
    "mogao_jax/worlds/shapes/questions.py": "the world's language",
    "mogao_jax/worlds/shapes/statements.py": "the world's language",
    "mogao_jax/worlds/shapes/stories.py": "the world's language",
}


@functools.cache
def _text(path: pathlib.Path) -> str:
    return path.read_text("utf-8")


def _written() -> list[pathlib.Path]:
    """Everything that people read: the package, recipes, scripts and docs."""
    folders = ("mogao_jax", "configs", "launch", "docs")
    kinds = {".py", ".md", ".sh", ".html"}
    files = [p for folder in folders for p in (ROOT / folder).rglob("*") if p.suffix in kinds]
    return sorted([*files, *ROOT.glob("*.md")])


def defined(tree: ast.Module) -> set[str]:
    """Classes, functions and module-level names that a module defines."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found.add(node.name)
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        found |= {t.id for t in targets if isinstance(t, ast.Name)}
    return found


@pytest.mark.parametrize("path", modules().values(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_old_name_is_defined(path):
    old = defined(ast.parse(_text(path))) & set(DEFINITIONS)
    assert not {name: DEFINITIONS[name] for name in old}


def test_no_old_file():
    assert not {old: new for old, new in FILES.items() if (PACKAGE / old).exists()}
    assert all((PACKAGE / new).exists() for new in FILES.values())


def test_no_riddles():
    found = {
        f"{path.relative_to(ROOT)}: {phrase}": f"say {better}"
        for path in _written()
        for phrase, better in PHRASES.items()
        if re.search(rf"\b{phrase}\b", _text(path), re.I)
    }
    assert not {place: better for place, better in found.items()}


def test_an_image_is_called_image():
    found = {str(p.relative_to(ROOT)) for p in _written() if "picture" in _text(p).lower()}
    assert not found - PICTURE.keys()
    assert PICTURE.keys() <= found
