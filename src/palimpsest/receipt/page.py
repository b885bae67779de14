"""The one way from a template to a page: text is escaped, control characters are shown, the style is
inside, names that are missing are errors."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from palimpsest.core.printable import printable

_HERE = Path(__file__).parent


def fill(template: str, values: Mapping[str, Any]) -> str:
    """A page of this folder's `template` with `receipt.css` in it."""
    style = (_HERE / "receipt.css").read_text(encoding="utf-8")
    return _environment().get_template(template).render({"style": Markup(style), **values})


@lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined, finalize=_shown,
    )  # fmt: skip


def _shown(value: Any) -> Any:
    """Text that is no markup of ours, with its control characters escaped."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value
