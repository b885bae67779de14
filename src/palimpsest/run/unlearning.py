"""Make a classifier forget, and write what was asked, done and changed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from palimpsest.core import catalog
from palimpsest.core.files import write_text
from palimpsest.core.host import Classifier
from palimpsest.core.method import ModelEdit
from palimpsest.core.patch import Patch
from palimpsest.core.trace import Progress, Trace
from palimpsest.data.forget import ForgetRequest, record, split
from palimpsest.data.read import Dataset, aligned
from palimpsest.receipt.classifier import ClassifierReceipt, audit_classifier
from palimpsest.receipt.make import PATCH_FILE

DEFAULT_UNLEARNER = "salun"
RECORD_FILE = "forget.json"


@dataclass(frozen=True, kw_only=True)
class Unlearned:
    """What `unlearn` returns.

    Args:
        patch: turns the model into one that forgot.
        record: the deletion record: what was asked, hashes of the request and of the samples, which model, how.
        receipt: what changed; None for regressors, or where nothing is written.
    """

    patch: Patch
    record: dict[str, Any]
    patch_path: Path | None
    record_path: Path | None
    receipt: ClassifierReceipt | None = None


def unlearn(
    host: Any,
    data: Dataset,
    asked: ForgetRequest,
    *,
    method: ModelEdit | str = DEFAULT_UNLEARNER,
    test: Dataset | None = None,
    retrained: Sequence[Any] = (),
    out: str | Path | None = None,
    seed: int = 0,
    resume: bool = False,
    command: str = "",
    progress: Progress | None = None,
) -> Unlearned:
    """Makes a classifier forget samples of its training data.

    Args:
        host: from `load`; it is unchanged afterwards.
        data: what it learned from, from `palimpsest.data.read.read`.
        asked: what to forget, from `palimpsest.data.forget.ForgetRequest.parse`.
        method: a system, or its name.
        test, retrained: held-out samples and models that never saw what is forgotten, for the receipt.
        out: folder for all that is written; None writes nothing. resume: go on from what an interrupted run left.

    Raises:
        BadRequest: the data's classes are not the model's, or the request names nothing or everything.

    Example:
        >>> data = read("cifar10_jpeg")                                             # doctest: +SKIP
        >>> done = unlearn(load("tiny/cifar"), data, ForgetRequest.parse("class:cat"))  # doctest: +SKIP
        >>> done.patch.save("no-cat.safetensors")                                   # doctest: +SKIP
    """
    known = aligned(data, host.labels, host.name) if isinstance(host, Classifier) else data
    parts, mark = split(known, asked), record(known, asked)
    system = catalog.load(catalog.find(method, "unlearn").id)() if isinstance(method, str) else method
    work = Trace(folder=Path(out) if out is not None else None, resume=resume, progress=progress)
    patch = system(host, asked.concepts(), data=parts, seed=seed, trace=work)
    kept = {"format": 1, **mark, "skipped": list(known.skipped), "command": command, "patch": patch.sha256()}
    kept |= {"base": patch.base, **{key: patch.provenance[key] for key in ("method", "parameters", "seed", "versions")}}
    if out is None:
        return Unlearned(patch=patch, record=kept, patch_path=None, record_path=None)
    patch_path = patch.save(Path(out) / PATCH_FILE)
    record_path = write_text(Path(out) / RECORD_FILE, json.dumps(kept, indent=1, ensure_ascii=False) + "\n")
    told = None
    if isinstance(host, Classifier) and not known.samples.labels.is_floating_point():
        held = test and aligned(test, host.labels, host.name)
        told = audit_classifier(host, patch, known, asked, test=held, retrained=retrained, out=out, command=command)
    return Unlearned(patch=patch, record=kept, patch_path=patch_path, record_path=record_path, receipt=told)
