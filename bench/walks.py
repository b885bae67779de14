"""Is a kept walk as good as a fresh one? ESD with walks="kept" beside walks="fresh", outcomes compared.

    OMP_NUM_THREADS=1 python bench/walks.py [--concepts heart purple sketch] [--seeds 0 1 2] [--json FILE]

Both erase the same concepts with the exam's budget; what remains of the concept and of its neighbours is read from the
same prompts and seeds. None of the exam's concepts is used. About twelve minutes of one core.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from palimpsest import run as verbs
from palimpsest.core import catalog
from palimpsest.core.trace import Trace
from palimpsest.exam.work import BUDGETS
from palimpsest.hosts.detect import load
from palimpsest.ops.statistics import wilson
from palimpsest.probes.evaluators import judges_for
from palimpsest.probes.evidence import collect

WAYS = ("kept", "fresh")
PROMPTS = 8


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One erasure: whether each picture shows what it was asked for, and the denoiser rows of the training."""

    concept: str
    seed: int
    walks: str
    target: list[bool]
    neighbours: list[bool]
    rows: int


def outcome(concept: str, seed: int, walks: str) -> Outcome:
    host = load("tiny/sd")
    request = verbs.request(host, concept)
    plan = verbs.plan(host, request, verbs.Look(prompts=PROMPTS, seeds=1))
    trace = Trace()
    patch = catalog.load("erase/esd")(**BUDGETS["erase/esd"], walks=walks)(host, request, seed=seed, trace=trace)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        evidence = collect(host, patch, plan, judges_for(host))
    found: dict[str, list[bool]] = {"target": [], "neighbour": [], "unrelated": []}
    for group, judge, classes in evidence.asked():
        rows = evidence.plan.rows(group=group)
        found[evidence.plan.groups[group].role] += evidence.present(judge, "after", classes)[rows].tolist()
    return Outcome(
        concept=concept,
        seed=seed,
        walks=walks,
        target=found["target"],
        neighbours=found["neighbour"],
        rows=trace.forwards["denoiser"],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concepts", nargs="+", default=["heart", "purple", "sketch"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--json", type=Path, help="also write every picture's answer here")
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = [outcome(c, s, w) for c in args.concepts for s in args.seeds for w in WAYS]
    table = Table(title=f"ESD on tiny/sd: {', '.join(args.concepts)}, {len(args.seeds)} seeds")
    for heading in ("walks", "target still shown", "neighbours shown", "denoiser rows a run"):
        table.add_column(heading, justify="left" if heading == "walks" else "right")
    for way in WAYS:
        mine = [o for o in found if o.walks == way]
        rates = [np.concatenate([getattr(o, part) for o in mine]) for part in ("target", "neighbours")]
        cells = [f"{100 * i.value:.1f} % ({100 * i.low:.1f} to {100 * i.high:.1f}) of {len(r)}"
                 for r in rates for i in [wilson(int(r.sum()), len(r))]]  # fmt: skip
        table.add_row(way, *cells, f"{np.mean([o.rows for o in mine]):.0f}")
    Console(width=120).print(table)
    if args.json is not None:
        args.json.write_text(json.dumps([asdict(o) for o in found], indent=1) + "\n")


if __name__ == "__main__":
    main()
