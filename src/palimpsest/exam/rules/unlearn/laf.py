"""LAF claims, without labels, what others reach with them."""

from palimpsest.exam.judged import Judged, Studied
from palimpsest.exam.verbs.unlearn import Outcomes, comparable


def judge(system: str, main: Outcomes, studied: Studied) -> Judged:
    """Beside systems that read labels: all others."""
    return comparable(system, main, "that reads labels", (system,))
