"""Many people at once: MACE beside ESD and UCE on the small portrait model, erased and kept people counted.

    OMP_NUM_THREADS=1 python bench/many.py [--people 32] [--systems erase/mace erase/esd erase/uce] [--json FILE]

Half of the model's named people are erased in one request, the others are kept or only watched. Every person is asked
for `--pictures` times before and after; the world's own oracle says who is in the picture. ESD gets as many training
rows as MACE's LoRAs together. About five minutes of one core.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from palimpsest import run as verbs
from palimpsest.core import catalog
from palimpsest.core.concept import Concept, Request
from palimpsest.core.trace import Trace
from palimpsest.exam import budgets
from palimpsest.hosts.load import load
from palimpsest.probes.evaluators import classes_of, decide, judges_for
from palimpsest.worlds import concepts as words

KEPT = 8  # of the people who stay, how many are named in the request; the rest are only watched


@dataclass(frozen=True, kw_only=True)
class Row:
    """Shares of pictures that show the person asked for, and what the erasure cost."""

    system: str
    erased: float
    kept: float
    watched: float
    seconds: float
    forwards: int


def people(host: Any, n: int) -> tuple[list[Concept], list[Concept]]:
    """n people to erase and those who stay, from the model's world, in turn."""
    world = words.world_of(host.folder)
    assert world is not None, "the portrait model comes with its world"
    names = sorted({"Nia", *words.siblings(world, "Nia")})
    everyone = list(verbs.concepts(host, names))
    erased = everyone[: 2 * n : 2] if 2 * n <= len(everyone) else everyone[:n]
    return erased, [c for c in everyone if c not in erased]


def shown(host: Any, judge: Any, who: list[Concept], pictures: int) -> Tensor:
    """(people,) share of pictures that show the person asked for."""
    prompts = [c.prompts[0] for c in who for _ in range(pictures)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        images = host.sample(prompts, list(range(len(prompts))), batch=40)
    present = decide(judge.evaluator, judge.read(images))  # (n, classes)
    found = [present[i * pictures : (i + 1) * pictures][:, classes_of(judge.evaluator, c)].any(1).float().mean()
             for i, c in enumerate(who)]  # fmt: skip
    return torch.stack(found)


def settings(system: str, n: int) -> dict[str, Any]:
    """The exam's budget; a system that trains once for all concepts gets the training rows of n."""
    own = budgets.parameters(system, "")
    if system == "erase/esd":
        each = budgets.parameters("erase/mace", "")
        rows = n * each.get("steps", 50) * each.get("batch", 1)
        own["steps"] = max(own.get("steps", 1), rows // own.get("batch", 1))
    if system == "erase/mace":
        own |= {"pictures": 4, "walk_steps": 15}
    return own


def measure(n: int, systems: list[str], pictures: int) -> list[Row]:
    host = load("tiny/portraits")
    judge = judges_for(host)[0]
    erased, others = people(host, n)
    kept, watched = others[:KEPT], others[KEPT : KEPT + n]

    def row(system: str, trace: Trace) -> Row:
        shares = [float(shown(host, judge, who, pictures).mean()) for who in (erased, kept, watched)]
        return Row(
            system=system,
            erased=shares[0],
            kept=shares[1],
            watched=shares[2],
            seconds=trace.seconds,
            forwards=trace.forwards.get("denoiser", 0),
        )

    rows = [row("untouched", Trace())]
    for system in systems:
        trace = Trace()
        patch = catalog.load(system)(**settings(system, n))(
            host, Request(target=tuple(erased), keep=tuple(kept)), trace=trace
        )
        with patch.applied(host):
            rows.append(row(system, trace))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--people", type=int, default=32)
    parser.add_argument("--pictures", type=int, default=2)
    parser.add_argument("--systems", nargs="+", default=["erase/mace", "erase/esd", "erase/uce"])
    parser.add_argument("--json", type=Path, help="also write the rows here")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = measure(args.people, args.systems, args.pictures)
    table = Table(title=f"{args.people} people erased at once, {args.pictures} pictures of each person")
    for heading in ("system", "erased still shown", "kept shown", "watched shown", "s", "forwards"):
        table.add_column(heading, justify="left" if heading == "system" else "right")
    for r in rows:
        shares = [f"{100 * share:.0f} %" for share in (r.erased, r.kept, r.watched)]
        table.add_row(r.system, *shares, f"{r.seconds:.0f}", str(r.forwards))
    Console(width=110).print(table)
    if args.json is not None:
        args.json.write_text(json.dumps([asdict(r) for r in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
