"""What a reading says about "the edit changed nothing": changed, unchanged, or cannot tell."""

from __future__ import annotations

from typing import Literal

from palimpsest.core.reading import Reading

Verdict = Literal["changed", "unchanged", "cannot tell", ""]
LEVEL = 0.05
_ROUNDING = 1e-3  # points; where no pair differs, interval and floor are one formula


def verdict(reading: Reading) -> Verdict:
    """The verdict of one reading; "" for readings that only describe.

    Changed: the test of the same-seed pairs rejects at 5 % (p is already corrected). Unchanged: it does not, and the
    whole interval of the change lies within the noise floor. Cannot tell: neither; more pictures are needed. Where
    there is no test: unchanged where the whole interval lies below the smallest visible change.
    """
    if reading.p is not None:
        if reading.p < LEVEL:
            return "changed"
        return "unchanged" if _within_floor(reading) else "cannot tell"
    if reading.visible is not None:
        return "unchanged" if reading.high < reading.visible else "changed"
    return ""


def _within_floor(reading: Reading) -> bool:
    if reading.floor is None:
        return False
    if reading.change is not None:
        return max(abs(reading.change.low), abs(reading.change.high)) <= reading.floor + _ROUNDING
    return reading.value <= reading.floor
