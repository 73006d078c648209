"""Sphinx: ``sphinx-build -W docs build/site``. The pages are Markdown that reads the same on the repository host."""

import re
import shutil
import sys
from pathlib import Path

import elastofast

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))

project = "elastofast"
author = "The elastofast developers"
version = release = elastofast.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "numpydoc",
    "sphinx.ext.viewcode",
    "gallery",
    "links_to_code",
]
exclude_patterns = ["_extensions", "_templates"]
autosummary_generate = True
shutil.rmtree(Path(__file__).parent / "api", ignore_errors=True)  # pages of names that are gone would be warned about
templates_path = ["_templates"]

html_theme = "furo"
html_title = "elastofast"
html_static_path = ["_static"]
html_css_files = ["site.css"]

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4

# Docstrings: `Name` in backticks is a name of Python; shapes and types stand in the docstrings, not in signatures.
default_role = "py:obj"
autodoc_typehints = "none"
autodoc_member_order = "bysource"
numpydoc_show_class_members = False  # autodoc lists them


def plain_signs(app, what, name, obj, options, lines):
    """Escape signs of mathematics in docstrings, |x| and (d, *shape), which are markup to reStructuredText."""
    for k, line in enumerate(lines):
        if line.lstrip().startswith((">>>", "...")):
            continue
        parts = re.split(r"(`+[^`]*`+)", line)  # every other part is code
        parts[::2] = [re.sub(r"\*(?=\w[\w.]*(?![\w.*]))|\|", r"\\\g<0>", part) for part in parts[::2]]
        lines[k] = "".join(parts)


def setup(app):
    """Connect what is above."""
    app.connect("autodoc-process-docstring", plain_signs, priority=100)  # before numpydoc
