"""Where an audit's time goes: the share that is spent in forwards which some reading uses.

    OMP_NUM_THREADS=1 python bench/audit.py [--concept star] [--prompts 20] [--seeds 3]

UCE erases the concept from tiny/sd, and the default audit of it runs with every large part's forward timed (processor
time of one thread). Forwards count as used while the planned pictures are drawn and read; those that choose neighbours
or time the forecast do not. About two and a half minutes of one core.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from palimpsest import run as verbs
from palimpsest.core import catalog
from palimpsest.probes.drawn import collect
from palimpsest.probes.evaluators import Judge, judges_for
from palimpsest.probes.forecast import time_host
from palimpsest.receipt.subjects.generator import Generator


class Account:
    """Processor seconds of forwards, by phase; a forward inside another counts once."""

    def __init__(self) -> None:
        self.phase, self.inside = "", False
        self.phases: dict[str, float] = {}
        self.forwards: dict[str, float] = defaultdict(float)

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        self.phase, start = phase, time.process_time()
        yield
        self.phases[phase] = time.process_time() - start

    def timed(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            if self.inside:
                return forward(*args, **kwargs)
            self.inside, start = True, time.process_time()
            try:
                return forward(*args, **kwargs)
            finally:
                self.inside = False
                self.forwards[self.phase] += time.process_time() - start

        return counted

    def watch(self, host: Any, judges: list[Judge]) -> None:
        for role in ("denoiser", "text_encoder", "autoencoder"):
            for module in host.parts(role).values():
                module.forward = self.timed(module.forward)
                if hasattr(module, "decode"):
                    module.decode = self.timed(module.decode)
        for judge in judges:
            object.__setattr__(judge, "read", self.timed(judge.read))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concept", default="star")
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    account = Account()
    with account.during("load"):
        host = verbs.load("tiny/sd")
        judges = list(judges_for(host))
    request = verbs.request(host, args.concept)
    patch = catalog.load("erase/uce")()(host, request)
    account.watch(host, judges)
    with account.during("choose"):
        plan = verbs.plan(host, request, verbs.Look(prompts=args.prompts, seeds=args.seeds))
    with account.during("forecast"):
        time_host(host, plan)
    with account.during("draw and read"):
        evidence = collect(host, patch, plan, judges)
    with account.during("count"):
        Generator.readings(evidence)
    whole = sum(account.phases.values())
    table = Table(title=f"Audit of {args.concept}: {plan.pictures()} pictures, {whole:.0f} s of one thread")
    for heading in ("phase", "seconds", "of which forwards"):
        table.add_column(heading, justify="left" if heading == "phase" else "right")
    for phase, seconds in account.phases.items():
        table.add_row(phase, f"{seconds:.1f}", f"{account.forwards[phase]:.1f}")
    console = Console(width=120)
    console.print(table)
    console.print(f"{100 * account.forwards['draw and read'] / whole:.1f} % in forwards that a reading uses")


if __name__ == "__main__":
    main()
