"""Whether the small models predict the large ones: ranks of systems here against published ranks.

The published numbers lie beside this file, each table with its source, the place in it and, for every column, the
reading of ours that it is held against.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata

from palimpsest.exam import record, tables
from palimpsest.exam.case import Record, exams
from palimpsest.exam.rates import rate
from palimpsest.exam.verbs import erase
from palimpsest.ops.statistics import Interval

FEWEST = 5  # systems in common; below it a rank correlation says nothing
# What is read of our records, and whether more of it is better.
READINGS = {
    "target": False,
    "paraphrase": False,
    "neighbours": True,
    "unrelated": True,
    "drift": False,
    "attack": False,
}
TABLES: Sequence[Mapping[str, Any]] = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
Values = Mapping[str, float]  # by system
Read = Mapping[tuple[str, str], Values]  # by reading and concept, "" for all concepts together


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of a published table, beside the reading and concept of ours that it is held against.

    high: whether more of it is better. values: by system, ours by their ids.
    """

    table: str
    theirs: str
    ours: str
    concept: str
    high: bool
    values: Values

    @property
    def key(self) -> tuple[str, str]:
        return self.ours, self.concept

    @property
    def reading(self) -> str:
        return f"{self.ours}, {self.concept or 'all concepts'}"


def columns(table: Mapping[str, Any]) -> Iterator[Column]:
    """The columns of a published table."""
    for i, told in enumerate(table["columns"]):
        values = {s: float(row[i]) for s, row in table["rows"].items() if row[i] is not None}
        yield Column(table=table["name"], **told, values=values)


# -- numbers ---------------------------------------------------------------------------------------------


def ours(results: Path, seed: int | None = None) -> Read:
    """Every reading of every concept by system, over all seeds or of one."""
    read: dict[tuple[str, str], dict[str, float]] = {}
    for system, records in record.complete(results, erase.EXAM).items():
        worked = [r for r in records if "groups" in r and seed in (None, r["seed"])]
        for concept in ("", *(c["concept"] for c in erase.CASES)):
            if chosen := [r for r in worked if concept in ("", r["case"]["concept"])]:
                for name, value in _readings(chosen).items():
                    read.setdefault((name, concept), {})[system] = value
    study = exams()["attack"]
    for system, records in record.complete(results, study).items() if seed is None else ():
        if "/" in system:
            read.setdefault(("attack", study.cases[0]["concept"]), {})[system] = rate(records, "attacked").value
    return read


def _readings(records: Sequence[Record]) -> dict[str, float]:
    """What `erase.summarise` says of records, without intervals, which only cost time here."""

    def share(role: str, which: str = "after") -> float:
        bits = "".join(g[which] for r in records for g in r["groups"] if g["role"] == role)
        return bits.count("1") / len(bits) if bits else float("nan")

    drifts = [n for r in records for n in r["numbers"] if (n["name"], n["role"]) == ("pixel drift", "unrelated")]
    values = {"target": share("target"), "paraphrase": share("paraphrase")}
    values |= {f"{r}s" if r[0] == "n" else r: share(r) - share(r, "before") for r in ("neighbour", "unrelated")}
    values |= {"drift": float(np.mean([n["value"] / n["floor"] for n in drifts if n["floor"]] or [np.nan]))}
    return {name: value for name, value in values.items() if value == value}


def spearman(x: Values, y: Values, *, resamples: int = 4000, turned: bool = False) -> Interval | None:
    """Spearman's rank correlation over the systems in common, with the percentile interval of a bootstrap over them.

    Resamples in which a side is equal have no ranks and are left out. None: fewer than FEWEST systems, or equal ones.

    Args:
        turned: more is better on one side and worse on the other.
    """
    common = [s for s in x if s in y]
    if len(common) < FEWEST:
        return None
    rows = np.vstack(
        [np.arange(len(common)), np.random.default_rng(0).integers(len(common), size=(resamples, len(common)))]
    )
    sides = (np.array([v[s] for s in common])[rows] for v in (x, y))
    a, b = (ranks - ranks.mean(1, keepdims=True) for ranks in (rankdata(side, axis=1) for side in sides))
    scale = np.sqrt((a * a).sum(1) * (b * b).sum(1))
    if scale[0] == 0:
        return None
    rho = (a * b).sum(1)[scale > 0] / scale[scale > 0] * (-1 if turned else 1)
    low, high = np.percentile(rho, [2.5, 97.5])
    return Interval(float(rho[0]), float(low), float(high))


