"""Blindspot unlearning is for regressors."""

from palimpsest.exam.judged import Judged, Studied
from palimpsest.exam.studies import values
from palimpsest.exam.verbs.unlearn import Outcomes

STUDY = "values"
ELSEWHERE = "is for regressors: see the age-like number of drawn faces"


def judge(system: str, main: Outcomes, studied: Studied) -> Judged:
    """Errors and attack beside those of retraining."""
    return values.judge(system, studied[STUDY])
