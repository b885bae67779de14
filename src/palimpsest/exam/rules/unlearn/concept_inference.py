"""Concept inference claims to forget classes."""

from palimpsest.exam.judged import Judged, Studied
from palimpsest.exam.verbs.unlearn import Outcomes, cases_of, close_on


def judge(system: str, main: Outcomes, studied: Studied) -> Judged:
    """The family's rule, on classes."""
    return close_on(cases_of(system, main, ("class",)))
