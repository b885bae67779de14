"""SSD's paper, as corrective unlearning uses it, claims to undo poison of which only a part is known."""

from palimpsest.exam.judged import Judged, Studied
from palimpsest.exam.studies import poison
from palimpsest.exam.verbs.unlearn import Outcomes

STUDY = "poison"


def judge(system: str, main: Outcomes, studied: Studied) -> Judged:
    """Where retraining without the known part leaves the poison at work, this does not."""
    return poison.judge(system, studied[STUDY])
