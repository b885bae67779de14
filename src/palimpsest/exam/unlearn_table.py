"""The section of docs/systems.md on unlearning, generated from its results: gaps to retrain oracles, and verdicts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from palimpsest.core import catalog
from palimpsest.exam.summary import read
from palimpsest.exam.unlearn import CASES, SEEDS, UnlearnCase, number
from palimpsest.ops import statistics

CLOSE, COST, CHEAP = 5.0, 3.0, 1 / 20  # points on the forget set, points of held-out accuracy, of retraining's passes
FORGET_GAP = ("gap to retrained models", "forget set")
TEST_GAP = ("gap to retrained models", "held-out, kept classes")
COLUMNS = {
    "forget gap": FORGET_GAP,
    "held-out gap": TEST_GAP,
    "membership": ("membership", "modified entropy"),
    "likelihood ratio": ("membership", "likelihood ratio"),
    "agreement, forget": ("agreement with retrained models", "forget set"),
    "divergence, forget": ("divergence of margins", "forget set"),
    "probe": ("trace in features", "linear probe"),
}

HEAD = """## unlearn

Gaps are accuracies less the mean of {oracles} models retrained without the forgotten samples, in points; means of
{seeds} seeds with Student's interval. *Membership* and *likelihood ratio* are areas under the curve of attacks that
tell forgotten samples from held-out ones of their kind (0.5: a coin); *agreement* is the share of forgotten samples
that get a retrained model's answer, *divergence* that of the label's log-odds from theirs (nats), *probe* the area
of a linear probe for the forgotten classes in the features. *Passes* are forwards over the training set; *of
retraining* is their share of what training the model took. A system *holds* on a case where the forget gap is at
most {close:g} points and the held-out gap at most {cost:g} points; *overdone* means that forgetting itself shows.
Relearning is part of receipts, not of this table.
"""


def section(results: Path) -> str:
    """The whole section; "" where nothing was measured."""
    found = read(results, "unlearn")
    if not found:
        return ""
    parts = [HEAD.format(oracles=len(SEEDS), seeds=len(SEEDS), close=CLOSE, cost=COST), _claims(found)]
    for case in CASES:
        rows = {s: [r for r in records if r["case"] == _plain(case)] for s, records in found.items()}
        rows = {s: r for s, r in rows.items() if r}
        if rows:
            parts.append(_case(case, rows))
    return "\n".join(parts)


def verdict(records: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Of one system on one case: a word and its reason."""
    worked = [r for r in records if "numbers" in r]
    if not worked:
        return "refuses", str(records[0].get("refused", ""))
    forget, test = (_mean(worked, *k).value for k in (FORGET_GAP, TEST_GAP))
    over = sum((number(r, "overdone forgetting") or 0) > 0 for r in worked)
    why = []
    if abs(forget) > CLOSE:
        why.append(f"forget accuracy {abs(forget):.0f} points {'above' if forget > 0 else 'below'} retraining's")
    if test < -COST:
        why.append(f"held-out accuracy {-test:.0f} points below retraining's")
    if over:
        why.append(f"overdone in {over} of {len(worked)} runs")
    if len(worked) < len(SEEDS):
        why.append(f"{len(worked)} of {len(SEEDS)} seeds")
    fails = abs(forget) > CLOSE or test < -COST
    return ("fails" if fails else "holds"), "; ".join(why)


def _claims(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    cases = [c for c in CASES if any(r["case"] == _plain(c) for records in found.values() for r in records)]
    heads = [f"{c.task}, {c.kind}" for c in cases]
    lines = [
        "### Claims\n",
        "| system | the paper claims | " + " | ".join(heads) + " | share of retraining |",
        "|---" * (len(heads) + 3) + "|",
    ]
    for system, entry in catalog.entries().items():
        if not system.startswith("unlearn/"):
            continue
        records = found.get(system, [])
        cells = [f"[{entry.card.name}]({entry.card.paper}) `{system}`", entry.card.claim]
        for case in cases:
            mine = [r for r in records if r["case"] == _plain(case)]
            cells.append(f"**{verdict(mine)[0]}**" if mine else "not measured")
        costs = [r["cost"]["of_retraining"] for r in records if "cost" in r]
        cells.append(f"{min(costs):.3f} to {max(costs):.3f}" if costs else "")
        lines.append("| " + " | ".join(c.replace("|", "\\|").replace("\n", " ") for c in cells) + " |")
    return "\n".join(lines) + "\n"


def _case(case: UnlearnCase, rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    first = next((r for records in rows.values() for r in records if "numbers" in r), None)
    lines = [
        f"### {case.task}, {case.kind}\n",
        "| system | " + " | ".join(COLUMNS) + " | passes | of retraining | CPU seconds | verdict | why |",
        "|---" * (len(COLUMNS) + 6) + "|",
    ]
    if first is not None:
        before = [_number(number(first, *key, field="before")) for key in COLUMNS.values()]
        lines.append("| *untouched* | " + " | ".join(before) + " | | | | | |")
    for system, records in rows.items():
        word, why = verdict(records)
        worked = [r for r in records if "numbers" in r]
        cells = [_interval(_mean(worked, *key)) for key in COLUMNS.values()] if worked else [""] * len(COLUMNS)
        for field in ("passes", "of_retraining", "cpu_seconds"):
            cells.append(f"{np.mean([r['cost'][field] for r in worked]):.3g}" if worked else "")
        lines.append("| " + " | ".join([f"`{system}`", *cells, f"**{word}**", why.replace("|", "\\|")]) + " |")
    good = {
        s: float(np.mean([r["cost"]["of_retraining"] for r in records]))
        for s, records in rows.items()
        if verdict(records)[0] == "holds"
    }
    if good:
        best = min(good, key=lambda s: good[s])
        cheap = "at most" if good[best] <= CHEAP else "more than"
        lines.append(f"\nCheapest that holds: `{best}`, {good[best]:.3f} of retraining, {cheap} a twentieth.")
    return "\n".join(lines) + "\n"


def _mean(records: Sequence[Mapping[str, Any]], name: str, concept: str) -> statistics.Interval:
    values = [v for r in records if (v := number(r, name, concept)) is not None]
    return statistics.mean(values) if values else statistics.Interval(math.nan, math.nan, math.nan)


def _interval(x: statistics.Interval) -> str:
    if math.isnan(x.value):
        return ""
    return _number(x.value) + (f" ({_number(x.low)} to {_number(x.high)})" if math.isfinite(x.low) else "")


def _number(x: float | None) -> str:
    return "" if x is None else f"{x:.1f}" if abs(x) >= 10 else f"{x:.2f}"


def _plain(case: UnlearnCase) -> dict[str, Any]:
    return {"task": case.task, "request": case.request, "kind": case.kind}
