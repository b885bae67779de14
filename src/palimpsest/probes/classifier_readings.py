"""What a classifier forgot, kept and still betrays, beside models that never saw it. Pure functions of what is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from palimpsest.core.reading import Reading
from palimpsest.ops import membership, statistics
from palimpsest.ops.statistics import Interval
from palimpsest.probes.classifier_evidence import ClassifierEvidence

PARTS = {"forget": "forget set", "retain": "retain set", "test": "held-out, kept classes"}
BACK = 0.95  # of the untouched model's accuracy: the forgotten samples count as learned again
SHOWN_CLASSES = 40  # more are too many for a confusion table
ALARMS = tuple(i / 20 for i in range(21))


def classifier_readings(evidence: ClassifierEvidence) -> list[Reading]:
    """Every reading that follows from the kept measures, in the order in which a receipt tells them."""
    gaps, attacks = _gaps(evidence), _memberships(evidence)
    return [
        *_accuracies(evidence),
        *gaps,
        *attacks,
        *_agreements(evidence),
        *_divergences(evidence),
        *_traces(evidence),
        *_relearning(evidence),
        *_overdone(evidence, gaps, attacks),
        *_classes(evidence),
    ]


def rows_of(evidence: ClassifierEvidence, part: str) -> Tensor:
    """(n,) bool: which samples of a part an accuracy is of; of held-out ones those of kept classes."""
    labels = evidence(part, "label")
    lost = torch.isin(labels, torch.tensor(evidence.gone, dtype=torch.float64))
    return ~lost if part == "test" else torch.ones(len(labels), dtype=torch.bool)


def _accuracies(evidence: ClassifierEvidence) -> list[Reading]:
    """Accuracy before and after: Wilson's interval, Tango's for the change, McNemar's p, floor between retrainings."""
    return [
        _accuracy(evidence, part, rows_of(evidence, part), what, "target" if part == "forget" else "unrelated")
        for part, what in PARTS.items()
        if evidence.has(part, "label") and bool(rows_of(evidence, part).any())
    ]


def _accuracy(evidence: ClassifierEvidence, part: str, rows: Tensor, what: str, role: str) -> Reading:
    before, after = (evidence.hits(part, m)[rows] for m in ("before", "after"))
    rate, change = statistics.wilson(int(after.sum()), len(after)), statistics.paired(before.numpy(), after.numpy())
    never = [_percent(float(evidence.hits(part, m)[rows].double().mean())) for m in evidence.retrained()]
    detail: dict[str, Any] = {"change": {k: _percent(v) for k, v in change._asdict().items()}}
    if never:
        detail["retrained"] = never
    return Reading(
        name="accuracy",
        concept=what,
        role=role,
        value=_percent(rate.value),
        low=_percent(rate.low),
        high=_percent(rate.high),
        n=len(after),
        unit="%",
        higher_is_better=role != "target",
        before=_percent(float(before.double().mean())),
        floor=_apart(never),
        p=float(f"{statistics.mcnemar(before.numpy(), after.numpy()):.4g}"),
        detail=detail,
    )


def _gaps(evidence: ClassifierEvidence) -> list[Reading]:
    """Accuracy less the mean accuracy of retrained models, in points; bootstrap over samples."""
    found = []
    for part, what in PARTS.items():
        if not (evidence.retrained() and evidence.has(part, "label")) or not bool(rows_of(evidence, part).any()):
            continue
        rows = rows_of(evidence, part)
        never = torch.stack([evidence.hits(part, m)[rows].double() for m in evidence.retrained()])
        gap = statistics.mean((evidence.hits(part, "after")[rows].double() - never.mean(0)).numpy())
        base = float((evidence.hits(part, "before")[rows].double() - never.mean(0)).mean())
        found.append(
            _reading("gap to retrained models", what, gap, len(rows), unit="points", scale=100.0, before=100 * base,
                     floor=_apart([_percent(x) for x in never.mean(1).tolist()]))
        )  # fmt: skip
    return found


def _memberships(evidence: ClassifierEvidence) -> list[Reading]:
    """How well an attack tells forgotten samples from held-out ones of their kind: 0.5 is not at all."""
    if not evidence.has("test", "like") or int(evidence("test", "like").sum()) < 2:
        return []
    found = [_attack(evidence, s) for s in ("margin", "entropy", "modified entropy")]
    return found + ([_attack(evidence, "likelihood ratio")] if evidence.retrained() else [])


