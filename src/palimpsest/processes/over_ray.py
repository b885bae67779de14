"""Processes of Ray."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

from palimpsest.core.errors import BadRequest
from palimpsest.processes.place import How


class OverRay:
    """Actors of Ray, each a process somewhere, with a core or more and, where it needs one, a GPU of its own."""

    def __init__(self, address: str, count: int, how: How) -> None:
        try:
            self._ray: Any = import_module("ray")
        except ImportError as e:
            raise BadRequest("Ray is not installed. Install the extra [cluster], or leave out --ray.") from e
        self._how = how
        where: dict[str, Any] = {"address": address}
        if address == "local":  # its processes find the modules that this one finds
            env = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
            where = {"num_cpus": count * how.threads, "include_dashboard": False, "runtime_env": {"env_vars": env}}
        try:
            self._ray.init(**where, log_to_driver=False, configure_logging=False)
        except (ConnectionError, ValueError) as e:
            raise BadRequest(f"No Ray cluster answers at {address!r} ({e}). Give its address, or --ray local.") from e
        self._actors: dict[int, Any] = {}
        self._jobs: dict[Any, tuple[int, str]] = {}  # what is awaited -> (number, the kind of its outcome)

    def room(self) -> int:
        has = self._ray.cluster_resources()
        processors = int(has.get("CPU", 1)) // self._how.threads
        return max(1, min(processors, int(has.get("GPU", 0))) if self._how.gpu else processors)

    def start(self, number: int) -> None:
        needs = {"num_cpus": self._how.threads, "num_gpus": int(self._how.gpu)}
        self._actors[number] = self._ray.remote(**needs)(_Actor).remote()
        self._jobs[self._actors[number].begin.remote(self._how, number)] = number, "ready"

    def give(self, number: int, work: Callable[[Any], Any], item: Any) -> None:
        self._jobs[self._actors[number].do.remote(work, item)] = number, "done"

    def outcomes(self, timeout: float | None) -> list[tuple[int, str, Any]]:
        if not self._jobs:
            return []
        ended, _ = self._ray.wait(list(self._jobs), num_returns=1, timeout=timeout)
        found = []
        for job in ended:
            number, kind = self._jobs.pop(job)
            try:
                value = self._ray.get(job)
            except (self._ray.exceptions.RayActorError, self._ray.exceptions.WorkerCrashedError):
                kind, value = "died", None
            except Exception as e:  # what the piece itself raised; Ray gives it the type that it had
                kind, value = "raised", e
            found.append((number, kind, value))
        return found

    def close(self) -> None:
        self._ray.shutdown()


class _Actor:
    def begin(self, how: How, number: int) -> None:
        how.begin(number)

    def do(self, work: Callable[[Any], Any], item: Any) -> Any:
        return work(item)
