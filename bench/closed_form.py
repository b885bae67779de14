"""Closed-form edits at the real shapes of Stable Diffusion 1.4: seconds, memory, error, and the floor.

    OMP_NUM_THREADS=1 python bench/closed_form.py [--json FILE]

The 32 cross-attention key and value matrices (24,960 x 768 in all) are random; nothing else of the model exists.
Text states are collinear as real ones are: a large common part and little of their own. The floor is the counted
floating-point work at the speed of one large matrix product, measured in the same run just before. Seconds are the
best of `--repeats`; "cpu" is the process's own time, which other work on the machine does not lengthen.
"""

from __future__ import annotations

import argparse
import ctypes
import ctypes.util
import gc
import json
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from palimpsest.core.delta import Delta
from palimpsest.core.trace import _PeakMemory
from palimpsest.ops import closed_form

D, OUT = 768, (320,) * 10 + (640,) * 10 + (1280,) * 12
WIDTH = 77  # tokens of a prompt
ARTISTS = 1734  # the retain list of UCE's and RECE's scripts


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table. `target`: the seconds that we promised; `peer`: what the system's own code takes."""

    work: str
    seconds: float
    cpu: float
    floor: float
    mib: float
    error: float | None
    target: float | None
    peer: float | None


def states(n: int, generator: torch.Generator) -> Tensor:
    """(n, 768) like CLIP's: norm about 28, cosine about 0.8 to each other."""
    common = torch.randn(1, D, generator=torch.Generator().manual_seed(99))
    return common * 0.9 + torch.randn(n, D, generator=generator) * 0.45


def gemm_rate(dtype: torch.dtype) -> float:
    """Floating-point operations per second of a 1536^3 product, best of four."""
    a = torch.randn(1536, 1536, dtype=dtype)
    best = min(_seconds(lambda: a @ a)[1] for _ in range(4))  # the first warms up
    return 2 * 1536**3 / best


