"""How far a classifier is from models that never saw what it forgot: the gold standard of forgetting."""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor

from palimpsest.core.reading import Reading
from palimpsest.ops import membership, statistics
from palimpsest.probes.answered import Answered
from palimpsest.probes.evidence import Probe
from palimpsest.probes.sampled import SETS, WHOLE, apart, of_interval, percent, present, role, short

GAP = "gap to retrained models"


class Gap(Probe):
    """Accuracy less the mean accuracy of retrained models, in points; BCa bootstrap over samples."""

    name = "gap"
    makes = (GAP,)
    subjects = ("classifier",)
    needs = ("label", "class")

    def run(self, evidence: Answered) -> list[Reading]:
        return [gap(evidence, which) for which in present(evidence)] if evidence.retrained() else []


def gap(evidence: Answered, which: str) -> Reading:
    """The gap on one set."""
    rows = evidence.known(which)
    never = torch.stack([evidence.hits(which, m)[rows].double() for m in evidence.retrained()])
    after, before = (evidence.hits(which, m)[rows].double() - never.mean(0) for m in ("after", "before"))
    return of_interval(
        GAP, SETS[which], statistics.mean(after.numpy()), len(rows), unit="points", scale=100.0,
        before=100 * float(before.mean()), floor=apart([percent(x) for x in never.mean(1).tolist()]),
    )  # fmt: skip


class Agreement(Probe):
    """Share of samples on which a model answers as a retrained one does, mean over the retrained ones."""

    name = "agreement"
    makes = ("agreement with retrained models",)
    subjects = ("classifier",)
    needs = ("label", "class")

    def run(self, evidence: Answered) -> list[Reading]:
        found, models = [], evidence.retrained()
        for which, what in WHOLE.items():
            if not (models and evidence.has(which, "label")):
                continue
            said = [evidence(which, m, "class") for m in models]
            after, before = (
                torch.stack([(evidence(which, m, "class") == s).double() for s in said]).mean(0)
                for m in ("after", "before")
            )
            between = [percent(float((a == b).double().mean())) for a, b in combinations(said, 2)]
            found.append(
                of_interval(
                    self.makes[0], what, statistics.mean(after.numpy()), len(after), unit="%", scale=100.0,
                    before=100 * float(before.mean()), role=role(which), detail={"between retrained models": between},
                )
            )  # fmt: skip
        return found


class Divergence(Probe):
    """KLoM of the label's margins to those of the retrained models, in nats, mean over samples; floor: one retrained
    model to the others."""

    name = "divergence"
    makes = ("divergence of margins",)
    subjects = ("classifier",)
    needs = ("label", "margin")

    def run(self, evidence: Answered) -> list[Reading]:
        models, found = evidence.retrained(), []
        for which, what in WHOLE.items():
            if len(models) < 2 or not evidence.has(which, "label"):
                continue
            margins = {m: evidence(which, m, "margin")[None] for m in ("before", "after", *models)}

            def of(model: str, margins: dict[str, Tensor] = margins) -> Tensor:
                others = torch.cat([margins[m] for m in models if m != model])
                return membership.margin_divergence(margins[model], others)

            worst = max(float(of(m).mean()) for m in models) if len(models) > 2 else None
            each = of("after")
            found.append(
                of_interval(
                    self.makes[0], what, statistics.mean(each.numpy()), each.numel(), unit="nat", role=role(which),
                    before=float(of("before").mean()), floor=None if worst is None else short(worst),
                    detail={"of 100 samples, the 95th": short(float(each.quantile(0.95)))},
                )
            )  # fmt: skip
        return found
