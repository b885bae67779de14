"""How far the pictures are from a folder of others that the user named, before and after, in features of a network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from palimpsest.core.reading import Change, Reading
from palimpsest.data.photos import Photos
from palimpsest.ops import statistics
from palimpsest.ops.distances import Compared, cubic, frechet_to, mmd_to, radial
from palimpsest.probes.distance import FEWEST, short, spread
from palimpsest.probes.drawn import MATCH, REFERENCE, Drawn
from palimpsest.probes.evaluators import Judge
from palimpsest.probes.evidence import Probe
from palimpsest.probes.plan import Others, Scope

FRECHET, KERNEL, CMMD = (f"{what} to the reference" for what in ("Frechet distance", "kernel distance", "CMMD"))


class Reference(Probe):
    """Distances between the pictures of a role, or of a file of prompts, and a reference folder, before and after.

    Frechet distance (what FID is in features of Inception), unbiased kernel distance (KID) and, in features of CLIP,
    CMMD. Intervals, of the change too: delete-a-block jackknife over the pictures and over the reference. Floor: how
    far two seed sets of the untouched model lie apart. p: Student's test of the change. A Frechet distance is biased
    upwards, more so the fewer pictures there are; `detail` says how many features it has.
    """

    name = "reference"
    makes = (FRECHET, KERNEL, CMMD)
    subjects = ("generator",)
    needs = ("features",)

    def run(self, evidence: Drawn) -> list[Reading]:
        """Up to three readings for each role or file and each network; none where no reference was given."""
        found, level = [], 1 - (1 - statistics.LEVEL) / evidence.plan.looks
        for judge in evidence.featured():
            if not evidence.has(REFERENCE, judge, "features"):
                continue
            photos = evidence(REFERENCE, judge, "features")
            for scope in evidence.plan.scopes():
                if len(scope.rows) < FEWEST:
                    continue
                rows = spread(scope.rows)
                pair = (evidence(which, judge, "features")[rows] for which in ("before", "after"))
                before, after = pair
                ways = {
                    FRECHET: frechet_to(before, after, photos, level),
                    KERNEL: mmd_to(before, after, photos, cubic, unbiased=True, level=level),
                }
                if evidence.has("before", judge, MATCH):
                    ways[CMMD] = mmd_to(before, after, photos, radial, unbiased=False, level=level)
                found += [_reading(evidence, name, judge, scope, len(rows), way) for name, way in ways.items()]
        return found


def _reading(evidence: Drawn, name: str, judge: str, scope: Scope, n: int, way: Compared) -> Reading:
    photos = evidence(REFERENCE, judge, "features")
    return Reading(
        name=name,
        concept=scope.name,
        role=scope.role,
        value=short(way.after.value),
        low=short(way.after.low),
        high=short(way.after.high),
        n=n,
        before=short(way.before.value),
        floor=short(way.floor),
        p=float(f"{min(1.0, evidence.plan.looks * way.p):.4g}"),
        change=Change(value=short(way.change.value), low=short(way.change.low), high=short(way.change.high)),
        evaluator=evidence.evaluators[judge],
        detail={"reference": len(photos), "features": photos.shape[1]},
    )


def others(photos: Photos | None) -> Others | None:
    """What the plan of an audit says of a reference folder."""
    if photos is None:
        return None
    return Others(name=photos.name, pictures=len(photos), found=photos.found, size=photos.size, sha256=photos.sha256)


def measured(photos: Photos | None, judges: Sequence[Judge]) -> dict[str, Tensor]:
    """The features of a reference folder's pictures by every judge that has any, as measures; nobody judges them."""
    if photos is None:
        return {}
    found = {}
    for judge in judges:
        parts = [judge.features(part.float() / 255).float().flatten(1).cpu() for part in photos.parts()]
        if (features := torch.cat(parts)).shape[1]:
            found[f"{REFERENCE}/{judge.evaluator.name}/features"] = features
    return found
