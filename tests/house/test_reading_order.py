"""The reading list of README keeps its promise: each file leans only on those before it. So do the pages beside it."""

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

import minipage

PACKAGE = Path(minipage.__file__).parent
ROOT = PACKAGE.parent
HEART = "errors.py", "memory", "scheduling", "simd", "attention", "model", "sampling", "worker", "engine"


def files_in(text):
    return [name for name in re.findall(r"`([a-z_0-9/]+\.py)`", text) if (PACKAGE / name).is_file()]


def section(path, start, end):
    text = (ROOT / path).read_text(encoding="utf-8")
    return text[text.index(start) : text.index(end)]


README = section("README.md", "## How to read this code", "## Learn it")
LIST = files_in(README)


def imports_of(name):
    """The files of minipage that this one needs when it is loaded: `if TYPE_CHECKING` and functions do not count."""
    tree = ast.parse((PACKAGE / name).read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("minipage"):
            base = ROOT.joinpath(*node.module.split("."))
            if base.with_suffix(".py").is_file():
                yield base.with_suffix(".py").relative_to(PACKAGE).as_posix()
            else:  # names of a package: where are they from?
                tree_of_package = ast.parse((base / "__init__.py").read_text(encoding="utf-8"))
                wanted = {alias.name for alias in node.names}
                for inner in tree_of_package.body:
                    if isinstance(inner, ast.ImportFrom) and wanted & {alias.name for alias in inner.names}:
                        yield ROOT.joinpath(*inner.module.split(".")).with_suffix(".py").relative_to(PACKAGE).as_posix()
                yield from (
                    (base / f"{name}.py").relative_to(PACKAGE).as_posix()
                    for name in wanted
                    if (base / f"{name}.py").is_file()
                )


def test_all_files_of_the_list_are_there_once():
    assert len(LIST) > 30 and len(set(LIST)) == len(LIST)
    assert not [name for name in re.findall(r"`([a-z_0-9/]+\.py)`", README) if name not in LIST]


@pytest.mark.parametrize("name", LIST)
def test_each_file_leans_only_on_those_before_it(name):
    before = LIST[: LIST.index(name)]
    assert [needed for needed in imports_of(name) if needed not in before] == []


def test_what_to_look_for_is_told_in_the_order_of_the_list():
    told = files_in(section("docs/reading.md", "## 1. Memory", "## And then?"))
    assert sorted(told, key=LIST.index) == told and len(told) > 25


def test_the_stations_of_a_token_are_where_the_page_says():
    life = section("docs/reading.md", "## The life of one token", "## 1. Memory")
    stations = re.findall(r"^\d+\. `([^`]+\.py)`, `(\w+)`", life, re.MULTILINE)
    assert len(stations) == 10
    for name, function in stations:
        assert name in LIST
        tree = ast.parse((PACKAGE / name).read_text(encoding="utf-8"))
        assert function in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, (name, function)


def remarks(text):
    """The comments and docstrings of a file."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    yield from (token.string for token in tokens if token.type == tokenize.COMMENT)


def test_the_files_that_comments_and_docstrings_of_the_heart_name_are_there():
    folders = PACKAGE, ROOT / "lessons", ROOT / "tests", ROOT / "benchmarks"
    there = [f"/{path.relative_to(ROOT).as_posix()}" for folder in folders for path in folder.rglob("*.py")]
    for path in (path for room in HEART for path in (PACKAGE / room).rglob("*.py")):
        for name in re.findall(r"[\w/]+\.py\b", " ".join(remarks(path.read_text(encoding="utf-8")))):
            is_ours = not name.startswith("vllm/")
            assert not is_ours or any(other.endswith(f"/{name}") for other in there), f"{path} names {name}"