def _seconds(work: Callable[[], object]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def _give_back() -> None:
    """Returns freed memory to the system, so that the next peak counts all that the work takes (glibc only)."""
    gc.collect()
    libc = ctypes.util.find_library("c")
    if libc is not None and hasattr(ctypes.CDLL(libc), "malloc_trim"):
        ctypes.CDLL(libc).malloc_trim(0)


def flops_erase(n: int, rank: int) -> tuple[float, float]:
    """(float64, float32) operations of a solve and of its product with the layers, in the cheaper of both forms."""
    wide = 2 * n * D * D + D**3 / 3 + 2 * min(n, D) * D * D
    per_layer = sum(min(2 * o * D * rank if rank * (o + D) < o * D else 2 * o * D * D, 2 * o * D * D) for o in OUT)
    return wide, per_layer


def error(deltas: dict[str, Delta], weights: dict[str, Tensor], exact: Tensor) -> float:
    """Relative Frobenius error of all changes against float64."""
    off = norm = 0.0
    for name, w in weights.items():
        change = w.double() @ exact
        off += float((deltas[name].dense(w.shape).double() - change).square().sum())
        norm += float(change.square().sum())
    return (off / norm) ** 0.5


def exact_edit(e: Tensor, v: Tensor, keep: Tensor, keep_weight: float, ridge: float) -> Tensor:
    """S from the normal equations in float64, by an LU solve instead of Cholesky factors."""
    e, v = e.double(), v.double()
    a = e.T @ e + keep_weight * keep + ridge * torch.eye(D, dtype=torch.float64)
    return torch.linalg.solve(a, e.T @ (v - e)).T


def measure(repeats: int) -> list[Row]:
    generator = torch.Generator().manual_seed(0)
    weights = {f"layer{i:02}": torch.randn(o, D, generator=generator) / D**0.5 for i, o in enumerate(OUT)}
    fast, wide = gemm_rate(torch.float32), gemm_rate(torch.float64)
    rows: list[Row] = []

    def add(
        work: str,
        run: Callable[[], object],
        flops: tuple[float, float],
        *,
        check: Callable[[object], float] | None = None,
        target: float | None = None,
        peer: float | None = None,
    ) -> None:
        run()
        times = [_seconds(run) for _ in range(repeats)]
        _give_back()
        memory = _PeakMemory()
        result = run()
        rows.append(
            Row(
                work=work,
                seconds=min(t[0] for t in times),
                cpu=min(t[1] for t in times),
                floor=flops[0] / wide + flops[1] / fast,
                mib=(memory.peak() or 0) / 2**20,
                error=check(result) if check else None,
                target=target,
                peer=peer,
            )
        )

    artists = states(ARTISTS, generator)
    add(f"retain Gram, {ARTISTS} prompts (cached)", lambda: closed_form.gram(artists), (2 * ARTISTS * D * D, 0))
    keep = closed_form.gram(artists)
    promised = {1: (0.3, 2.2), 10: (0.3, 2.0), 100: (0.4, 3.6), 1000: (0.8, 36.8)}
    for n, (target, peer) in promised.items():
        e, v = states(n, generator), states(1, generator).expand(n, D).contiguous()

        def uce(e: Tensor = e, v: Tensor = v) -> dict[str, Delta]:
            return closed_form.edit_layers(weights, closed_form.erase(e, v, keep=keep))

        exact = exact_edit(e, v, keep, 1.0, 0.5)
        add(
            f"UCE, {n} concepts",
            uce,
            flops_erase(n, min(n, D)),
            check=lambda found, exact=exact: error(found, weights, exact),  # type: ignore[misc]
            target=target,
            peer=peer,
        )
    _measure_rece(add, weights, generator)
    return rows


def _measure_rece(add: Callable[..., None], weights: dict[str, Tensor], generator: torch.Generator) -> None:
    n = 10 * WIDTH
    e, v = states(n, generator), states(WIDTH, generator).repeat(10, 1)
    kept = states(n, generator)
    g_flops = sum(OUT) * D * D

    def edit() -> dict[str, Delta]:
        keep = closed_form.gram(kept)
        return closed_form.edit_layers(weights, closed_form.erase(e, v, keep=keep, keep_weight=0.1, ridge=0.1))

    exact = exact_edit(e, v, closed_form.gram(kept), 0.1, 0.1)
    solve, product = flops_erase(n, D)
    flops = (solve + 2 * n * D * D, product)
    check = lambda found: error(found, weights, exact)  # noqa: E731
    add("RECE's edit, 10 concepts x 77 tokens, 10 kept", edit, flops, check=check, target=0.5, peer=175.0)
    add("RECE's Gram of the layers (once a model)", lambda: closed_form.layers_gram(weights.values()), (g_flops, 0))
    reads, keep = closed_form.layers_gram(weights.values()), closed_form.gram(kept)
    first = closed_form.erase(e, v, keep=keep, keep_weight=0.1, ridge=0.1)

    def one_round() -> closed_form.StateEdit:
        revived = closed_form.mimic(e, reads, first, ridge=1e-3)
        return first.then(closed_form.erase(revived, v, keep=keep, keep_weight=0.1, ridge=0.1))

    round_flops = (solve + 4 * D**3 + D**3 / 3 + 4 * n * D * D + 2 * D**3, 0)
    add("RECE, each further round", one_round, round_flops, peer=8.0 + 175.0)


def show(rows: list[Row]) -> None:
    table = Table(title=f"Closed forms at SD 1.4's shapes, {torch.get_num_threads()} thread(s), {platform.machine()}")
    for heading in ("work", "s", "cpu s", "floor s", "promised s", "peer s", "MiB", "error of the edit"):
        table.add_column(heading, justify="left" if heading == "work" else "right")
    for r in rows:
        table.add_row(
            r.work,
            f"{r.seconds:.3f}",
            f"{r.cpu:.3f}",
            f"{r.floor:.3f}",
            "" if r.target is None else f"{r.target:g}",
            "" if r.peer is None else f"{r.peer:g}",
            f"{r.mib:.0f}",
            "" if r.error is None else f"{r.error:.1e}",
        )
    Console(width=120).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="also write the rows here")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = measure(args.repeats)
    show(rows)
    if args.json is not None:
        args.json.write_text(json.dumps([asdict(r) for r in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
