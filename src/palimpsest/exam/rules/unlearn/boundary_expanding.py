"""Boundary expanding claims speed on classes."""

from palimpsest.exam.judged import Judged, Studied
from palimpsest.exam.verbs.unlearn import Outcomes, faster


def judge(system: str, main: Outcomes, studied: Studied) -> Judged:
    """The paper's 19 times."""
    return faster(system, main, 19)
