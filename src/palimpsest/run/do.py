"""Carry out a verb: run a system on a model, keep its patch, and measure what changed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from palimpsest.core import catalog
from palimpsest.core.errors import BadRequest
from palimpsest.core.files import write_text
from palimpsest.core.method import Method
from palimpsest.core.patch import Patch
from palimpsest.core.trace import Progress, Trace
from palimpsest.data.dataset import Dataset
from palimpsest.receipt.make import PATCH_FILE
from palimpsest.run.cases import Asked, Case, case
from palimpsest.run.looking import Look
from palimpsest.train import ranks
from palimpsest.train.training import Training

RECORD_FILE = "forget.json"


@dataclass(frozen=True, kw_only=True)
class Done:
    """What a verb did.

    Args:
        patch: the change.
        receipt: what it changed; None where there is none for such a model (a regressor).
        record: the deletion record where samples were forgotten: what was asked, hashes of the request and of the
            samples, which model, how; else None.
        patch_path, record_path: where they were written; None where they were not.
    """

    patch: Patch
    receipt: Any
    record: dict[str, Any] | None
    patch_path: Path | None
    record_path: Path | None


def do(
    verb: str,
    host: Any,
    asked: Asked,
    *,
    method: Method | str = "",
    data: Dataset | Mapping[str, Dataset] | None = None,
    test: Dataset | None = None,
    look: Look | None = None,
    oracles: Sequence[Any] = (),
    accept_chance: bool = False,
    out: str | Path | None = None,
    seed: int = 0,
    resume: bool = False,
    workers: int | None = 1,
    ray: str = "",
    command: str = "",
    progress: Progress | None = None,
) -> Done:
    """Runs a system on a model and measures what changed. `erase` and `unlearn` are this with their verb's name.

    Args:
        verb: of an installed kind (`palimpsest ls`).
        host: from `load`; it is unchanged afterwards.
        asked: what about: names, concepts or a Request for generators, a ForgetRequest for classifiers.
        method: a system, or its name; the verb's default where not given.
        data, test, look, oracles, accept_chance: see `run.case`.
        out: folder for patch.safetensors, receipt.json, receipt.html and records; None writes nothing.
        seed: of everything random in the method.
        resume: go on from what an interrupted run left in `out`.
        workers, ray: the processes that draw the receipt's pictures, see `run.audit`.

    Raises:
        BadRequest: the request makes no sense for this model, these data or this system.

    Example:
        >>> done = erase(load("tiny/sd"), "star", method="esd", out="no-star")        # doctest: +SKIP
        >>> print(done.receipt.summary())                                             # doctest: +SKIP
        >>> done = unlearn(load("tiny/cifar"), ForgetRequest.parse("class:cat"), data=read("cifar10"))  # doctest: +SKIP
    """
    kind = catalog.verbs()[verb].subject
    subject = "generator" if kind == "classifier" else kind  # a request about samples tells by itself
    about = case(
        host,
        asked,
        data=data,
        test=test,
        look=look,
        oracles=oracles,
        accept_chance=accept_chance,
        subject=subject,
        workers=workers,
        ray=ray,
    )
    how = {"out": out, "seed": seed, "resume": resume, "command": command, "progress": progress}
    with closing(about):
        return perform(verb, about, method=method, **how)


erase = partial(do, "erase")
unlearn = partial(do, "unlearn")


def perform(
    verb: str,
    about: Case,
    *,
    method: Method | str = "",
    out: str | Path | None = None,
    seed: int = 0,
    resume: bool = False,
    command: str = "",
    progress: Progress | None = None,
) -> Done:
    """Runs a system on a case; see `do`."""
    system = system_of(verb, method)
    _divide(system)
    about.check(system)
    record, folder = about.record(), None if out is None else Path(out)
    work = Trace(folder=folder, resume=resume, progress=progress)
    patch = about.carry_out(system, seed=seed, trace=work)
    if ranks.rank():  # process 0 writes and measures
        return Done(patch=patch, receipt=None, record=None, patch_path=None, record_path=None)
    if record is not None:
        how = {key: patch.provenance[key] for key in ("method", "parameters", "seed", "versions")}
        record = {"format": 1, **record, "command": command, "patch": patch.sha256(), "base": patch.base, **how}
    patch_path = None if folder is None else folder / PATCH_FILE
    if patch_path is not None and not about.writes:
        patch.save(patch_path)
    record_path = None
    if folder is not None and record is not None:
        text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
        record_path = write_text(folder / RECORD_FILE, text)
    receipt = None
    if folder is not None or record is None:
        receipt = about.audit(patch, out=folder, resume=resume, command=command, trace=Trace(progress=progress))
    return Done(patch=patch, receipt=receipt, record=record, patch_path=patch_path, record_path=record_path)


def _divide(system: Method) -> None:
    """Raises BadRequest where several processes were started for a system that trains nothing they could divide."""
    parts = [system, *(getattr(system, f.name) for f in fields(system))]
    if ranks.world() > 1 and not any(isinstance(part, Training) for part in parts):
        raise BadRequest(
            f"{system.card.name} trains nothing that {ranks.world()} processes could divide: run it without "
            "`accelerate launch`. Pictures are drawn by several with --workers."
        )


def system_of(verb: str, method: Method | str) -> Method:
    """The system that is meant: as given, by name, or the verb's default."""
    if not isinstance(method, str):
        return method
    return catalog.load(catalog.find(method or catalog.verbs()[verb].default, verb).id)()