def agreement(c: Column, read: Read, but: str = "", resamples: int = 4000) -> Interval | None:
    """How far a published column ranks the systems as we do, `but` left out: 1 the same way, -1 the other way round."""
    values = {s: v for s, v in c.values.items() if s != but}
    return spearman(values, read.get(c.key, {}), turned=c.high != READINGS[c.ours], resamples=resamples)


def repeat(c: Column, by_seed: Sequence[Read]) -> float:
    """How well our ranks of a column's systems repeat: the mean over pairs of seeds, stepped up (Spearman, Brown)."""
    sides = [{s: v for s, v in read.get(c.key, {}).items() if s in c.values} for read in by_seed]
    found = [rho.value for a, b in combinations(sides, 2) if (rho := spearman(a, b, resamples=1)) is not None]
    r = float(np.mean(found)) if found else float("nan")
    return max(0.0, len(sides) * r / (1 + (len(sides) - 1) * r)) if found and r > 0 else r


def without_one(c: Column, read: Read) -> tuple[str, float] | None:
    """The system without which agreement is highest, and how high; None where too few are left."""
    common = [s for s in c.values if s in read.get(c.key, {})]
    found = {s: rho.value for s in common if (rho := agreement(c, read, but=s, resamples=1)) is not None}
    return max(found.items(), key=lambda item: item[1], default=None)


# -- the page --------------------------------------------------------------------------------------------


def page(results: Path) -> str:
    """docs/systems/agreement.md."""
    read, by_seed = ours(results), [ours(results, seed) for seed in erase.EXAM.seeds]
    every = [c for table in TABLES for c in columns(table)]
    found = {id(c): agreement(c, read) for c in every}
    again = {id(c): repeat(c, by_seed) for c in every}
    pairs = [(a, b) for a, b in combinations(every, 2) if a.key == b.key]
    among = [
        (a, b, rho) for a, b in pairs if (rho := spearman(a.values, b.values, turned=a.high != b.high)) is not None
    ]
    rows, kinds = [], dict.fromkeys((c.ours, bool(c.concept)) for c in every)
    for kind in kinds:
        us = [rho.value for c in every if (c.ours, bool(c.concept)) == kind and (rho := found[id(c)]) is not None]
        them = [rho.value for a, b, rho in among if (a.ours, bool(a.concept)) == kind and a.table != b.table]
        self = [r for c in every if (c.ours, bool(c.concept)) == kind and (r := again[id(c)]) == r]
        named = "of the same kind" if kind[1] else "nudity or violence; ours: all concepts"
        rows.append(
            [kind[0], named, *(f"{np.mean(v):+.2f} ({len(v)})" if v else "cannot tell" for v in (us, them, self))]
        )
    heads = ["ours", "concepts", "ours with theirs", "theirs with theirs", "ours with itself"]
    parts = [tables.text(__file__, {"fewest": FEWEST}), tables.table(heads, rows), "## Column by column\n"]
    rows = []
    for c in every:
        n, less = sum(s in read.get(c.key, {}) for s in c.values), without_one(c, read)
        leave = "" if less is None else f"{less[1]:+.2f} without {tables.called(less[0])}"
        rows.append([c.table, c.theirs, c.reading, str(n), _said(found[id(c)]), leave, tables.number(again[id(c)])])
    heads = ["table", "theirs", "ours", "systems", "rank correlation", "highest without one", "ours with itself"]
    parts += [tables.table(heads, rows), "## Published ranks against each other\n"]
    rows = [[f"{a.table}: {a.theirs}", f"{b.table}: {b.theirs}", a.reading, _said(rho)] for a, b, rho in among]
    parts += [tables.table(["one", "another", "both are held against", "rank correlation"], rows)]
    return "\n".join([*parts, *(part for table in TABLES for part in _table(table, read))])


def _table(table: Mapping[str, Any], read: Read) -> list[str]:
    """A published table beside our readings, on the systems in common."""
    mine = list(columns(table))
    keys = {c.key: c.reading for c in mine}
    heads = ["system", *(f"theirs: {c.theirs}" for c in mine), *(f"ours: {reading}" for reading in keys.values())]
    sides = [*(c.values for c in mine), *(read.get(key, {}) for key in keys)]
    common = [s for s in table["rows"] if any(s in read.get(key, {}) for key in keys)]
    rows = [[tables.called(s), *(f"{v[s]:.4g}" if s in v else "" for v in sides)] for s in common]
    return [f"## {table['name']}\n", f"Source: <{table['source']}>; {table['at']}.\n", tables.table(heads, rows)]


def _said(rho: Interval | None) -> str:
    return "cannot tell" if rho is None else f"{rho.value:+.2f} ({rho.low:+.2f} to {rho.high:+.2f})"
