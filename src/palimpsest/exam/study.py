"""What all studies share: how one is described, its pictures, and the rates of its records."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from palimpsest.core.sampling import Sampling
from palimpsest.exam.pictures import BATCH
from palimpsest.ops import statistics
from palimpsest.ops.statistics import Interval

SEEDS = (0, 1, 2)
UNTOUCHED = "untouched"  # stands for a system: the model as it is
PLAIN = "plain fine-tuning"  # stands for a system: the same training without what the paper adds
STAND_INS = (UNTOUCHED, PLAIN)

Record = Mapping[str, Any]
Records = Mapping[str, Sequence[Record]]  # system -> one record a seed


@dataclass(frozen=True, kw_only=True)
class Study:
    """One comparison.

    Args:
        settings: what is measured; a change of it runs everything again.
        systems: what is compared, in the order of the table.
        examine: (system, seed) -> sets of bits, one bit a picture, by what the pictures are of.
        uses: modules of ops/ and train/ whose change runs everything again.
    """

    settings: Mapping[str, Any]
    systems: tuple[str, ...]
    examine: Callable[[str, int], dict[str, Any]]
    uses: tuple[str, ...] = ()


def pictures(host: Any, prompts: Sequence[str], seed: int, *, steps: int | None = None, negative: str = "") -> Any:
    """Images (n, 3, H, W) of a study's prompts, drawn in bfloat16 as all of the exam's pictures are."""
    import torch

    seeds = [20_000_000 + 100_000 * seed + i for i in range(len(prompts))]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return host.sample(prompts, seeds, Sampling(steps=steps, negative=negative), batch=BATCH).float()


def seen(host: Any, images: Any, concepts: Sequence[Any]) -> str:
    """One bit a picture: whether the world's oracle sees the concept that was asked for."""
    from palimpsest.probes.evaluators import classes_of, decide, judges_for

    judge = judges_for(host)[0]
    present = decide(judge.evaluator, judge.read(images))
    return "".join(str(int(present[i, classes_of(judge.evaluator, c)].any())) for i, c in enumerate(concepts))


def cost(patch: Any) -> dict[str, Any]:
    """Of making a patch."""
    return dict(patch.cost)


def by_system(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Those that have all seeds; one that refused has its words in their place."""
    found: dict[str, list[Record]] = {}
    for r in records:
        found.setdefault(r["system"], []).append(r)
    return {s: rs for s, rs in found.items() if len(rs) == len(SEEDS)}


def worked(by: Records, *systems: str) -> bool:
    """Whether all of these have all seeds and none refused."""
    return all(by.get(s) and not any("refused" in r for r in by[s]) for s in systems)


def rate(records: Sequence[Record], key: str) -> Interval:
    """Share of ones among all bits under a key, over all seeds."""
    every = "".join(r[key] for r in records)
    return statistics.wilson(every.count("1"), len(every))


def change(before: Sequence[Record], after: Sequence[Record], key: str) -> Interval:
    """Of the share of ones, picture by picture: the same prompts and seeds in both."""
    import numpy as np

    a, b = (np.array([int(x) for r in rs for x in r[key]], dtype=np.float64) for rs in (before, after))
    return statistics.paired(a, b)
