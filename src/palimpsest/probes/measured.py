"""What is measured of edited pictures without asking what they show: persons, pixels outside, rebuilding, the truth."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from palimpsest.core.reading import Evaluator, Reading
from palimpsest.ops import statistics
from palimpsest.probes.edits import ROW, Edits
from palimpsest.probes.evidence import Probe

PERSON, OUTSIDE, RECONSTRUCTION, GAIN = "person", "outside", "reconstruction", "counterfactual gain"


class Person(Probe):
    """The mean cosine of persons before and after an edit, with its interval; before: that of the rebuilt pictures.

    `detail["other"]` is the mean cosine with the person of another picture of the folder, the other end of the scale;
    `detail["lost"]` counts pictures that are no nearer to their original than that.
    """

    name = "person"
    makes = (PERSON,)
    subjects = ("edited",)
    needs = ("person",)

    def run(self, evidence: Edits) -> list[Reading]:
        found = []
        for judge, evaluator in evidence.evaluators.items():
            if not evidence.has(ROW, judge, "person"):
                continue
            near, other = (evidence(ROW, judge, what) for what in ("person", "person_other"))
            rebuilt = evidence(ROW, judge, "person_rebuilt") if evidence.has(ROW, judge, "person_rebuilt") else None
            detail = {"other": round(float(other.mean()), 4), "lost": int((near <= other).sum())}
            reading = _mean(PERSON, near, before=rebuilt, evaluator=evaluator, detail=detail)
            found.append(replace(reading, low=max(-1.0, reading.low), high=min(1.0, reading.high)))
        return found


class Outside(Probe):
    """The mean change outside the region that may differ, in grey levels of 255, over pictures.

    `detail` has how many pictures are equal there to the bit, the worst picture's dB, and the mean share of a picture
    that may differ.
    """

    name = "outside"
    makes = (OUTSIDE,)
    subjects = ("edited",)
    needs = ("outside",)

    def run(self, evidence: Edits) -> list[Reading]:
        apart, region = evidence(ROW, "outside"), evidence(ROW, "region")
        some = region < 1
        if not bool(some.any()):
            return []
        detail = {
            "equal": int((evidence(ROW, "differing")[some] == 0).sum()),
            "worst dB": round(float(evidence(ROW, "decibels")[some].min()), 2),
            "region": round(float(region.mean()), 4),
        }
        return [_mean(OUTSIDE, apart[some], unit="grey levels", detail=detail)]


class Reconstruction(Probe):
    """The median dB of rebuilt pictures against the pictures: the same work with nothing asked, and so its floor.

    `detail["worst"]` is the lowest.
    """

    name = "reconstruction"
    makes = (RECONSTRUCTION,)
    subjects = ("edited",)
    needs = ("reconstruction",)

    def run(self, evidence: Edits) -> list[Reading]:
        dB = evidence(ROW, "reconstruction")
        detail = {"worst": round(float(dB.min()), 2)}
        value = round(float(dB.quantile(0.5)), 3)
        return [Reading(name=RECONSTRUCTION, value=value, n=len(dB), unit="dB", detail=detail)]


class Gain(Probe):
    """By how many dB edited pictures are nearer to the truth than the pictures before, on average; 0: leave it alone.

    The truth is the same picture with what was asked, where somebody can draw it. `detail["harmed"]` counts pictures
    that are further from it than before.
    """

    name = "gain"
    makes = (GAIN,)
    subjects = ("edited",)
    needs = ("gain",)

    def run(self, evidence: Edits) -> list[Reading]:
        gain = evidence(ROW, "gain")
        return [_mean(GAIN, gain, unit="dB", detail={"harmed": int((gain < 0).sum())})]


def _mean(
    name: str,
    values: Tensor,
    *,
    unit: str = "",
    before: Tensor | None = None,
    evaluator: Evaluator | None = None,
    detail: dict[str, float],
) -> Reading:
    value, low, high = statistics.mean(values.to(torch.float64).numpy())
    return Reading(
        name=name, value=round(value, 4), low=round(low, 4), high=round(high, 4), n=len(values), unit=unit,
        before=None if before is None else round(float(before.mean()), 4), evaluator=evaluator, detail=detail,
    )  # fmt: skip
