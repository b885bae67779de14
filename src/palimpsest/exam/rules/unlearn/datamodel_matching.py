"""Datamodel matching claims to answer as retrained models would."""

from palimpsest.exam.judged import Judged, Studied
from palimpsest.exam.verbs.unlearn import Outcomes, first


def judge(system: str, main: Outcomes, studied: Studied) -> Judged:
    """By the answers on what was forgotten."""
    measured = "smallest divergence of the forgotten samples' log-odds from retraining's"
    return first(system, main, measured, lambda o: o.divergence.value)
