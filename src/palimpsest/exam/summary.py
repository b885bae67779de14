"""What a system's cases amount to: pooled rates with intervals, distances, cost."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from palimpsest.ops import statistics
from palimpsest.ops.statistics import Interval


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One system on one concept, or on all of them, over all seeds.

    Args:
        system: its id.
        concept: "" for all concepts together.
        target, before, oracle: rate in [0, 1] of pictures that show what was to go: edited, untouched, and drawn by
            a model that never saw it (None where there is none).
        paraphrase: the same of edited pictures that ask for it in other words (None where none were drawn).
        neighbours, unrelated: paired change of the rate of pictures that show what was asked for.
        drift: same-seed pixel distance of unrelated pictures, as a share of that between two seeds.
        gap: (edited, untouched) kernel distance of target pictures to those of the model that never saw it.
        seconds: the least over the runs, since other work on the machine only ever adds to it.
        forwards, peak_bytes: means over runs.
        sampling: rows through the denoiser for each picture that the edited model draws; None where not counted.
        runs: how many; refused: in which words it refused, if it did.
    """

    system: str
    concept: str
    kind: str
    target: Interval
    before: Interval
    oracle: Interval | None
    paraphrase: Interval | None
    neighbours: Interval
    unrelated: Interval
    drift: float
    gap: tuple[float, float] | None
    seconds: float
    forwards: int
    peak_bytes: int
    sampling: float | None
    runs: int
    refused: str = ""


def read(results: Path, family: str, part: str = "cases") -> dict[str, list[dict[str, Any]]]:
    """Every system's cases, or its interactions, by id."""
    files = sorted((results / family).glob("*.json"))
    found = {f"{family}/{f.stem}": json.loads(f.read_text(encoding="utf-8")).get(part) for f in files}
    return {system: records for system, records in found.items() if records}


def summarise(system: str, cases: Iterable[Mapping[str, Any]], concept: str = "") -> Summary | None:
    """Pools a system's cases about one concept, or all of them; None where there is none."""
    chosen = [c for c in cases if concept in ("", c["case"]["concept"])]
    worked = [c for c in chosen if "groups" in c]
    if not worked:
        return None
    target = _bits(worked, "target", "after")
    oracle, other_words = _bits(worked, "target", "oracle"), _bits(worked, "paraphrase", "after")
    gaps = [n for c in worked for n in c["numbers"] if n["name"].startswith("gap") and n["role"] == "target"]
    drifts = [
        n["value"] / n["floor"]
        for c in worked
        for n in c["numbers"]
        if n["name"] == "pixel drift" and n["role"] == "unrelated" and n["floor"]
    ]
    costs = [c["cost"] for c in worked]
    rows = [c["drawing"]["forwards"]["denoiser"] / c["drawing"]["pictures"] for c in worked if "drawing" in c]
    return Summary(
        system=system,
        concept=concept,
        kind=worked[0]["case"]["kind"] if concept else "",
        target=_rate(target),
        before=_rate(_bits(worked, "target", "before")),
        oracle=_rate(oracle) if len(oracle) else None,
        paraphrase=_rate(other_words) if len(other_words) else None,
        neighbours=statistics.paired(_bits(worked, "neighbour", "before"), _bits(worked, "neighbour", "after")),
        unrelated=statistics.paired(_bits(worked, "unrelated", "before"), _bits(worked, "unrelated", "after")),
        drift=float(np.mean(drifts)) if drifts else float("nan"),
        gap=(float(np.mean([g["value"] for g in gaps])), float(np.mean([g["before"] for g in gaps]))) if gaps else None,
        seconds=min(c["seconds"] for c in costs),
        forwards=round(float(np.mean([sum(c["forwards"].values()) for c in costs]))),
        peak_bytes=round(float(np.mean([c["peak_bytes"] or 0 for c in costs]))),
        sampling=float(np.mean(rows)) if rows else None,
        runs=len(worked),
        refused=next((c["refused"] for c in chosen if "refused" in c), ""),
    )


def _bits(cases: Iterable[Mapping[str, Any]], role: str, which: str) -> np.ndarray:
    rows = [g[which] for c in cases for g in c["groups"] if g["role"] == role and which in g]
    return np.array([int(b) for b in "".join(rows)], dtype=np.float64)


def _rate(bits: np.ndarray) -> Interval:
    return statistics.wilson(int(bits.sum()), len(bits))
