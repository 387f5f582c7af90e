"""How the book is built, offline: `python -m sphinx -W docs docs/_build/html` (`.ci/run` does it, too).

The lessons lie in lessons/, where learners look for them. They are copied to docs/lessons/ first, and executed there.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import minipage

HERE = Path(__file__).parent

project = "minipage"
author = copyright = "The minipage authors"
release = version = minipage.__version__
language = "en"

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "sphinx_copybutton"]
exclude_patterns = ["_build", "_stories", "jupyter_execute", "**/.ipynb_checkpoints"]

html_theme = "furo"
html_title = "minipage"
html_static_path = ["_static"]
html_css_files = ["book.css"]
html_extra_path = ["_stories"]  # see make_front
html_copy_source = html_show_sourcelink = False

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
# Notebooks run in the folder that they lie in. A cell that raises fails the build, and so does a warning of Sphinx.
nb_execution_mode = "force"
nb_execution_timeout = 300  # seconds a cell may take; on an idle machine none takes ten
nb_execution_raise_on_error = nb_execution_show_tb = True
nb_merge_streams = True

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_google_docstring, napoleon_numpy_docstring = True, False

SECTIONS = ("Args:", "Returns:", "Raises:", "Yields:", "Attributes:")  # napoleon knows what is indented under these


def copy_lessons(app: Any, config: Any) -> None:
    """Put the notebooks where Sphinx looks for its pages."""
    target = HERE / "lessons"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    for lesson in sorted((HERE.parent / "lessons").glob("*/lesson.ipynb")):
        shutil.copy(lesson, target / f"{lesson.parent.name}.ipynb")


def make_front(app: Any, config: Any) -> None:
    """Run every story into a page of its own, and make the front page of the book, where one of them plays."""
    from minipage.learn.course import cards
    from minipage.trace.playing import demo, files

    folder = HERE / "_stories" / "stories"
    demo.run(demo.EVERY, files={"html": str(folder)})
    front = files.book_front(folder, "stories/", cards("lessons/{name}.html"))
    (HERE / "_front.html").write_text(front, encoding="utf-8")


def to_rst(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Docstrings here are written to be read in the source, in plain text: `code`, and pictures that are indented."""
    if lines and lines[0].startswith("Alias for field number"):
        lines.clear()  # Python's own words for a field of a named tuple
    out: list[str] = []
    in_section = in_picture = False
    for before, line in zip(["", *lines], lines):
        indented = line.startswith("    ")
        if line.strip() and not indented:
            in_section = line.strip() in SECTIONS
            in_picture = False
        if indented and not in_section and not in_picture and not before.strip():
            out += ["::", ""]
            in_picture = True
        if not in_picture:
            line = re.sub(r"(?<!`)`([^`]+)`(?!`)", r"``\1``", line)
            # What is no code may hold stars, underscores and bars that mean themselves.
            parts = re.split(r"(``[^`]+``)", line)
            line = "".join(part if part.startswith("``") else re.sub(r"([*|_])", r"\\\1", part) for part in parts)
        out.append(line)
    lines[:] = out


def setup(app: Any) -> None:
    app.connect("config-inited", copy_lessons)
    app.connect("config-inited", make_front)
    app.connect("autodoc-process-docstring", to_rst, priority=100)  # before napoleon
