"""Web pages that consist of one file: text, tables and pictures, without anything from elsewhere."""

from __future__ import annotations

import base64
import platform
from collections.abc import Iterable
from datetime import UTC, datetime
from html import escape
from importlib.metadata import PackageNotFoundError, version

from . import __version__
from .backend.processors import processors

__all__ = ["figure", "image_source", "page", "table", "versions"]

_CSS = """
:root { color-scheme: light dark; --line: #8885; --soft: #8881; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.6rem; }
h2 { font-size: 1.25rem; margin-top: 2.5rem; border-top: 1px solid var(--line); padding-top: 1rem; }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; white-space: nowrap; }
caption { text-align: left; padding: .3rem 0; font-weight: 600; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: right; }
th:first-child, td.text { text-align: left; } thead th { background: var(--soft); }
td.text { white-space: normal; min-width: 14rem; } table.facts td { text-align: left; white-space: normal; }
td img { max-width: none; display: block; }
td.best { font-weight: 700; }
figure { margin: 1.5rem 0; } figure .wide { margin: 0; } figcaption { font-size: .88rem; }
img { background: #fff; border-radius: 4px; max-width: 100%; height: auto; }
figure img { min-width: min(44rem, 180%); }
pre { overflow-x: auto; background: var(--soft); padding: .7rem; font-size: .8rem; border-radius: 4px; }
.note { background: var(--soft); padding: .5rem .8rem; border-left: 4px solid #d55e00; }
"""


def page(title: str, body: Iterable[str]) -> bytes:
    """A whole page from parts of HTML; empty parts are left out."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_CSS}</style></head>\n<body><main>\n"
        + "\n".join(filter(None, body))
        + "\n</main></body></html>\n"
    ).encode()


def table(caption: str, heads: Iterable[str], lines: Iterable[Iterable], kind: str = "") -> str:
    """A table as HTML; a cell is a text, or a text with a CSS class, of which "html" means that it is HTML already."""
    out = [f'<div class="wide"><table class="{kind}">' if kind else '<div class="wide"><table>']
    out.append(f"<caption>{escape(caption)}</caption>" if caption else "")
    heads = list(heads)
    if heads:
        out += ["<thead><tr>", *(f'<th scope="col">{escape(head)}</th>' for head in heads), "</tr></thead>"]
    out.append("<tbody>")
    for first, *cells in lines:
        out.append(f'<tr><th scope="row">{escape(first)}</th>')
        for cell in cells:
            text, own = (cell, "") if isinstance(cell, str) else cell
            shown = text if own == "html" else escape(text)
            out.append(f'<td class="{own}">{shown}</td>' if own else f"<td>{shown}</td>")
        out.append("</tr>")
    return "".join([*out, "</tbody></table></div>"])


def figure(text: str, png: bytes, alt: str) -> str:
    """A picture with its caption; ``alt`` is what those read who do not see it."""
    image = f'<div class="wide"><img src="{image_source(png)}" alt="{escape(alt, quote=True)}"></div>'
    return f"<figure>{image}<figcaption>{escape(text)}.</figcaption></figure>"


def image_source(png: bytes) -> str:
    """A picture as a URL that contains it."""
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"


def versions() -> dict[str, str | None]:
    """Date, machine, and the versions of what a result depends on."""
    found: dict[str, str | None] = {}
    for name in ("numpy", "scipy", "scikit-image", "torch"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "elastofast": __version__,
        "python": platform.python_version(),
        **found,
        "machine": f"{platform.platform()}, {processors()} processors",
    }
