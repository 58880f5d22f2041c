"""Pages of one file: a heading, tables, pictures inside the file; nothing is loaded from elsewhere."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from typing import Any

__all__ = ["escape", "page", "picture", "table"]

_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#1c2733;background:#fff}
h1{font-size:1.7rem}h2{margin-top:2.2rem;border-bottom:1px solid #d6dde4;padding-bottom:.2rem}
table{border-collapse:collapse;margin:.6rem 0}td,th{border:1px solid #d6dde4;padding:.3rem .7rem;text-align:left}
td.n{text-align:right;font-variant-numeric:tabular-nums}audio{height:2rem;width:15rem;vertical-align:middle}
img{max-width:100%}pre{background:#f4f6f8;padding:1rem;overflow:auto;font-size:.85rem}.ok{color:#116329}.no{color:#a40e26}
@media(prefers-color-scheme:dark){body{background:#12181f;color:#dde5ed}pre{background:#1b232c}td,th,h2{border-color:#344}}
"""


def escape(text: str) -> str:
    """Text that is shown as it is, also inside an attribute's quotes."""
    return html.escape(text, quote=True)


def page(title: str, parts: Sequence[str]) -> str:
    """A whole page.

    Args:
        title: Plain text.
        parts: Markup, one below the other.
    """
    head = f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(title)}</title>"
    style = f"<meta name=viewport content='width=device-width'><style>{_STYLE}</style><h1>{escape(title)}</h1>"
    return "\n".join([head, style, *parts, "</html>"])


def table(head: Sequence[str], rows: Sequence[Sequence[Any]], raw: bool = False) -> str:
    """A table; numbers stand to the right.

    Args:
        head: Plain text.
        rows: Values of the cells.
        raw: Cells are markup already.
    """

    def cell(value: Any) -> str:
        kind = " class=n" if isinstance(value, int | float) else ""
        return f"<td{kind}>{value if raw else escape(str(value))}</td>"

    top = "".join(f"<th>{escape(h)}</th>" for h in head)
    return f"<table><tr>{top}</tr>" + "".join(f"<tr>{''.join(map(cell, r))}</tr>" for r in rows) + "</table>"


def picture(figure: Any, about: str) -> str:
    """A figure of matplotlib as an image inside the page.

    Args:
        figure: Has ``savefig``.
        about: What it shows, for who does not see it.
    """
    memory = io.BytesIO()
    figure.savefig(memory, format="png", dpi=100)
    data = base64.b64encode(memory.getvalue()).decode("ascii")
    return f"<img src='data:image/png;base64,{data}' alt='{escape(about)}'>"
