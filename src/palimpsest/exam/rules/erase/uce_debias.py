"""UCE's debiasing loop is about shares, not about what is gone."""

from palimpsest.exam.judged import Judged, Studied
from palimpsest.exam.pictures import UNTOUCHED
from palimpsest.exam.studies.debiasing import evener
from palimpsest.exam.verbs.erase import Summaries

STUDY = "debiasing"


def judge(system: str, main: Summaries, studied: Studied) -> Judged:
    """Closer to even than the biased model."""
    cause = "not 5 points closer than the biased model"
    return evener(system, studied.get(STUDY, {}), (UNTOUCHED,), "", cause)
