"""Where the samples of each class go."""

from __future__ import annotations

import torch

from palimpsest.core.reading import MatrixRow, Reading
from palimpsest.probes.accuracy import classes_in
from palimpsest.probes.answered import Answered
from palimpsest.probes.evidence import Probe
from palimpsest.probes.sampled import short


class Confusion(Probe):
    """The confusion matrix: a row for each label of the held-out samples, a column for each answer.

    An entry is the change, in points, of the share of the row's samples that get the column's answer. The value of a
    row is its largest change off the diagonal, with its sign. A description without a test.
    """

    name = "confusion"
    makes = ("confusion",)
    subjects = ("classifier",)
    needs = ("label", "class")

    def run(self, evidence: Answered) -> list[Reading]:
        classes, found = evidence.plan.classes, []
        for k in classes_in(evidence):
            rows = evidence("test", "label").long() == k
            share = {
                m: 100 * torch.bincount(evidence("test", m, "class").long()[rows], minlength=len(classes))
                / int(rows.sum())
                for m in ("before", "after")
            }  # fmt: skip
            share["change"] = share["after"] - share["before"]
            off = share["change"].clone()
            off[k] = 0.0
            row = MatrixRow(columns=classes, **{m: tuple(short(float(x)) for x in v) for m, v in share.items()})
            found.append(
                Reading(
                    name="confusion",
                    concept=classes[k],
                    role="target" if k in evidence.plan.gone else "unrelated",
                    value=short(float(off[off.abs().argmax()])),
                    n=int(rows.sum()),
                    unit="points",
                    row=row,
                )
            )
        return found
