"""Whether the forgetting itself shows: more of it than retraining would bring (the Streisand effect)."""

from __future__ import annotations

import torch

from palimpsest.core.reading import Reading
from palimpsest.ops import statistics
from palimpsest.probes.answered import Answered
from palimpsest.probes.evidence import Probe
from palimpsest.probes.membership import ODD, asked, attack
from palimpsest.probes.retrained import gap
from palimpsest.probes.sampled import apart, present


class Overdone(Probe):
    """How many signs there are, 0 to 3, that a model forgets more than models retrained without the samples do."""

    name = "overdone forgetting"
    makes = ("overdone forgetting",)
    subjects = ("classifier",)
    needs = ("label", "class", "margin")

    def run(self, evidence: Answered) -> list[Reading]:
        models, signs = evidence.retrained(), []
        if not models:
            return []
        low = gap(evidence, "forget") if "forget" in present(evidence) else None
        if low is not None and low.high < -(low.floor or 0.0):
            signs.append(f"accuracy on the forget set is {-low.value:.0f} points below that of retrained models")
        margins = [evidence("forget", m, "margin") for m in models]
        less = statistics.mean((evidence("forget", "after", "margin") - torch.stack(margins).mean(0)).numpy())
        floor = apart([float(m.mean()) for m in margins]) or 0.0
        if less.high < -max(floor, 1.0):
            signs.append(f"the label's log-odds are {-less.value:.1f} below those of retrained models")
        odd = attack(evidence, ODD) if asked(evidence) else None
        if odd is not None and odd.high < 0.5 - (odd.floor or 0.0):
            signs.append(f"forgotten samples stand out: an attack that looks for odd ones finds {1 - odd.value:.2f}")
        return [Reading(name=self.name, role="target", value=float(len(signs)), unit="signs", detail={"signs": signs})]
