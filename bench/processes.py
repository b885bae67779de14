"""What a process is told at its start, and how many of them share the cores: seconds, with other work beside or not.

Each line is run in fresh processes, since threads and malloc are set up once:

- the drawing and judging of an audit of tiny/sd (`--prompts 3 --seeds 1`) by one process of two threads, one of one
  thread, and two of one thread each, which must see the same to the bit. The second process starts while the first one
  times its forecast, as the command's does, and is waited for no longer than there;
- drawing pictures with tiny/sd by one process of one or two threads, waiting actively or passively, and by two
  processes of one thread each;
- training steps of a small classifier, with malloc as it is and as `machine.keep_memory` sets it; page faults a step.

Two cores, load 13 from other work: 66,453 page faults a training step with malloc as it is, fewer than one with large
blocks kept; 6.6 and 6.5 s a step (what waits for a core hides the rest).

    python bench/processes.py                  idle, then with a busy process beside
    python bench/processes.py --beside N       with N busy processes beside alone (0: none)
    python bench/processes.py --only audit     the audits alone
"""

from __future__ import annotations

import argparse
import hashlib
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


def audit(how: int) -> dict[str, float]:
    """Seconds of drawing and judging an audit's pictures, and a number that stands for all that was seen.

    Args:
        how: ten times the processes, and the threads of each.
    """
    import torch

    from palimpsest import run
    from palimpsest.core import catalog
    from palimpsest.probes.crew import Crew, crew_for
    from palimpsest.probes.drawn import collect
    from palimpsest.probes.forecast import time_host
    from palimpsest.run.looking import judges

    count, threads = divmod(how, 10)
    torch.set_num_threads(threads)
    host, look = run.load("tiny/sd"), run.Look(prompts=3, seeds=1)
    request = run.request(host, "star")
    patch, plan = catalog.load("erase/uce")()(host, request), run.plan(host, request, look)
    readers = judges(host, plan, look)
    with crew_for([host], workers=count) if count > 1 else Crew(threads=threads) as crew:
        crew.start()
        time_host(host, plan)
        start = time.perf_counter()
        evidence = collect(host, patch, plan, readers, crew=crew)
        seconds = time.perf_counter() - start
    seen = hashlib.sha256()
    for name in sorted(evidence.gallery):
        seen.update(evidence.gallery[name].numpy().tobytes())
    for name in sorted(evidence.measures):
        seen.update(evidence.measures[name].numpy().tobytes())
    return {"seconds": seconds, "seen": float(int(seen.hexdigest()[:12], 16)), "pictures": float(plan.pictures())}


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


def audits() -> Iterator[tuple[str, float, str]]:
    found: dict[int, dict[str, float]] = {}
    for how, name in ((12, "1 process of 2 threads"), (11, "1 of 1"), (21, "2 of 1")):
        env = {"OMP_NUM_THREADS": str(how % 10), "OMP_WAIT_POLICY": "PASSIVE"}
        found[how] = processes("audit", [how], env)[1][0]
        more = f"{found[how]['pictures']:.0f} pictures"
        if how == 21:
            share = found[21]["seconds"] / found[11]["seconds"]
            same = "the same" if found[21]["seen"] == found[11]["seen"] else "NOT THE SAME"
            more = f"{share:.2f} of one's time, efficiency {50 / share:.0f} %, {same} receipt"
        yield f"an audit, {name}", found[how]["seconds"], more


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
    parser.add_argument("--beside", type=int, help="busy processes beside; by default none, then one")
    parser.add_argument("--only", choices=["audit", "rest"], help="some lines alone")
    parser.add_argument("--work", choices=["draw", "train", "audit"], help=argparse.SUPPRESS)
    parser.add_argument("--argument", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        works: dict[str, Any] = {"draw": draw, "train": train, "audit": audit}
        print(json.dumps(works[args.work](args.argument)))
        return
    for busy in (0, 1) if args.beside is None else (args.beside,):
        load = f", load {os.getloadavg()[0]:.1f} before it began" if hasattr(os, "getloadavg") else ""
        table = Table(title=f"{os.cpu_count()} cores, {busy} busy process(es) beside{load}")
        for heading in ("work", "s", "besides"):
            table.add_column(heading, justify="left" if heading == "work" else "right")
        with beside(busy):
            for part, rows in (("audit", audits), ("rest", lines)):
                for work, seconds, more in rows() if args.only in (None, part) else ():
                    table.add_row(work, f"{seconds:.2f}", more)
        Console(width=120).print(table)


if __name__ == "__main__":
    main()
