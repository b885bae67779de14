"""Text from elsewhere (names, prompts, files) made safe to show: nothing in it can move a cursor or turn a line."""

from __future__ import annotations

import unicodedata

_JOINERS = "\u200c\u200d"  # Persian, Indic scripts and emoji are written with them
_ODD = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})
"""Unicode's categories of control, format, surrogate and private characters, line and paragraph separators."""


def printable(text: str, keep: str = "") -> str:
    r"""The text with every control character escaped as \x1b, \u202e, \n; `keep` names those that stay as they are."""
    if text.isprintable():
        return text
    return "".join(c if c in keep or not is_control(c) else c.encode("unicode_escape").decode() for c in text)


def is_control(character: str) -> bool:
    """Whether a character is no letter, mark, sign or space: C0 and C1 controls, escapes, bidirectional overrides."""
    return unicodedata.category(character) in _ODD and character not in _JOINERS
