"""Whether an attack still tells that forgotten samples were learned from."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from palimpsest.core.reading import Curve, Reading, Series
from palimpsest.ops import membership
from palimpsest.probes.answered import Answered
from palimpsest.probes.evidence import Probe
from palimpsest.probes.sampled import apart, of_interval, percent, short

RATIO, ODD = "likelihood ratio", "modified entropy"
ALARMS = tuple(i / 20 for i in range(21))


class Membership(Probe):
    """Area under the curve of attacks that tell forgotten samples from held-out ones of their kind: 0.5 is not at all.

    Confidence: the label's probability. Entropy, and modified entropy, which knows the label. Likelihood ratio:
    confidence less what retrained models have on the same sample. Interval: Newcombe's.
    """

    name = "membership"
    makes = ("membership",)
    subjects = ("classifier",)
    needs = ("label", "like", "margin", "entropy", "modified entropy")

    def run(self, evidence: Answered) -> list[Reading]:
        if not asked(evidence):
            return []
        scores = ["margin", "entropy", ODD, *([RATIO] if evidence.retrained() else [])]
        return [attack(evidence, score) for score in scores]


def asked(evidence: Answered) -> bool:
    """Whether there are held-out samples of the forgotten kind."""
    return evidence.has("test", "like") and int(evidence("test", "like").sum()) >= 2


def attack(evidence: Answered, score: str) -> Reading:
    """One attack's reading."""

    def both(model: str) -> tuple[Tensor, Tensor]:
        return _scores(evidence, "forget", model, score), _scores(evidence, "test", model, score)

    members, others = both("after")
    never = [both(m) for m in evidence.retrained() if score != RATIO or len(evidence.retrained()) > 1]
    guess = membership.balanced_accuracy(members, others)
    areas = [membership.auc(*pair).value for pair in never]
    lines = [("before", [both("before")]), ("after", [(members, others)]), ("retrained", never)]
    return of_interval(
        "membership",
        "confidence" if score == "margin" else score,
        membership.auc(members, others),
        len(members),
        role="target",
        before=membership.auc(*both("before")).value,
        floor=apart(areas),
        references=tuple(short(a) for a in areas),
        curve=_curve(lines) if score == ODD else None,
        detail={
            "balanced accuracy": {k: short(v) for k, v in guess._asdict().items()},
            "held-out samples": len(others),
        },
    )


def _scores(evidence: Answered, which: str, model: str, score: str) -> Tensor:
    rows = evidence("test", "like").bool() if which == "test" else slice(None)
    if score != RATIO:
        return evidence(which, model, score)[rows]
    outs = torch.stack([evidence(which, m, "margin") for m in evidence.retrained() if m != model])
    # Samples on both sides are new to the references, so the attack is the offline one; with so few of them the
    # spread is one number for all samples, which changes no order: it is left out.
    return (evidence(which, model, "margin") - outs.mean(0))[rows]


def _curve(lines: Sequence[tuple[str, Sequence[tuple[Tensor, Tensor]]]]) -> Curve:
    """Forgotten samples found over held-out ones taken for training samples, mean over the models of a line."""
    alarms = torch.tensor(ALARMS)
    rates = {
        name: torch.stack([membership.found_at(m, o, alarms) for m, o in pairs]).mean(0).tolist()
        for name, pairs in lines
        if pairs
    }
    return Curve(
        x=tuple(100 * a for a in ALARMS),
        x_label="held-out samples taken for training samples, %",
        y_label="forgotten samples found, %",
        series=tuple(Series(name=name, y=tuple(percent(float(y)) for y in ys)) for name, ys in rates.items()),
    )
