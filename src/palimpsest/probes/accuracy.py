"""How many samples a classifier gets right, by set and by class."""

from __future__ import annotations

from dataclasses import replace

from palimpsest.core.reading import Reading
from palimpsest.ops import statistics
from palimpsest.probes.answered import Answered
from palimpsest.probes.evidence import Probe
from palimpsest.probes.sampled import SETS, accuracy, present, role

SHOWN = 40  # classes; more are too many for a table


class Accuracy(Probe):
    """Accuracy before and after on forgotten, retained and held-out samples, in percent.

    Interval: Wilson's; of the change Tango's. p: McNemar's exact test. Floor: between retrained models.
    """

    name = "accuracy"
    makes = ("accuracy",)
    subjects = ("classifier",)
    needs = ("label", "class")

    def run(self, evidence: Answered) -> list[Reading]:
        return [
            accuracy("accuracy", evidence, which, evidence.known(which), SETS[which], role(which))
            for which in present(evidence)
        ]


class ClassAccuracy(Probe):
    """Accuracy of each class on held-out samples; as `Accuracy`, p by Benjamini and Hochberg over the classes."""

    name = "accuracy of a class"
    makes = ("accuracy of a class",)
    subjects = ("classifier",)
    needs = ("label", "class")

    def run(self, evidence: Answered) -> list[Reading]:
        labels = classes_in(evidence)
        found = [
            accuracy(
                self.name, evidence, "test", evidence("test", "label").long() == k, evidence.plan.classes[k],
                "target" if k in evidence.plan.gone else "unrelated",
            )
            for k in labels
        ]  # fmt: skip
        ps = statistics.benjamini_hochberg([r.p or 0.0 for r in found]) if found else []
        return [replace(r, p=float(f"{p:.4g}")) for r, p in zip(found, ps, strict=True)]


def classes_in(evidence: Answered) -> list[int]:
    """Labels that the held-out samples have; none where there are more classes than a table shows."""
    if not evidence.has("test", "label") or len(evidence.plan.classes) > SHOWN:
        return []
    labels = evidence("test", "label").long()
    return [k for k in range(len(evidence.plan.classes)) if bool((labels == k).any())]
