"""Receipts about smudges: how many answers to drawn noise are other ones now."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from palimpsest.core.patch import Patch
from palimpsest.core.reading import Reading
from palimpsest.ops.statistics import wilson
from palimpsest.probes.evidence import Evidence, Probe, norms, unkept
from palimpsest.receipt.subject import Again, Rates, Section, Subject


@dataclass(frozen=True)
class Plan:
    rows: int = 16


class Answers(Evidence):
    subject = "smudges"

    def moved(self):
        return self("noise", "before", "class") != self("noise", "after", "class")


class Moved(Probe):
    name, makes, subjects, needs = "moved", ("moved",), ("smudges",), ("class",)

    def run(self, evidence):
        moved = evidence.moved()
        value, low, high = wilson(int(moved.sum()), len(moved))
        scaled = {"value": 100 * value, "low": 100 * low, "high": 100 * high}
        return [Reading(name="moved", n=len(moved), unit="%", visible=5.0, before=0.0, **scaled)]


class Smudges(Subject):
    name, counted, probes = "smudges", "pictures of noise", (Moved(),)
    sections = (Section(title="moved", form="figures"), Section(title="Answers", readings=("moved",)))
    terms = (("Moved", "Pictures of noise that get another answer."),)
    compared: ClassVar[Mapping[str, str]] = {
        "before": "answers moved before",
        "target": "answers moved",
        "neighbours": "-",
        "unrelated": "-",
        "n": "pictures of noise",
        "y": "answers that moved",
        "said": "answers moved",
        "x": "nothing",
    }

    def collect(self, before, after, request, *, folder=None, resume=False, trace=None):
        pictures = torch.rand(Plan.rows, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        measures = {"noise/before/class": before.logits(pictures).argmax(1).double()}
        with after.applied(before):
            measures["noise/after/class"] = before.logits(pictures).argmax(1).double()
        patch = after if isinstance(after, Patch) else None
        return Answers(plan=Plan(), measures=measures, patch=patch, base=norms(before, patch))

    def again(self, kept, before, after, how, trace):
        return Again(evidence=self.collect(before, after, None), readings=True)

    @classmethod
    def kept(cls, data, vectors):
        return Answers(plan=Plan(**data["plan"]), measures=unkept(data["measures"], {}))

    @classmethod
    def words(cls, readings, request, evidence):
        text = f"{readings[0].value:.0f} % of the answers moved."
        return "smudged", [{"tone": "plain", "text": text}]

    @classmethod
    def figures(cls, readings):
        return [("answers moved", readings[0])]

    @classmethod
    def rates(cls, evidence):
        n = len(evidence.moved())
        rate = wilson(int(evidence.moved().sum()), n)
        return Rates(target=rate, before=wilson(0, n), neighbours=None, unrelated=None, n=n)
