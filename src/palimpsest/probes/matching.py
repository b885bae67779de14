"""How well pictures match the texts that they were drawn of: the CLIP score, before and after."""

from __future__ import annotations

import torch
from scipy import stats

from palimpsest.core.reading import Change, Reading
from palimpsest.ops import statistics
from palimpsest.probes.drawn import MATCH, Drawn
from palimpsest.probes.evidence import Probe

SCORE = "CLIP score"
_FLIPS = 999


class Matching(Probe):
    """Mean of 100 max(cosine, 0) of pictures and their prompts (Hessel et al. 2021, without their 2.5), by role.

    Interval: BCa bootstrap over pictures, of the same-seed change as well. Floor: how far two seed sets of the
    untouched model lie apart. p: random signs of the same-seed differences (999). For each evaluator that matches
    pictures with texts; the empty prompt says nothing and is left out.
    """

    name = "matching"
    makes = (SCORE,)
    subjects = ("generator",)
    needs = (MATCH,)

    def run(self, evidence: Drawn) -> list[Reading]:
        """One reading for each role, or file of prompts, and evaluator."""
        looks = evidence.plan.looks
        found, level = [], 1 - (1 - statistics.LEVEL) / looks
        for judge in (name for name in evidence.evaluators if evidence.has("before", name, MATCH)):
            score = {w: 100 * evidence(w, judge, MATCH).clamp(min=0) for w in ("before", "after", "other")}
            for role, name, rows, twins in evidence.plan.scopes():
                if role == "empty" or len(rows) < 2:
                    continue
                before, after = score["before"][rows], score["after"][rows]
                whole, change = (statistics.mean(x.numpy(), level) for x in (after, after - before))
                apart = score["other"][twins] - score["before"][torch.tensor(evidence.plan.twins)[twins]]
                spread = float(apart.std()) / len(rows) ** 0.5 if len(apart) > 1 else None
                signs = torch.randint(0, 2, (_FLIPS, len(rows)), generator=torch.Generator().manual_seed(0)) * 2 - 1
                null = (signs.double() @ (after - before) / len(rows)).abs()
                p = (1 + int((null >= abs(change.value) - 1e-12).sum())) / (1 + _FLIPS)
                found.append(
                    Reading(
                        name=SCORE,
                        concept=name,
                        role=role,
                        value=round(whole.value, 3),
                        low=round(whole.low, 3),
                        high=round(whole.high, 3),
                        n=len(rows),
                        before=round(float(before.numpy().mean()), 3),
                        floor=None if spread is None else round(float(stats.norm.ppf((1 + level) / 2)) * spread, 3),
                        p=min(1.0, looks * p),
                        change=Change(**{k: round(v, 3) for k, v in change._asdict().items()}),
                        evaluator=evidence.evaluators[judge],
                    )
                )
        return found
