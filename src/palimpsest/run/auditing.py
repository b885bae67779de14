"""Measure what changed between two models, whoever edited them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from palimpsest.core.patch import Patch
from palimpsest.core.trace import Progress, Trace
from palimpsest.data.dataset import Dataset
from palimpsest.export.read import is_foreign_file, read_patch
from palimpsest.hosts.load import check_alike, check_loaded, load
from palimpsest.probes.attempt import Budget
from palimpsest.receipt.make import PATCH_FILE
from palimpsest.receipt.settings import sentences, settings_of
from palimpsest.run.cases import Asked, case
from palimpsest.run.looking import Look


def audit(
    before: Any,
    after: Any,
    asked: Asked,
    *,
    data: Dataset | Mapping[str, Dataset] | None = None,
    test: Dataset | None = None,
    look: Look | None = None,
    oracles: Sequence[Any] = (),
    resurfacing: Budget | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    workers: int | None = 1,
    ray: str = "",
    command: str = "",
    progress: Progress | None = None,
) -> Any:
    """Measures what changed between two models, whoever edited them; returns the receipt.

    Args:
        before: the untouched model.
        after: a Patch, the path of one, of an embedding or a LoRA, or the edited model or its path.
        asked: what the edit was about: names, concepts or a Request; for a classifier a ForgetRequest, with `data`.
        data, test, look, oracles, resurfacing: see `run.case`.
        resume: take the pictures that an interrupted audit left in `out`.
        workers: processes that draw and read a generator's pictures, this one among them: 0 for one a core or CUDA
            device, None for what is fastest. With more than one, a script's own work belongs under
            `if __name__ == "__main__":`, since each process imports it. What they draw is the same to the bit.
        ray: "local", or the address of a cluster, to draw over Ray.
    """
    if isinstance(after, (str, Path)):
        refuse_other(before, after)
    changed = edited(after, before) if isinstance(after, (str, Path)) else after
    if not isinstance(changed, Patch):
        check_loaded(before, changed)
    about = case(
        before,
        asked,
        data=data,
        test=test,
        look=look,
        oracles=oracles,
        resurfacing=resurfacing,
        workers=workers,
        ray=ray,
        edited=None if isinstance(changed, Patch) else changed,
    )
    folder = None if out is None else Path(out)
    with closing(about):
        return about.audit(changed, out=folder, resume=resume, command=command, trace=Trace(progress=progress))


def refuse_other(before: Any, after: str | Path, *, download: bool = False) -> None:
    """Raises WrongBase or Unsupported where a patch was made for another model, or a model plainly is no edit of it.

    Cost: headers of the files; of a patch all of it.
    """
    if is_patch(Path(after)):
        read_patch(after, before).fits(before)
    else:
        check_alike(before, after, download=download)


def unlike(before: Any, after: Any) -> list[str]:
    """Sentences about what two models differ in beside their tensors; none for a patch.

    Raises:
        Unsupported: they are other models: of another kind, with other classes or shapes.
    """
    if isinstance(after, Patch):
        return []
    check_loaded(before, after)
    return [s["text"] for s in sentences({"settings": settings_of(before)}, {"settings": settings_of(after)})]


def edited(path: str | Path, before: Any = None, *, load: Callable[[str], Any] = load) -> Any:
    """A patch, an embedding or a LoRA as a patch of the model before, or another model, which `load` loads."""
    if is_patch(Path(path)):
        return read_patch(path, before)
    return load(str(path))


def is_patch(path: Path) -> bool:
    """Whether a safetensors file's header says that it is a patch, an embedding or a LoRA; false for checkpoints and
    missing files. A folder may be a LoRA, too."""
    if path.is_dir():
        return is_foreign_file(path)
    if path.suffix != ".safetensors":
        return False
    try:
        with open(path, "rb") as f:
            size = int.from_bytes(f.read(8), "little")
            stated = re.search(rb'"palimpsest"\s*:', f.read(min(size, 1 << 26))) is not None
        return stated or is_foreign_file(path)
    except OSError:
        return path.name == PATCH_FILE
