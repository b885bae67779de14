"""Independent pieces of work in processes of one thread each, or over Ray; a piece whose process dies is done again."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from importlib import import_module
from multiprocessing import get_context
from typing import Any, TypeVar

from palimpsest import machine
from palimpsest.core.errors import BadRequest, PalimpsestError

ATTEMPTS = 3  # at one piece, whose process may be killed for want of memory by what runs beside it
Item = TypeVar("Item")
Result = TypeVar("Result")


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def spread(
    work: Callable[[Item], Result], items: Sequence[Item], *, workers: int = 0, ray: str = ""
) -> Iterator[tuple[Item, Result]]:
    """Pairs (item, work(item)) as they are done, each computed by one thread.

    Small models leave a second thread nothing to do but to wait, so that as many processes as cores are fastest.

    Args:
        work: a function that can be imported; it and the items are sent to other processes.
        workers: processes at once, 0 for one a core. A single worker is this process.
        ray: "local" starts Ray on this machine, an address joins its cluster, "" takes processes.

    Raises:
        BadRequest: Ray is asked for and not installed, or its address does not answer.
        PalimpsestError: one piece's process died ATTEMPTS times. Other errors are those of `work`.
    """
    if not items:
        return
    if ray:
        yield from _over_ray(work, items, workers, ray)
    elif (workers := min(workers or cores(), len(items))) == 1:
        with _one_thread_here():
            yield from ((item, work(item)) for item in items)
    else:
        yield from _in_processes(work, items, workers)


def _in_processes(work: Callable[[Item], Result], items: Sequence[Item], workers: int) -> Iterator[tuple[Item, Result]]:
    """A pool breaks as a whole when one of its processes dies, so only what runs is ever handed to it."""
    waiting = deque((item, 1) for item in items)
    while waiting:
        running: dict[Future[Result], tuple[Item, int]] = {}
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=one_thread) as pool:
            broken = False
            while (waiting or running) and not broken:
                try:
                    while waiting and len(running) < workers:
                        running[pool.submit(work, waiting[0][0])] = waiting[0]
                        waiting.popleft()
                    done = wait(running, return_when=FIRST_COMPLETED).done
                except BrokenProcessPool:  # a process died before it was given anything
                    break
                for job in done:
                    broken = broken or isinstance(job.exception(), BrokenProcessPool)
                    if not isinstance(job.exception(), BrokenProcessPool):
                        yield running.pop(job)[0], job.result()
        for item, attempt in running.values():
            if attempt == ATTEMPTS:
                raise PalimpsestError(
                    f"The process that worked on {item} died {ATTEMPTS} times, most likely for want of memory. "
                    "Run fewer at once (--workers 1)."
                )
            waiting.appendleft((item, attempt + 1))


def _over_ray(
    work: Callable[[Item], Result], items: Sequence[Item], workers: int, address: str
) -> Iterator[tuple[Item, Result]]:
    try:
        ray: Any = import_module("ray")
    except ImportError as e:
        raise BadRequest("Ray is not installed. Install the extra [cluster], or leave out --ray.") from e
    where: dict[str, Any] = {"address": address}
    if address == "local":  # its processes find the modules that this one finds
        env = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        where = {"num_cpus": workers or cores(), "include_dashboard": False, "runtime_env": {"env_vars": env}}
    try:
        ray.init(**where, log_to_driver=False, configure_logging=False)
    except (ConnectionError, ValueError) as e:
        raise BadRequest(f"No Ray cluster answers at {address!r} ({e}). Give its address, or --ray local.") from e
    try:
        remote = ray.remote(num_cpus=1, max_retries=ATTEMPTS - 1)(_alone)
        jobs = {remote.remote(work, item): item for item in items}
        while jobs:
            (job,), _ = ray.wait(list(jobs), num_returns=1)
            try:
                yield jobs.pop(job), ray.get(job)
            except ray.exceptions.WorkerCrashedError as e:
                raise PalimpsestError(f"A process of Ray died {ATTEMPTS} times; see its logs for the reason.") from e
    finally:
        ray.shutdown()


def _alone(work: Callable[[Any], Any], item: Any) -> Any:
    one_thread()
    return work(item)


def one_thread() -> None:
    """Makes this process compute with one thread, for good. Cost: nothing, where torch is not loaded yet."""
    machine.prepare()
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@contextmanager
def _one_thread_here() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