def _attack(evidence: ClassifierEvidence, score: str) -> Reading:
    def both(model: str) -> tuple[Tensor, Tensor]:
        return _scores(evidence, "forget", model, score), _scores(evidence, "test", model, score)

    members, others = both("after")
    never = [both(m) for m in evidence.retrained() if score != "likelihood ratio" or len(evidence.retrained()) > 1]
    guess = membership.balanced_accuracy(members, others)
    alarms = torch.tensor(ALARMS)
    series = [("before", [both("before")]), ("after", [(members, others)]), ("retrained", never)]
    curve = {
        "x": [100 * a for a in ALARMS],
        "x_label": "held-out samples taken for training samples, %",
        "y_label": "forgotten samples found, %",
        "series": [
            {"name": n, "y": [_percent(float(y)) for y in _mean_curve(pairs, alarms)]} for n, pairs in series if pairs
        ],
    }
    areas = [membership.auc(*pair).value for pair in never]
    detail: dict[str, Any] = {
        "balanced accuracy": {k: _round(v) for k, v in guess._asdict().items()},
        "held-out samples": len(others),
        "retrained": [_round(a) for a in areas],
    }
    if score == "modified entropy":
        detail["curve"] = curve
    name = "confidence" if score == "margin" else score
    return _reading(
        "membership", name, membership.auc(members, others), len(members), detail=detail, role="target",
        before=membership.auc(*both("before")).value, floor=_apart(areas), better=False,
    )  # fmt: skip


def _scores(evidence: ClassifierEvidence, part: str, model: str, score: str) -> Tensor:
    rows = evidence("test", "like").bool() if part == "test" else slice(None)
    if score != "likelihood ratio":
        return evidence(part, model, score)[rows]
    outs = torch.stack([evidence(part, m, "margin") for m in evidence.retrained() if m != model])
    # Samples on both sides are new to the references, so the attack is the offline one; with so few of them the
    # spread is one number for all samples, which changes no order: it is left out.
    return (evidence(part, model, "margin") - outs.mean(0))[rows]


def _mean_curve(pairs: Sequence[tuple[Tensor, Tensor]], alarms: Tensor) -> list[float]:
    return torch.stack([membership.found_at(m, o, alarms) for m, o in pairs]).mean(0).tolist()


def _agreements(evidence: ClassifierEvidence) -> list[Reading]:
    """Share of samples on which a model answers as a retrained one does, mean over the retrained ones."""
    found = []
    for part, what in PARTS.items():
        if not (evidence.retrained() and evidence.has(part, "label")):
            continue
        said = [evidence(part, m, "class") for m in evidence.retrained()]
        after, before = (
            torch.stack([(evidence(part, m, "class") == s).double() for s in said]).mean(0) for m in ("after", "before")
        )
        between = [float((a == b).double().mean()) for a, b in combinations(said, 2)]
        detail = {"between retrained models": [_percent(x) for x in between]}
        role = "target" if part == "forget" else "unrelated"
        what = "held-out set" if part == "test" else what
        found.append(
            _reading("agreement with retrained models", what, statistics.mean(after.numpy()), len(after), unit="%",
                     scale=100.0, before=100 * float(before.mean()), detail=detail, role=role, better=True)
        )  # fmt: skip
    return found


def _divergences(evidence: ClassifierEvidence) -> list[Reading]:
    """KLoM of margins to those of the retrained models, mean over samples; floor: one retrained model to the others."""
    models, found = evidence.retrained(), []
    for part, what in PARTS.items():
        if len(models) < 2 or not evidence.has(part, "label"):
            continue
        margins = {m: evidence(part, m, "margin")[None] for m in ("before", "after", *models)}

        def of(model: str, margins: dict[str, Tensor] = margins) -> Tensor:
            return membership.margin_divergence(margins[model], torch.cat([margins[m] for m in models if m != model]))

        worst = max(float(of(m).mean()) for m in models) if len(models) > 2 else None
        each, role = of("after"), "target" if part == "forget" else "unrelated"
        detail = {"of 100 samples, the 95th": _round(float(each.quantile(0.95)))}
        what = "held-out set" if part == "test" else what
        found.append(
            _reading("divergence of margins", what, statistics.mean(each.numpy()), each.numel(), unit="nat", role=role,
                     before=float(of("before").mean()), floor=None if worst is None else _round(worst), detail=detail,
                     better=False)
        )  # fmt: skip
    return found


def _traces(evidence: ClassifierEvidence) -> list[Reading]:
    """Whether held-out samples of the forgotten classes still lie apart in the features: area under the curve."""
    found = []
    for name in ("linear probe", "centroids"):
        if not evidence.has("test", "after", name):
            continue
        lost = ~rows_of(evidence, "test")
        area = {
            m: membership.auc(evidence("test", m, name)[lost], evidence("test", m, name)[~lost])
            for m in ("before", "after", *evidence.retrained())
            if evidence.has("test", m, name)
        }
        never = [a.value for m, a in area.items() if m.startswith("retrained")]
        detail = {"retrained": [_round(x) for x in never]}
        found.append(
            _reading("trace in features", name, area["after"], int(lost.sum()), before=area["before"].value,
                     floor=_apart(never), detail=detail, role="target")
        )  # fmt: skip
    return found


