"""Is one setting of an erasing system as good as another? Both erase the same concepts; outcomes stand side by side.

    OMP_NUM_THREADS=1 python bench/choices.py erase/esd walks=kept walks=fresh
    OMP_NUM_THREADS=1 python bench/choices.py erase/concept_ablation prompts=0,pictures=32 prompts=90,pictures=96

Everything else is the exam's budget; what remains of the concept and of its neighbours is read from the same prompts
and seeds. None of the exam's concepts may be used. A minute or two of one core for each.
"""

from __future__ import annotations

import argparse
import ast
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from palimpsest import run as verbs
from palimpsest.core import catalog
from palimpsest.core.trace import Trace
from palimpsest.exam import budgets
from palimpsest.exam.verbs.erase import CASES
from palimpsest.hosts.load import load
from palimpsest.ops.statistics import wilson
from palimpsest.probes.drawn import collect
from palimpsest.probes.evaluators import judges_for

PROMPTS = 8


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One erasure: whether each picture shows what it was asked for, and the denoiser rows of the training."""

    setting: str
    concept: str
    seed: int
    target: list[bool]
    neighbours: list[bool]
    rows: int


def outcome(system: str, setting: str, concept: str, seed: int) -> Outcome:
    host = load("tiny/portraits" if concept[0].isupper() else "tiny/sd")
    request = verbs.request(host, concept)
    plan = verbs.plan(host, request, verbs.Look(prompts=PROMPTS, seeds=1))
    trace = Trace()
    method = catalog.load(system)(**{**budgets.parameters(system, concept), **fields(setting)})
    patch = method(host, request, seed=seed, trace=trace)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        evidence = collect(host, patch, plan, judges_for(host))
    found: dict[str, list[bool]] = {"target": [], "neighbour": [], "unrelated": []}
    for group, judge, classes in evidence.asked():
        rows = evidence.plan.rows(group=group)
        found[evidence.plan.groups[group].role] += evidence.present(judge, "after", classes)[rows].tolist()
    return Outcome(
        setting=setting,
        concept=concept,
        seed=seed,
        target=found["target"],
        neighbours=found["neighbour"],
        rows=trace.forwards["denoiser"],
    )


def fields(setting: str) -> dict[str, Any]:
    """ "walks=kept,steps=100" -> {"walks": "kept", "steps": 100}."""
    found = {}
    for part in setting.split(","):
        name, _, value = part.partition("=")
        try:
            found[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[name] = value
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("system")
    parser.add_argument("settings", nargs="+", help="field=value[,field=value ...]")
    parser.add_argument("--concepts", nargs="+", default=["heart", "purple", "sketch"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--json", type=Path, help="also write every picture's answer here")
    args = parser.parse_args()
    if taken := {case["concept"] for case in CASES} & set(args.concepts):
        parser.error(f"{', '.join(sorted(taken))}: the exam's concepts are not for choosing settings on")
    torch.set_num_threads(1)
    found = [outcome(args.system, s, c, seed) for c in args.concepts for seed in args.seeds for s in args.settings]
    table = Table(title=f"{args.system}: {', '.join(args.concepts)}, {len(args.seeds)} seeds")
    for heading in ("setting", "target still shown", "neighbours shown", "denoiser rows a run"):
        table.add_column(heading, justify="left" if heading == "setting" else "right")
    for setting in args.settings:
        mine = [o for o in found if o.setting == setting]
        rates = [np.concatenate([getattr(o, part) for o in mine]) for part in ("target", "neighbours")]
        cells = [f"{100 * i.value:.1f} % ({100 * i.low:.1f} to {100 * i.high:.1f}) of {len(r)}"
                 for r in rates for i in [wilson(int(r.sum()), len(r))]]  # fmt: skip
        table.add_row(setting, *cells, f"{np.mean([o.rows for o in mine]):.0f}")
    Console(width=120).print(table)
    if args.json is not None:
        args.json.write_text(json.dumps([asdict(o) for o in found], indent=1) + "\n")


if __name__ == "__main__":
    main()
