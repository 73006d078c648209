"""The documents: links lead somewhere, and the code of the how-to pages is that of the examples.

The examples are run, and all warnings of Sphinx are errors, where the site is built (.ci/run).
"""

import ast
import re
from importlib import import_module
from pathlib import Path

import pytest

from elastofast import errors

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
EXAMPLES = ROOT / "examples"
MADE = DOCS / "gallery", DOCS / "api"  # by the build of the site
PAGES = [*ROOT.glob("*.md"), *(page for page in DOCS.rglob("*.md") if not set(MADE) & set(page.parents))]
HOW_TO = [DOCS / "first_map.md", *(DOCS / "howto").glob("*.md")]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def name(page):
    """Of a test."""
    return str(page.relative_to(ROOT))


def text_of(page):
    """A page without its code."""
    return re.sub(r"```.*?```|`[^`]*`", "", page.read_text(), flags=re.DOTALL)


def anchors(page):
    """What repository hosts and Sphinx call the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page):
    for link in LINK.findall(text_of(page)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{link} leads nowhere"
        if anchor:
            assert anchor in anchors(target), f"{link}: {target.name} has no such heading"


@pytest.mark.parametrize("page", HOW_TO, ids=name)
def test_code_of_a_how_to_page_is_that_of_its_examples(page):
    named = re.findall(r"\]\((?:\.\./)+examples/(\w+\.py)\)", page.read_text())
    assert named, "the page names no example"
    code = "\n".join((EXAMPLES / script).read_text() for script in dict.fromkeys(named))
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL):
        assert block in code, f"in none of {named}:\n{block}"


def test_every_example_is_named_on_a_page_and_says_what_it_is():
    pages = "".join(page.read_text() for page in PAGES)
    for script in EXAMPLES.glob("*.py"):
        assert f"examples/{script.name})" in pages
        assert re.match(r"[A-Z].*[.:]", ast.get_docstring(ast.parse(script.read_text())) or "")


@pytest.mark.parametrize("module", ["elastofast", "elastofast.plots", "elastofast.priors", "elastofast.tracking"])
def test_the_reference_lists_every_public_name(module):
    listed = set((DOCS / "api.md").read_text().split())
    whole = {
        *errors.__all__,
        "__version__",
        "NAMED",
        "plots",
        "priors",
        "tracking",
    }  # with their module, or no page of their own
    assert set(import_module(module).__all__) - listed - whole == set()


@pytest.mark.parametrize(
    ("words", "page"), [("axial component only, with holes", "howto/axial_only"), ("training loop", "howto/torch")]
)
def test_front_page_leads_to_what_people_look_for(words, page):
    assert any(words in row and f"({page}.md)" in row for row in (DOCS / "index.md").read_text().splitlines())
