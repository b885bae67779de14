"""InvDiff's claim is about shares, not about what is gone."""

from palimpsest.exam.judged import Judged, Studied
from palimpsest.exam.pictures import PLAIN, UNTOUCHED
from palimpsest.exam.studies.debiasing import evener
from palimpsest.exam.verbs.erase import Summaries

STUDY = "debiasing"
CAUSE = (
    "not 5 points closer than both: likely because the losses of single pictures tell their colours too weakly for the "
    "groups to be those of the bias, and the training is short"
)


def judge(system: str, main: Summaries, studied: Studied) -> Judged:
    """Closer to even than the biased model, and than the same training without groups."""
    also = " and than plain fine-tuning on the same pictures"
    return evener(system, studied.get(STUDY, {}), (UNTOUCHED, PLAIN), also, CAUSE)
