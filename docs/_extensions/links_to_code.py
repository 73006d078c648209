"""Names of the package in backticks link to the reference: `Fidelity`, `ElasticForm.force(x, u)`, `ef.reconstruct`.

A name with a prefix, `ef.` or `elastofast.`, that does not exist brings a warning.
"""

import re
from importlib import import_module

from docutils import nodes
from sphinx.util import logging

logger = logging.getLogger(__name__)

# a name with a prefix, a dot, a capital or parentheses; plain lower-case words are as often options and files
NAME = re.compile(r"(ef\.|elastofast\.)?([A-Za-z_][\w.]*)(\([^()]*\))?")


def link(app, doctree, page):
    """Make links of a page's names."""
    if page.startswith("api"):
        return
    if not hasattr(app.env, "names_of_package"):
        app.env.names_of_package = by_name(app.env.domains["py"].objects)
    for literal in list(doctree.findall(nodes.literal)):
        match = NAME.fullmatch(literal.astext())
        if not match or isinstance(literal.parent, nodes.reference):
            continue
        prefix, name, call = match.groups()
        if not (prefix or call or "." in name or name[0].isupper()):
            continue
        if entry := app.env.names_of_package.get(name):
            uri = f"{app.builder.get_relative_uri(page, entry.docname)}#{entry.node_id}"
            reference = nodes.reference("", "", internal=True, refuri=uri)
            literal.replace_self(reference)
            reference += literal
        elif prefix and page != "changelog" and not exists(name):  # a changelog has names that are gone
            logger.warning("`%s` does not exist", literal.astext(), location=literal)


def by_name(objects):
    """Entries by the name after the package, and by its last two parts, or the name of a class, where it is unique."""
    names, ambiguous = {}, set()
    for full, entry in objects.items():
        name = full.removeprefix("elastofast.")
        *_, last = parts = name.split(".")
        for short in {name, ".".join(parts[-2:]), last if last[:1].isupper() else name}:
            if short in names and names[short] != entry:
                ambiguous.add(short)
            names[short] = entry
    return {name: entry for name, entry in names.items() if name not in ambiguous}


def exists(name):
    """Whether the package has such a name."""
    found = import_module("elastofast")
    if name == "_cuda":  # not built everywhere
        return True
    for part in name.split("."):
        try:
            found = getattr(found, part) if hasattr(found, part) else import_module(f"{found.__name__}.{part}")
        except (AttributeError, ImportError):
            return False
    return True


def setup(app):
    """Link when all names are known."""
    app.connect("doctree-resolved", link)
    return {"parallel_read_safe": True}
