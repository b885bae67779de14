"""What came of checking a receipt: every statement is checked, cannot be checked without something, or vouched for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from palimpsest.core.printable import printable

Status = Literal["same", "differs", "not checked", "not asked", "vouched"]
HELD, DIFFERS, NOT_CHECKED = 0, 1, 3
"""Exit codes: everything that was asked for held; something differs; something could not be checked."""
_LISTS: Mapping[str, str] = {
    "differs": "DIFFERS",
    "same": "checked",
    "not checked": "not checked, something is missing",
    "not asked": "not checked, not asked for",
    "vouched": "vouched for by the author alone (a signature says who that is)",
}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at.

    Args:
        status: same (checked and held), differs, not checked (what it takes is missing), not asked (what it takes was
            not asked for), or vouched (nothing that could be given would check it).
        what: the thing. detail: against what it held, what differs, or what checking takes.
        of: the receipt's fields that it is about.
    """

    status: Status
    what: str
    detail: str = ""
    of: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return self.status != "differs"

    def __str__(self) -> str:
        return printable(f"{self.status:12} {self.what}" + (f": {self.detail}" if self.detail else ""))


def same(what: str, detail: str = "", *of: str) -> Finding:
    return Finding(status="same", what=what, detail=detail, of=of)


def differs(what: str, detail: str = "", *of: str) -> Finding:
    return Finding(status="differs", what=what, detail=detail, of=of)


def lacking(what: str, detail: str, *of: str) -> Finding:
    """Not checked, since something is missing."""
    return Finding(status="not checked", what=what, detail=detail, of=of)


def exit_code(findings: Sequence[Finding]) -> int:
    """0 where all that was asked for held, 1 where something differs, else 3 where something could not be checked."""
    told = {f.status for f in findings}
    return DIFFERS if "differs" in told else NOT_CHECKED if "not checked" in told else HELD


def report(findings: Sequence[Finding]) -> str:
    """The findings in their lists, for a terminal."""
    blocks = []
    for status, title in _LISTS.items():
        lines = [f"  {f}" for f in findings if f.status == status]
        blocks += [f"{title}:", *lines, ""] if lines else []
    return "\n".join(blocks).rstrip()


def guarded(what: str, check: Callable[[], list[Finding]], *of: str) -> list[Finding]:
    """The findings of a check. Whatever was altered in a receipt, parts that do not fit together end in a finding."""
    try:
        return check()
    except Exception as e:  # the check is code of ours and of others, the content is anybody's
        return [differs(what, f"the receipt's parts do not fit together ({type(e).__name__}: {e})", *of)]


def brief(value: Any) -> str:
    """A value on one short line."""
    text = printable(str(value) if isinstance(value, str) else repr(value))
    return text if len(text) <= 80 else text[:77] + "..."
