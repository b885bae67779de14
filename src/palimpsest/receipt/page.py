"""The one way from a template to a page: text is escaped, the style is inside, names that are missing are errors."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2

_HERE = Path(__file__).parent


def fill(template: str, values: Mapping[str, Any]) -> str:
    """A page of this folder's `template` with `receipt.css` in it."""
    style = (_HERE / "receipt.css").read_text(encoding="utf-8")
    return _environment().get_template(template).render({"style": style, **values})


@lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
