"""Runs what is due: the same list is printed by a dry run and done by processes, or over Ray."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from palimpsest.core.errors import PalimpsestError
from palimpsest.core.trace import Progress
from palimpsest.exam import record
from palimpsest.exam.case import Exam, asked, exams
from palimpsest.exam.digest import key
from palimpsest.processes import cores, spread
from palimpsest.tiny.shelf import maker


class Job(NamedTuple):
    """One run, plain enough to be sent to another machine."""

    exam: str
    system: str
    case: dict[str, Any]
    seed: int

    def __str__(self) -> str:
        words = exams()[self.exam].words(self.case)
        return f"{self.exam}: {self.system}{'' if words == self.exam else f', {words}'}, seed {self.seed}"


def due(wanted: Sequence[tuple[Exam, Sequence[str]]], results: Path, *, again: bool = False) -> list[Job]:
    """The runs whose record is not kept, or all of them."""
    jobs: list[Job] = []
    for exam, systems in wanted:
        kept = {s: set() if again else record.keys(results, exam, s) for s in exam.examined()}
        work = ((s, case, seed) for s, case, seed in exam.work(systems) if key(exam, s, case, seed) not in kept[s])
        jobs += [Job(exam.name, s, dict(case), seed) for s, case, seed in work]
    return jobs


def forecast(what: str, results: Path, *, again: bool = False, workers: int = 0) -> list[str]:
    """What `run` would do, a line a run; then what is left out, how many are kept, and what bfloat16 costs here."""
    wanted = asked(what)
    jobs = due(wanted, results, again=again)
    total = sum(len(list(exam.work(systems))) for exam, systems in wanted)
    left_out = [f"left out: {why}" for exam, _ in wanted for case in exam.cases if (why := exam.missing(case))]
    at_once = max(1, min(workers or cores(), len(jobs)))
    counts = f"{len(jobs)} of {total} runs are due, {total - len(jobs)} are kept; {at_once} at once."
    return [*map(str, jobs), *left_out, counts, *([_bfloat16()] if jobs else [])]


def run(
    what: str,
    results: Path,
    *,
    again: bool = False,
    workers: int = 0,
    ray: str = "",
    progress: Progress | None = None,
) -> list[Path]:
    """Runs what is due of `what` and writes each record when it is there; a system that refuses has its words kept.

    Args:
        what: as `case.asked` takes it. workers, ray: as `processes.spread` takes them.

    Raises:
        BadRequest: there is no such exam. PalimpsestError: a run's process died again and again.
    """
    jobs = due(asked(what), results, again=again)
    written: dict[Path, None] = {}
    for done, (job, found) in enumerate(spread(examine, jobs, workers=workers, ray=ray), start=1):
        written[record.put(results, exams()[job.exam], job.system, job.case, job.seed, found)] = None
        if progress is not None:
            progress(f"exam of {what}", done, len(jobs))
    return list(written)


def examine(job: Job) -> dict[str, Any]:
    """The record of one run, in the process that calls."""
    try:
        return exams()[job.exam].examine(job.system, job.case, job.seed)
    except PalimpsestError as e:
        return {"refused": str(e)}


def _bfloat16() -> str:
    """Records hold pictures drawn in bfloat16: another format would be other bits, whatever the machine likes."""
    taken = maker("precision").measured()
    times = taken.bfloat16 / taken.float32
    return f"Pictures are drawn in bfloat16, as the records were: here a product takes {times:.1f} times float32's."
