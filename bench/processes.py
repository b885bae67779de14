"""What a process is told at its start, and how many of them share the cores: seconds, with other work beside or not.

Each line is run in fresh processes, since threads and malloc are set up once:

- drawing pictures with tiny/sd by one process of one or two threads, waiting actively or passively, and by two
  processes of one thread each;
- training steps of a small classifier, with malloc as it is and as `machine.keep_memory` sets it; page faults a step.

Two cores, load 13 from other work: 66,453 page faults a training step with malloc as it is, fewer than one with large
blocks kept; 6.6 and 6.5 s a step (what waits for a core hides the rest).

    python bench/processes.py [--beside N]     N busy processes run beside (0: none)
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.table import Table

PICTURES, STEPS, BATCH = 4, 4, 318
BUSY = "while True: sum(range(10_000))"


def draw(pictures: int) -> dict[str, float]:
    """Seconds of drawing pictures with tiny/sd, one batch; loading is not counted."""
    from palimpsest.core.sampling import Sampling
    from palimpsest.hosts.load import load

    host = load("tiny/sd")
    host.sample(["a star"], [0], Sampling(steps=1))
    start = time.perf_counter()
    host.sample(["a star"] * pictures, list(range(pictures)))
    return {"seconds": time.perf_counter() - start}


def train(keep: int) -> dict[str, float]:
    """Seconds and page faults a step of a small classifier's training, forward, backward and update."""
    import resource

    import torch

    from palimpsest import machine
    from palimpsest.tiny.resnet import resnet

    told = bool(keep) and machine.keep_memory()
    torch.manual_seed(0)
    model, images = resnet(classes=10, width=8), torch.rand(BATCH, 3, 32, 32)
    labels = torch.arange(BATCH) % 10
    optimiser = torch.optim.AdamW(model.parameters())

    def step() -> None:
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimiser.step()

    step()
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.perf_counter()
    for _ in range(STEPS):
        step()
    seconds = (time.perf_counter() - start) / STEPS
    faults = (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / STEPS
    return {"seconds": seconds, "faults": faults, "told": float(told)}


def processes(work: str, arguments: Sequence[int], env: dict[str, str]) -> tuple[float, list[dict[str, float]]]:
    """Runs one process for each argument at once; the most seconds that one of them counted, and what all say."""
    calls = [
        subprocess.Popen(
            [sys.executable, __file__, "--work", work, "--argument", str(argument)],
            env={**os.environ, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        for argument in arguments
    ]
    told = [json.loads(call.communicate()[0].splitlines()[-1]) for call in calls]
    return max(t["seconds"] for t in told), told


@contextmanager
def beside(n: int) -> Iterator[None]:
    """Keeps n processes busy until the block ends."""
    busy = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(n)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def lines() -> Iterator[tuple[str, float, str]]:
    for threads, wait in ((1, "PASSIVE"), (2, "ACTIVE"), (2, "PASSIVE")):
        env = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": wait}
        yield f"{PICTURES} pictures, {threads} thread(s), {wait.lower()}", processes("draw", [PICTURES], env)[0], ""
    env = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    yield f"{PICTURES} pictures, 2 processes of 1 thread", processes("draw", [PICTURES // 2] * 2, env)[0], ""
    for keep, name in ((0, "as it is"), (1, "keeps large blocks")):
        seconds, told = processes("train", [keep], env)
        yield f"a training step, malloc {name}", seconds, f"{told[0]['faults']:.0f} page faults"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--beside", type=int, default=0, help="busy processes beside")
    parser.add_argument("--work", choices=["draw", "train"], help=argparse.SUPPRESS)
    parser.add_argument("--argument", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        works: dict[str, Any] = {"draw": draw, "train": train}
        print(json.dumps(works[args.work](args.argument)))
        return
    load = f", load {os.getloadavg()[0]:.1f} before it began" if hasattr(os, "getloadavg") else ""
    table = Table(title=f"{os.cpu_count()} cores, {args.beside} busy process(es) beside{load}")
    for heading in ("work", "s", "besides"):
        table.add_column(heading, justify="left" if heading == "work" else "right")
    with beside(args.beside):
        for work, seconds, more in lines():
            table.add_row(work, f"{seconds:.2f}", more)
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
