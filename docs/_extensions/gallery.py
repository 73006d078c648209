"""Gallery: every script in examples/ is run when the site is built, and gets a page with its pictures and its output.

A script that fails fails the build. One for a program that cannot be imported here is shown without being run. Pages
stand in docs/gallery/, which git ignores; a script is run again if it or the package is newer than its page. In the
other pages, a link to a script leads to its page, and one to the folder of scripts to the gallery, so that the same
link works on the repository host.
"""

import ast
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sphinx.errors import ExtensionError
from sphinx.util import logging

import elastofast

DOCS = Path(__file__).parents[1]
EXAMPLES = DOCS.parent / "examples"
GALLERY = DOCS / "gallery"
LIMIT = 300  # seconds after which a script is stopped; each takes 2 to 10 of one core
COLUMNS = 3
OWN = {"elastofast", "numpy", "scipy", "torch", "matplotlib"}  # what every environment has in which the site is built

logger = logging.getLogger(__name__)


def build(app):
    """Write the pages of all scripts and their list."""
    GALLERY.mkdir(exist_ok=True)
    scripts = sorted(EXAMPLES.glob("*.py"))
    newest = max(path.stat().st_mtime for path in Path(elastofast.__file__).parent.rglob("*.py"))
    for page in GALLERY.glob("*.md"):
        if page.name != "index.md" and EXAMPLES / f"{page.stem}.py" not in scripts:
            page.unlink()
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        titles = list(pool.map(lambda script: page_of(script, newest), scripts))
    cells = [f"[![{title}]({pictures[0]})](/gallery/{name}.md)<br>[{title}](/gallery/{name}.md)" if pictures
             else f"[{title}](/gallery/{name}.md)" for name, title, pictures in titles]  # fmt: skip
    cells += [""] * (-len(cells) % COLUMNS)
    rows = [" | ".join(cells[k : k + COLUMNS]) for k in range(0, len(cells), COLUMNS)]
    table = "\n".join([f"|{'   |' * COLUMNS}", f"|{'---|' * COLUMNS}", *(f"| {row} |" for row in rows)])
    names = "\n".join(name for name, _, _ in titles)
    write(
        GALLERY / "index.md",
        "# Gallery\n\nEach of these scripts is in the folder `examples` and runs in seconds; the pictures and outputs "
        f"are those of the version that this site describes.\n\n{table}\n\n```{{toctree}}\n:hidden:\n\n{names}\n```\n",
    )


def page_of(script, newest):
    """Name, title and pictures of a script, which is run unless its page is up to date."""
    text = script.read_text()
    docstring = ast.get_docstring(ast.parse(text))
    first, _, about = docstring.partition("\n")
    title, _, more = first.rstrip(".").partition(": ")
    more = f"{more[0].upper()}{more[1:]}.\n" if more else ""
    page = GALLERY / f"{script.stem}.md"
    if not page.exists() or page.stat().st_mtime < max(newest, script.stat().st_mtime):
        body = text[text.index('"""', 3) + 3 :].strip()
        if missing := not_importable(text):
            shown, said = "", f"Not run when this page was built, for lack of {', '.join(missing)}."
        else:
            logger.info("running %s", script.name)
            output, pictures = run(script)
            shown = "".join(f"![{title}]({name})\n\n" for name in pictures)
            said = f"Output:\n\n```text\n{output}\n```"
        write(page, f"# {title}\n\n{more}{about}\n\n{shown}```python\n{body}\n```\n\n{said}\n")
    return script.stem, title, sorted(path.name for path in GALLERY.glob(f"{script.stem}*.png"))


def not_importable(text):
    """Packages of other programs that a script imports and this environment does not have, or cannot use."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module.partition(".")[0])
    others = sorted(found - OWN - set(sys.stdlib_module_names))
    return [
        name
        for name in others
        if subprocess.run([sys.executable, "-c", f"import {name}"], capture_output=True, check=False).returncode
    ]


def run(script):
    """What a script prints, and the names of its pictures, which are moved to the gallery."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, script],
            cwd=folder,
            env={**os.environ, "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )
        if done.returncode:
            raise ExtensionError(f"examples/{script.name} failed:\n{done.stderr}")
        pictures = sorted(Path(folder).glob("*.png"))
        if wrong := [picture.name for picture in pictures if not picture.name.startswith(script.stem)]:
            raise ExtensionError(f"examples/{script.name} writes {wrong[0]}: pictures are named after their script")
        for picture in pictures:
            shutil.copy(picture, GALLERY)
        return done.stdout.strip(), [picture.name for picture in pictures]


def write(path, text):
    """Write a page unless it is the same, so that Sphinx does not read it again."""
    if not path.exists() or path.read_text() != text:
        path.write_text(text)
    else:
        path.touch()


def lead_to_gallery(app, name, source):
    """Links to scripts become links to their pages."""
    source[0] = re.sub(r"\]\((?:\.\./)+examples/(\w+)\.py\)", r"](/gallery/\1.md)", source[0])
    source[0] = re.sub(r"\]\((?:\.\./)+examples/?\)", "](/gallery/index.md)", source[0])


def setup(app):
    """Run before Sphinx looks for pages."""
    app.connect("builder-inited", build)
    app.connect("source-read", lead_to_gallery)
    return {"parallel_read_safe": True}
