"""Receipts of edited pictures: of edits that were just made, and of pictures that any other tool edited."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from palimpsest.core.concept import Concept, Request
from palimpsest.core.errors import BadRequest
from palimpsest.core.printable import printable
from palimpsest.core.trace import Progress, Trace
from palimpsest.data.decode import is_picture
from palimpsest.data.folders import files_of
from palimpsest.data.picture_folders import PictureFolder, pair
from palimpsest.data.sources import WILD
from palimpsest.probes.edits import EditPlan
from palimpsest.probes.evaluators import Judge, OracleJudge, classes_of, judge
from palimpsest.receipt.make import Receipt, audit
from palimpsest.receipt.subjects.edited import Edited
from palimpsest.worlds.concepts import WORLDS, World, none_of
from palimpsest.worlds.concepts import concept as word_of_world

WORLD_SIDE = 64  # at which the readers of drawn worlds read
MODEL_FILES = ("model_index.json", "config.json")
SIDE = 256  # at which other judges read pictures of which nobody said how large a model made them


def are_pictures(source: str | Path) -> bool:
    """Whether a path means pictures: a picture, a glob, or a folder that holds some and is no model's."""
    path = Path(source).expanduser()
    if any((path / name).is_file() for name in MODEL_FILES) or path.suffix == ".safetensors":
        return False
    if path.is_dir():
        return bool(files_of(path).pictures)
    return is_picture(path) if path.is_file() else any(c in str(source) for c in WILD)


def sign_of(world: World | None, to: str, remove: str) -> tuple[str, Concept, bool]:
    """What was wanted in words, what a judge looks for, and whether that was to go.

    A drawn world has a word for most of what is gone ("bareheaded"), which is then looked for.

    Raises:
        BadRequest: the world has no such word.
    """
    if remove and world is not None and (gone := none_of(world, remove)):
        return f"no {remove}", word_of_world(world, gone[1]), False
    sign = Concept(name=to or remove, kind="attribute") if world is None else word_of_world(world, to or remove)
    return (f"no {remove}" if remove else to), sign, bool(remove)


def readers(sources: Sequence[str | Judge], told: Sequence[Concept]) -> list[Judge]:
    """Judges that are given, or loaded from where they are said to be.

    Raises:
        BadRequest: one is named twice, or is none.
    """
    found = [judge(j, told) if isinstance(j, str) else j for j in sources]
    names = [j.evaluator.name for j in found]
    if len(set(names)) < len(names):
        raise BadRequest("A judge is named twice; each reads the pictures once.")
    return found


def side_of(judges: Sequence[Judge], otherwise: int) -> int:
    """Side of the squares that these judges read."""
    return WORLD_SIDE if any(isinstance(j, OracleJudge) for j in judges) else otherwise


def receipt_of(
    plan: EditPlan,
    before: PictureFolder,
    after: PictureFolder,
    request: Request,
    *,
    judges: Sequence[Judge],
    beside: Mapping[str, PictureFolder],
    out: str | Path | None,
    method: Mapping[str, Any] | None = None,
    spent: Mapping[str, Any] | None = None,
    command: str = "",
    trace: Trace | None = None,
) -> Receipt:
    """Measures edited pictures and writes receipt.json and receipt.html.

    Args:
        plan: what was asked; what lies beside is filled in. before, after, beside: pictures under the plan's names.
        method, spent: who made the edits, and what that took, where known.
    """
    plan = replace(plan, beside={what: (there.name, there.fingerprint()) for what, there in beside.items()})
    about = Edited(plan=plan, judges=judges, beside=beside, method=method, spent=spent or {})
    return audit(before, after, request, subject=about, out=out, command=command, trace=trace)


def audit_pictures(
    before: str | Path,
    after: str | Path,
    *,
    to: str = "",
    remove: str = "",
    judges: Sequence[str | Judge],
    keep: Sequence[str] = (),
    masks: str | Path | None = None,
    truth: str | Path | None = None,
    size: int | None = None,
    out: str | Path | None = None,
    command: str = "",
    progress: Progress | None = None,
) -> Receipt:
    """Measures what became of pictures that any tool edited; nothing is drawn.

    Args:
        before, after: folders, paired by file name, endings aside.
        to: what the pictures were to show; remove: what they were to lose. One of the two.
        judges: who reads them: "tiny/faces", "nudenet", folders of classifiers or CLIP models.
        keep: what a CLIP model has to tell what was asked from.
        masks: a folder of masks by the pictures' names; white may change. truth: as the pictures should have become.
        size: side of the squares that judges read.

    Raises:
        BadRequest: a picture without a partner, of another size than before, no judge, or none that knows the concept.

    Example:
        >>> made = audit_pictures("photos", "edited", to="glasses", judges=["tiny/faces"])  # doctest: +SKIP
        >>> print(made.summary())                                                           # doctest: +SKIP
    """
    if bool(to) == bool(remove):
        raise BadRequest("Say what the pictures were to show, or what they were to lose; one of the two.")
    if not judges:
        raise BadRequest(
            "Nobody can say whether the pictures moved: name a judge (--judge): the folder of an image classifier or "
            "of a CLIP model, nudenet, or for pictures of a drawn world tiny/faces or tiny/glyphs."
        )
    first, other = pair(PictureFolder.of(before), PictureFolder.of(after))
    wanted, sign, gone = sign_of(_world_of(judges), to, remove)
    told = (sign, *(Concept(name=name, kind="attribute") for name in keep))
    eyes = readers(judges, told)
    if not any(classes_of(j.evaluator, sign) for j in eyes):
        some = ", ".join(eyes[0].evaluator.classes[:8])
        raise BadRequest(
            f"No judge knows {sign.name!r}, so nobody can say whether the pictures moved; {eyes[0].evaluator.name} "
            f"knows {some}, and more. Say it in a judge's words, or name another judge."
        )
    beside = {
        what: complete(PictureFolder.of(given).paired(first.files), list(first.files), what)
        for what, given in (("masks", masks), ("truth", truth))
        if given is not None
    }
    plan = EditPlan(
        names=tuple(first.files), wanted=wanted, sign=sign, gone=gone, keep=told, size=size or side_of(eyes, SIDE),
        beside={},
    )  # fmt: skip
    return receipt_of(
        plan, first, other, Request(target=(sign,)), judges=eyes, beside=beside, out=out, command=command,
        trace=Trace(progress=progress),
    )  # fmt: skip


def complete(there: PictureFolder, names: Sequence[str], what: str) -> PictureFolder:
    """The same pictures.

    Raises:
        BadRequest: one of the names has none.
    """
    lacking = [name for name in names if name not in there.files]
    if lacking:
        raise BadRequest(
            f"{len(lacking)} of {len(names)} pictures have none in the folder of {what} {printable(there.name)} "
            f"(first {printable(lacking[0])}); {what} are called like the pictures."
        )
    return there


def _world_of(judges: Sequence[str | Judge]) -> World | None:
    """The drawn world of the first judge that reads one."""
    named = (j if isinstance(j, str) else j.source for j in judges)
    return next((WORLDS[n.removeprefix("tiny/")] for n in named if n.removeprefix("tiny/") in WORLDS), None)
