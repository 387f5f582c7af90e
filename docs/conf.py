"""How the book is built: `python -m sphinx -W --keep-going docs docs/_build/html` (or `.ci/run`, which does that).

The lessons lie in lessons/, where learners look for them. They are copied to docs/lessons/ first, and executed there.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import minipage

HERE = Path(__file__).parent

project = "minipage"
author = "The minipage authors"
copyright = author
release = version = minipage.__version__
language = "en"

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "sphinx_copybutton"]
exclude_patterns = ["_build", "**/.ipynb_checkpoints", "README.md"]

html_theme = "furo"
html_title = "minipage"
html_static_path = ["_static"]
html_css_files = ["book.css"]
html_copy_source = html_show_sourcelink = False

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
# Notebooks run in the folder they lie in. A cell that raises fails the build, and so does a warning of Sphinx.
nb_execution_mode = "force"
nb_execution_timeout = 60  # seconds a cell may take
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_merge_streams = True
suppress_warnings = ["mystnb.unknown_mime_type"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "undoc-members": False}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
copybutton_exclude = ".linenos, .gp, .go"


def copy_lessons(app: object, config: object) -> None:
    """Put the notebooks where Sphinx looks for its pages."""
    target = HERE / "lessons"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    for lesson in sorted((HERE.parent / "lessons").glob("*/lesson.ipynb")):
        shutil.copy(lesson, target / f"{lesson.parent.name}.ipynb")


def setup(app) -> None:  # type: ignore[no-untyped-def]
    app.connect("config-inited", copy_lessons)
