"""FLAT claims to forget without what is retained."""

from palimpsest.exam.judged import Judged, Studied
from palimpsest.exam.verbs.unlearn import Outcomes, first

WITHOUT_RETAINED = tuple(
    f"unlearn/{s}" for s in ("boundary_expanding", "boundary_shrink", "flat", "gradient_ascent", "scar", "upcore")
)


def judge(system: str, main: Outcomes, studied: Studied) -> Judged:
    """Among systems that do as much without it."""
    measured = "smallest average gap of those that do not train on retained data"
    return first(system, main, measured, lambda o: o.average.value, WITHOUT_RETAINED)
