"""What a reading says about "the edit changed nothing": changed, unchanged, or cannot tell."""

from __future__ import annotations

from typing import Literal

from palimpsest.core.reading import Reading

Verdict = Literal["changed", "unchanged", "cannot tell", ""]
LEVEL = 0.05
_INVISIBLE = 1.0  # grey levels
_ROUNDING = 1e-3  # points; where no pair differs, interval and floor are one formula
_SAME = 1e-3  # of the distance to another seed


def verdict(reading: Reading) -> Verdict:
    """The verdict of one reading; "" for readings that only describe.

    Changed: the test of the same-seed pairs rejects at 5 % (p is already corrected). Unchanged: it does not, and the
    whole interval of the change lies within the noise floor. Cannot tell: neither; more pictures are needed. Drift
    has no test, because a single moved pixel is a change: it is unchanged below one grey level, or a thousandth of
    the distance to another seed.
    """
    if reading.p is not None:
        if reading.p < LEVEL:
            return "changed"
        return "unchanged" if _within_floor(reading) else "cannot tell"
    if reading.name == "pixel drift":
        return "unchanged" if reading.high < _INVISIBLE else "changed"
    if reading.name == "feature drift" and reading.floor:
        return "unchanged" if reading.high < _SAME * reading.floor else "changed"
    return ""


def _within_floor(reading: Reading) -> bool:
    if reading.floor is None:
        return False
    change = reading.detail.get("change")
    if isinstance(change, dict):
        return max(abs(change["low"]), abs(change["high"])) <= reading.floor + _ROUNDING
    return reading.value <= reading.floor
