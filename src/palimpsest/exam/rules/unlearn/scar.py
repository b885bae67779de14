"""SCAR claims, without retained data, what others reach with it."""

from palimpsest.exam.judged import Judged, Studied
from palimpsest.exam.rules.unlearn.flat import WITHOUT_RETAINED
from palimpsest.exam.verbs.unlearn import Outcomes, comparable


def judge(system: str, main: Outcomes, studied: Studied) -> Judged:
    """Beside systems that train on retained data."""
    return comparable(system, main, "that trains on retained data", WITHOUT_RETAINED)
