"""DUCK claims the best of its own score."""

from palimpsest.exam.judged import Judged, Studied
from palimpsest.exam.verbs.unlearn import Outcomes, first


def judge(system: str, main: Outcomes, studied: Studied) -> Judged:
    """By the adaptive unlearning score."""
    return first(system, main, "largest adaptive unlearning score", lambda o: -o.adaptive.value)
