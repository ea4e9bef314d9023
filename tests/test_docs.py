"""Docs hold together: links resolve, nothing is orphaned, and what they name exists."""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib
import pathlib
import re

import pytest

import mogao_jax
from mogao_jax.cli.main import COMMANDS
from mogao_jax.config.renamed import RENAMED
from mogao_jax.config.schema import MogaoConfig

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("mogao_jax/**/*.md")])
SECTIONS = {f.name for f in dataclasses.fields(MogaoConfig)}
# Files that commands and recipes are said to read or write: they come with a run, not with the
# repository.
OUTPUTS = ("runs/", "data/", "scores/", "weights/", "samples/", "emoji/", "meta/", "state/")


def _name(path: pathlib.Path) -> str:
    return str(path.relative_to(ROOT))


@functools.cache
def _prose(page: pathlib.Path) -> str:
    """The page without its fenced and indented code."""
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.M | re.S)
    return re.sub(r"^    .*$", "", text, flags=re.M)


@functools.cache
def _code(page: pathlib.Path) -> tuple[str, ...]:
    """Pieces of code of a page: fenced lines (continued ones joined), indented ones, inline."""
    text = page.read_text("utf-8")
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, flags=re.M | re.S)
    lines = [line for block in blocks for line in re.sub(r"\\\n\s*", "", block).splitlines()]
    lines += re.findall(r"^    (mogao .*|bash .*)$", text, flags=re.M)
    return (*lines, *(re.sub(r"\s+", " ", x) for x in re.findall(r"`([^`]+)`", _prose(page))))


def _links(page: pathlib.Path) -> list[str]:
    found = re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", _prose(page))
    return [link for link in found if not re.match(r"[a-z]+:", link)]


def _anchors(page: pathlib.Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", _prose(page), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_links_resolve(page):
    for link in _links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{_name(page)} links to {link}, which does not exist"
        assert not anchor or anchor in _anchors(target), f"{_name(page)}: no heading {link}"


def test_every_page_and_image_is_linked():
    linked = {(page.parent / link.partition("#")[0]).resolve() for page in PAGES
              for link in _links(page)}  # fmt: skip
    files = {p for p in (ROOT / "docs").rglob("*") if p.is_file()} - {ROOT / "docs" / "index.md"}
    assert not {_name(p) for p in files - linked}
    index = {(ROOT / "docs" / x).resolve() for x in _links(ROOT / "docs" / "index.md")}
    pages = {p for p in PAGES if p.name != "index.md"}
    assert pages <= index, "docs/index.md links every page"
    assert ROOT / "docs" / "index.md" in linked


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_lines_are_wrapped(page):
    """Prose and code at 100 columns; rows of tables cannot be wrapped."""
    lines = page.read_text("utf-8").splitlines()
    long = [i for i, x in enumerate(lines, 1) if len(x) > 100 and not x.lstrip().startswith("|")]
    assert not long, f"{_name(page)}: lines {long} are over 100 columns"


@functools.cache
def _sources() -> str:
    """The text of the package and of the scripts, for looking up flags."""
    files = [*(ROOT / "mogao_jax").rglob("*.py"), *(ROOT / "launch").glob("*")]
    return "\n".join(f.read_text("utf-8") for f in files if f.is_file())


@functools.cache
def _files() -> tuple[str, ...]:
    folders = ("mogao_jax", "configs", "launch", "tests", "docs")
    return tuple(f"/{_name(p)}" for folder in folders for p in (ROOT / folder).rglob("*.*"))


def _commands(page: pathlib.Path) -> list[str]:
    found = []
    for code in _code(page):
        found += re.findall(r"(?:^|[;&|] )((?:mogao|bash|python) [^#]*)", code.strip())
    return found


def _field_exists(path: str) -> bool:
    """Whether 'section.field' is of the config; entries of data.sources have names of their own."""
    value = MogaoConfig()
    for name in path.split("."):
        if isinstance(value, dict):
            return True
        if not hasattr(value, name):
            return False
        value = getattr(value, name)
    return True


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_commands_exist(page):
    for command in _commands(page):
        words = command.split()
        if words[0] == "mogao" and len(words) > 1 and words[1][0].islower():
            assert words[1] in COMMANDS, f"{_name(page)}: {command}"
        for path in re.findall(r"(?:^|\s)((?:configs|launch|tests)/[\w./]+)", command):
            assert (ROOT / path).exists(), f"{_name(page)}: {command}: no {path}"
        for field in re.findall(r"--config\.([\w.]+)", command):
            assert _field_exists(field), f"{_name(page)}: {command}: no field {field}"
        for flag in re.findall(r" (--[a-z][\w-]*)", command):
            known = flag == "--config" or flag in _sources()
            assert known or words[0] == "bash", f"{_name(page)}: {command}: no {flag}"


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_named_fields_and_files_exist(page):
    for code in _code(page):
        field = re.match(r"([a-z_]+)\.(?!py$|json$)([a-z_.]+)( = .*)?$", code)
        if field and field[1] in SECTIONS and not code.startswith(tuple(RENAMED)):
            assert _field_exists(f"{field[1]}.{field[2]}"), f"{_name(page)}: no field {code}"
        file = re.match(r"([\w./-]+\.(?:py|sh|md))(?::\w+)?$", code)
        if file and not file[1].startswith(OUTPUTS):
            assert any(path.endswith("/" + file[1]) for path in _files()), (
                f"{_name(page)}: no {code}"
            )


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_python_examples_import_what_exists(page):
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text("utf-8"), re.M | re.S):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names), block
            elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "mogao_jax":
                assert hasattr(mogao_jax, node.attr), block


def _import_problem(line: str) -> str | None:
    """What is wrong with `from mogao_jax.x import y, z`."""
    module, names = re.fullmatch(r"from (mogao_jax[\w.]*) import ([\w, ]+)", line).groups()
    try:
        found = importlib.import_module(module)
    except ImportError as e:
        return f"{line}: {e}"
    missing = [name for name in names.split(", ") if not hasattr(found, name)]
    return f"{line}: no {', '.join(missing)}" if missing else None


@pytest.mark.parametrize("script", sorted([*ROOT.glob("launch/*.sh"), ROOT / ".ci/run"]), ids=_name)
def test_scripts_import_and_name_what_exists(script):
    """Linters do not read the Python inside of a shell script."""
    text = script.read_text("utf-8")
    imports = re.findall(r"^from mogao_jax.*$", text, flags=re.M)
    assert not [problem for line in imports if (problem := _import_problem(line))]
    files = r"(?<![\w./$-])((?:mogao_jax|configs|launch|tests)/[\w./-]+\.\w+)"
    assert not [file for file in re.findall(files, text) if not (ROOT / file).exists()]


def test_the_check_of_imports():
    assert _import_problem("from mogao_jax.errors import MogaoError, ConfigError") is None
    assert "no Mistake" in _import_problem("from mogao_jax.errors import Mistake")
    assert "attic" in _import_problem("from mogao_jax.attic import x")
