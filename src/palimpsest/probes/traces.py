"""What is left of forgotten classes inside a classifier: in its features, and in how fast they come back."""

from __future__ import annotations

from palimpsest.core.reading import Curve, Reading, Series
from palimpsest.ops import membership
from palimpsest.probes.answered import Answered
from palimpsest.probes.evidence import Probe
from palimpsest.probes.sampled import apart, of_interval, short

BACK = 0.95  # of the untouched model's accuracy: the forgotten samples count as learned again
_CALLED = {"after": "edited", "retrained 0": "retrained"}


class FeatureTrace(Probe):
    """Area under the curve by which held-out samples of the forgotten classes still lie apart in the features: by a
    cross-fitted linear probe, and by distances from centroids. Interval: Newcombe's."""

    name = "trace in features"
    makes = ("trace in features",)
    subjects = ("classifier",)
    needs = ("label", "linear probe", "centroids")

    def run(self, evidence: Answered) -> list[Reading]:
        found = []
        for name in ("linear probe", "centroids"):
            if not evidence.has("test", "after", name):
                continue
            lost = ~evidence.known("test")
            area = {
                m: membership.auc(evidence("test", m, name)[lost], evidence("test", m, name)[~lost])
                for m in ("before", "after", *evidence.retrained())
                if evidence.has("test", m, name)
            }
            never = [a.value for m, a in area.items() if m.startswith("retrained")]
            found.append(
                of_interval(
                    self.name, name, area["after"], int(lost.sum()), before=area["before"].value, floor=apart(never),
                    references=tuple(short(x) for x in never), role="target",
                )
            )  # fmt: skip
        return found


class RelearnTime(Probe):
    """Steps of fine-tuning on forgotten samples until 95 % of the untouched model's accuracy on them is back."""

    name = "relearn time"
    makes = ("relearn time",)
    subjects = ("classifier",)
    needs = ("label", "class", "relearnt")

    def run(self, evidence: Answered) -> list[Reading]:
        lines = {
            m: evidence("relearning", m, "relearnt").tolist()
            for m in _CALLED
            if evidence.has("relearning", m, "relearnt")
        }
        if "after" not in lines:
            return []
        goal = BACK * 100 * float(evidence.hits("forget", "before").double().mean())
        steps = {m: next((i for i, y in enumerate(ys) if y >= goal), len(ys)) for m, ys in lines.items()}
        points = len(lines["after"])
        curve = Curve(
            x=tuple(range(points)),
            x_label="steps of fine-tuning on forgotten samples",
            y_label="accuracy on them, %",
            series=tuple(Series(name=_CALLED[m], y=tuple(ys)) for m, ys in lines.items()),
        )
        return [
            Reading(
                name=self.name,
                role="target",
                value=float(steps["after"]),
                n=1,
                unit="steps",
                before=0.0,
                references=(float(steps["retrained 0"]),) if "retrained 0" in steps else None,
                curve=curve,
                detail={"goal": short(goal), "budget": points - 1, "reached": steps["after"] < points},
            )
        ]
