"""MACE's closed forms at the shapes of Stable Diffusion 1.4: seconds, memory and error beside the usual way.

    OMP_NUM_THREADS=1 python bench/mace.py [--concepts 10 100] [--usual 1] [--json FILE]

The 32 cross-attention key and value matrices are random, each concept has 30 sentences of 77 states, as in the
paper's code. The usual way keeps W v for every state and layer, sums each layer's Gram matrices in float32 and
inverts them; it is measured with few concepts, since 100 would take some 24 GiB, and grows linearly.
Errors are those of the changes of all layers against float64, relative; both ways are measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import torch
from closed_form import OUT, WIDTH, D, _give_back, states
from rich.console import Console
from rich.table import Table
from torch import Tensor

from palimpsest.core.delta import LowRank
from palimpsest.core.trace import _PeakMemory
from palimpsest.ops import closed_form
from palimpsest.ops.fusion import fuse, refine

SENTENCES = 30
RIDGE = 10.0
POOL = 8  # concepts whose states are drawn, beforehand; more concepts take them in turn


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line: seconds (wall, and the process's own), MiB; error against float64, where it was computed."""

    work: str
    way: str
    concepts: int
    seconds: float
    cpu: float
    mib: float
    error: float | None


@cache
def sentences(k: int) -> tuple[Tensor, Tensor]:
    """States of concept k's sentences and of the same words around its replacement, (2310, 768) each."""
    g = torch.Generator().manual_seed(k)
    return states(SENTENCES * WIDTH, g), states(SENTENCES * WIDTH, g)


def turns(n: int) -> list[int]:
    return [k % POOL for k in range(n)]


def lora(k: int) -> dict[str, LowRank]:
    """Concept k's rank-1 change of every layer."""
    g = torch.Generator().manual_seed(10_000 + k)
    return {
        f"layer{i:02}": LowRank(up=0.05 * torch.randn(o, 1, generator=g), down=0.05 * torch.randn(1, D, generator=g))
        for i, o in enumerate(OUT)
    }


def usual_refinement(weights: dict[str, Tensor], n: int) -> dict[str, Tensor]:
    """Every layer answers a concept's sentences as it answers their replacements."""
    return usual(weights, [(e, [v @ w.T for w in weights.values()]) for e, v in map(sentences, turns(n))])


def usual_fusion(weights: dict[str, Tensor], n: int) -> dict[str, Tensor]:
    """Every layer answers a concept's sentences as it does with that concept's own change, W + D_i."""
    changes = [lora(k) for k in range(n)]
    kept = [
        (sentences(k % POOL)[0], [sentences(k % POOL)[0] @ (w + c[m].up @ c[m].down).T for m, w in weights.items()])
        for k, c in enumerate(changes)
    ]
    return usual(weights, kept)


def usual(weights: dict[str, Tensor], kept: list[tuple[Tensor, list[Tensor]]]) -> dict[str, Tensor]:
    """From stored states and answers of every layer: a sum of Gram matrices and one float32 inverse a layer."""
    found = {}
    for i, (name, w) in enumerate(weights.items()):
        left, right = RIDGE * w, RIDGE * torch.eye(D)
        for e, values in kept:
            left, right = left + values[i].T @ e, right + e.T @ e
        found[name] = left @ torch.inverse(right) - w
    return found


def our_refinement(weights: dict[str, Tensor], n: int) -> dict[str, Tensor]:
    edit = refine(map(sentences, turns(n)), ridge=RIDGE)
    deltas = closed_form.edit_layers(weights, edit)
    return {name: deltas[name].dense(w.shape) for name, w in weights.items()}


def our_fusion(weights: dict[str, Tensor], n: int) -> dict[str, LowRank]:
    def edits() -> Iterator[tuple[Tensor, dict[str, LowRank]]]:
        yield from ((sentences(k % POOL)[0], lora(k)) for k in range(n))

    return fuse(edits(), ridge=RIDGE)


def exact(weights: dict[str, Tensor], n: int, *, fusion: bool) -> dict[str, Tensor]:
    """From the normal equations in float64, by an LU solve."""
    gram = RIDGE * torch.eye(D).double()
    cross = {name: torch.zeros(w.shape).double() for name, w in weights.items()}
    for k in range(n):
        e, v = (part.double() for part in sentences(k % POOL))
        gram += e.T @ e
        own = lora(k) if fusion else {}
        for name, w in weights.items():
            change = (own[name].up.double() @ own[name].down.double() @ e.T) if fusion else w.double() @ (v - e).T
            cross[name] += change @ e
    return {name: torch.linalg.solve(gram, c.T).T for name, c in cross.items()}


def measure(concepts: list[int], usual: int) -> list[Row]:
    g = torch.Generator().manual_seed(0)
    weights = {f"layer{i:02}": torch.randn(o, D, generator=g) / D**0.5 for i, o in enumerate(OUT)}
    rows: list[Row] = []
    for k in range(POOL):
        sentences(k)

    def add(work: str, way: str, n: int, run: Callable[[dict[str, Tensor], int], dict], truth: dict | None) -> None:
        _give_back()
        memory, start, own = _PeakMemory(), time.perf_counter(), time.process_time()
        found = run(weights, n)
        seconds, cpu, mib = time.perf_counter() - start, time.process_time() - own, (memory.peak() or 0) / 2**20
        error = _error(found, truth)
        rows.append(Row(work=work, way=way, concepts=n, seconds=seconds, cpu=cpu, mib=mib, error=error))

    for work, ours, theirs in (
        ("refinement", our_refinement, usual_refinement),
        ("fusion", our_fusion, usual_fusion),
    ):
        if usual:
            truth = exact(weights, usual, fusion=work == "fusion")
            add(work, "usual", usual, theirs, truth)
            add(work, "ours", usual, ours, truth)
            del truth
        for n in concepts:
            add(work, "ours", n, ours, None)
    return rows


def _error(found: dict, truth: dict | None) -> float | None:
    if truth is None:
        return None
    dense = {n: f.dense(truth[n].shape) if isinstance(f, LowRank) else f for n, f in found.items()}
    off = sum(float((dense[n].double() - t).square().sum()) for n, t in truth.items())
    return (off / sum(float(t.square().sum()) for t in truth.values())) ** 0.5


def show(rows: list[Row]) -> None:
    threads = torch.get_num_threads()
    table = Table(title=f"MACE's closed forms at SD 1.4's shapes, {SENTENCES} sentences a concept, {threads} thread(s)")
    for heading in ("work", "way", "concepts", "s", "cpu s", "MiB", "error of the edit"):
        table.add_column(heading, justify="left" if heading in ("work", "way") else "right")
    for r in rows:
        error = "" if r.error is None else f"{r.error:.1e}"
        table.add_row(r.work, r.way, str(r.concepts), f"{r.seconds:.2f}", f"{r.cpu:.2f}", f"{r.mib:.0f}", error)
    Console(width=100).print(table)
    for work in ("refinement", "fusion"):
        theirs = [r for r in rows if r.work == work and r.way == "usual"]
        if theirs:
            per = theirs[0].mib / theirs[0].concepts
            print(f"The usual {work} grows by {per:.0f} MiB a concept: {per * 100 / 1024:.1f} GiB for 100.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concepts", type=int, nargs="*", default=[10, 100])
    parser.add_argument("--usual", type=int, default=1, help="concepts for the usual way; 0 leaves it out")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = measure(args.concepts, args.usual)
    show(rows)
    if args.json is not None:
        args.json.write_text(json.dumps([asdict(r) for r in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