def _relearning(evidence: ClassifierEvidence) -> list[Reading]:
    """Steps of fine-tuning on forgotten samples until the untouched model's accuracy on them is back."""
    if not evidence.has("relearn", "after"):
        return []
    goal = BACK * 100 * float(evidence.hits("forget", "before").double().mean())
    names = [m for m in ("after", "retrained 0") if evidence.has("relearn", m)]
    lines = {m: evidence("relearn", m).tolist() for m in names}
    steps = {m: next((i for i, y in enumerate(ys) if y >= goal), len(ys)) for m, ys in lines.items()}
    said = {"after": "edited", "retrained 0": "retrained"}
    detail: dict[str, Any] = {
        "goal": _round(goal),
        "budget": len(lines["after"]) - 1,
        "reached": steps["after"] < len(lines["after"]),
        "curve": {
            "x": list(range(len(lines["after"]))),
            "x_label": "steps of fine-tuning on forgotten samples",
            "y_label": "accuracy on them, %",
            "series": [{"name": said[m], "y": ys} for m, ys in lines.items()],
        },
    }
    if "retrained 0" in steps:
        detail["retrained"] = [steps["retrained 0"]]
    value = float(steps["after"])
    return [Reading(name="relearn time", role="target", value=value, n=1, unit="steps", before=0.0, detail=detail)]


def _overdone(evidence: ClassifierEvidence, gaps: Sequence[Reading], attacks: Sequence[Reading]) -> list[Reading]:
    """Forgetting that shows (the Streisand effect): how many of its signs are there, 0 to 3."""
    if not evidence.retrained():
        return []
    signs = []
    gap = next((r for r in gaps if r.concept == PARTS["forget"]), None)
    if gap is not None and gap.high < -(gap.floor or 0.0):
        signs.append(f"accuracy on the forget set is {-gap.value:.0f} points below that of retrained models")
    margins = [evidence("forget", m, "margin") for m in evidence.retrained()]
    less = statistics.mean((evidence("forget", "after", "margin") - torch.stack(margins).mean(0)).numpy())
    floor = _apart([float(m.mean()) for m in margins]) or 0.0
    if less.high < -max(floor, 1.0):
        signs.append(f"the label's log-odds are {-less.value:.1f} below those of retrained models")
    for r in attacks:
        if r.concept == "modified entropy" and r.high < 0.5 - (r.floor or 0.0):
            signs.append(f"forgotten samples stand out: an attack that looks for odd ones finds {1 - r.value:.2f}")
    detail = {"signs": signs}
    return [Reading(name="overdone forgetting", role="target", value=float(len(signs)), unit="signs", detail=detail)]


def _classes(evidence: ClassifierEvidence) -> list[Reading]:
    """Accuracy of each class on held-out samples, and where its samples go; p by Benjamini and Hochberg."""
    if not evidence.has("test", "label") or len(evidence.classes) > SHOWN_CLASSES:
        return []
    labels, found, tables = evidence("test", "label").long(), [], []
    present = [k for k in range(len(evidence.classes)) if bool((labels == k).any())]
    for k in present:
        role = "target" if k in evidence.gone else "unrelated"
        found.append(
            replace(_accuracy(evidence, "test", labels == k, evidence.classes[k], role), name="accuracy of a class")
        )
        share = {
            m: 100 * torch.bincount(evidence("test", m, "class").long()[labels == k], minlength=len(evidence.classes))
            / int((labels == k).sum())
            for m in ("before", "after")
        }  # fmt: skip
        change = share["after"] - share["before"]
        off = change.clone()
        off[k] = 0.0
        value = float(off[off.abs().argmax()])
        rows = {m: [_round(float(x)) for x in v] for m, v in (*share.items(), ("change", change))}
        detail = {"columns": list(evidence.classes), **rows}
        tables.append(
            Reading(name="confusion", concept=evidence.classes[k], role=role, value=_round(value),
                    n=int((labels == k).sum()), unit="points", detail=detail)
        )  # fmt: skip
    ps = statistics.benjamini_hochberg([r.p or 0.0 for r in found])
    return [replace(r, p=float(f"{p:.4g}")) for r, p in zip(found, ps, strict=True)] + tables


def _reading(
    name: str, concept: str, found: Interval, n: int, *, before: float, unit: str = "", scale: float = 1.0,
    floor: float | None = None, detail: dict[str, Any] | None = None, role: str = "all", better: bool | None = None,
) -> Reading:  # fmt: skip
    value, low, high = (_round(scale * x) for x in found)
    return Reading(
        name=name, concept=concept, role=role, value=value, low=low, high=high, n=n, unit=unit, before=_round(before),
        floor=floor, detail=detail or {}, higher_is_better=better,
    )  # fmt: skip


def _apart(values: Sequence[float]) -> float | None:
    """The noise floor: the largest difference between two retrained models; None where there are not two."""
    return _round(max(values) - min(values)) if len(values) > 1 else None


def _percent(x: float) -> float:
    return round(100 * x, 3)


def _round(x: float) -> float:
    return round(x, 4)
