"""Edit pictures in files: each worked on at the model's size, and written as it was, with the difference laid on it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from torch import Tensor

from palimpsest import __version__
from palimpsest.core import catalog
from palimpsest.core.concept import Concept
from palimpsest.core.errors import BadRequest, Damaged
from palimpsest.core.files import write_beside, write_text
from palimpsest.core.images import Edited, ImageEdit
from palimpsest.core.patch import Patch
from palimpsest.core.pictures import Pictures
from palimpsest.core.printable import printable
from palimpsest.core.trace import Progress, Trace
from palimpsest.data.decode import Unreadable
from palimpsest.data.framing import Frame
from palimpsest.data.marking import Mark
from palimpsest.data.originals import Original, grey_levels, original
from palimpsest.data.picture_folders import PictureFolder
from palimpsest.data.sources import Found, found
from palimpsest.export.read import read_patch
from palimpsest.probes.edits import EditPlan
from palimpsest.probes.evaluators import Judge, judges_for
from palimpsest.receipt.make import Receipt
from palimpsest.run.edit_inputs import Given, Inputs, refuse_unread
from palimpsest.run.edit_receipts import complete, readers, receipt_of, side_of, sign_of
from palimpsest.run.edits import (
    IMAGES,
    KEPT,
    REBUILT,
    REGIONS,
    SETTINGS,
    TABLE,
    EditedFolder,
    Row,
    holds,
    kept_in,
    lasting,
    refuse_other,
    table,
)
from palimpsest.run.wording import Wanted
from palimpsest.worlds.concepts import Words

POOR = 20.0  # dB; a picture that is rebuilt worse is named
STAYS = 1 / 512  # a region below it is none: half of what 8 bits can say


@dataclass(frozen=True, kw_only=True)
class Editing:
    """One run over pictures, before anything is written.

    Args:
        host: the model. source: a folder, a file or a glob. wanted: what shall change.
        method: the system. said: captions (`wording.Captions`). masks: a folder of masks, by the pictures' names.
        reference: of systems that take something from other pictures: one for all, or a folder by the pictures' names.
        patch: of the model, under which edits are drawn, at this scale.
        size: side of the square that pictures are worked on at; None: the model's own.
        seed: of every draw. mark: whether files say that a model made a part of them.
        skip_unreadable: pass over files that cannot be read, instead of stopping.
        judges: who reads the pictures beside the reader of the model's drawn world (`edit_receipts.readers`).
        truth: a folder with the pictures as they should become, where somebody can draw them.
    """

    host: Any
    source: str | Path
    wanted: Wanted
    method: ImageEdit
    said: str = ""
    masks: str | Path | None = None
    reference: str | Path | None = None
    patch: Patch | str | Path | None = None
    scale: float = 1.0
    size: int | None = None
    seed: int = 0
    mark: bool = True
    skip_unreadable: bool = False
    judges: Sequence[str | Judge] = ()
    truth: str | Path | None = None
    found: Found = field(init=False)
    request: Any = field(init=False)
    held: Patch | None = field(init=False)
    settings: Mapping[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        refuse_unread(self.method, self.reference)
        read_now = isinstance(self.patch, (str, Path))
        held = read_patch(self.patch, self.host) if read_now else self.patch  # type: ignore[arg-type]
        made = {"found": found(self.source), "request": self.wanted.request(self.host)}
        made["held"] = held.scaled(self.scale) if isinstance(held, Patch) else None
        for name, value in made.items():
            object.__setattr__(self, name, value)
        object.__setattr__(self, "settings", self._settings())

    def _settings(self) -> dict[str, Any]:
        """Plain JSON of everything that holds for all pictures."""
        return {
            "format": 2,
            "method": self.method.named(),
            "model": self.host.name,
            "base": self.host.fingerprint(),
            "wanted": asdict(self.wanted),
            "patch": None if self.held is None else self.held.sha256(),
            "size": self._side,
            "seed": self.seed,
            "marked": self.mark,
            "version": __version__,
        }

    @property
    def _side(self) -> int:
        return self.size or self.host.default_size

    def forecast(self) -> str:
        """What a run would do, measured on the first picture; nothing is written."""
        inputs = self._inputs()
        for name, file in self.found.pictures.items():
            try:
                picture = original(file.read_bytes())
            except Unreadable:
                continue
            given = inputs.of(name, file, picture)
            edited = self._edited(picture, given, Trace())[0]
            seconds, n = edited.cost["seconds"], len(self.found.pictures)
            forwards = edited.cost["forwards"].get("denoiser", 0)
            lines = [
                f"{n} {'picture' if n == 1 else 'pictures'}, {forwards} forwards of the model and {seconds:.1f} s each "
                f"(just measured on {printable(str(name))}): about {lasting(n * seconds)}.",
                f"Worked on at {self._side} x {self._side}, written at their own size.",
                f"{printable(str(name))} is said to show {printable(given.said.said)!r}.",
                f"It shall show {printable(given.said.asked)!r}.",
            ]
            return "\n".join([*lines, *(f"left out {printable(text)}" for text in self.found.left_out)])
        raise BadRequest(f"None of {len(self.found.pictures)} pictures of {self.source} can be read and written.")

    def run(
        self, out: str | Path, *, again: bool = False, command: str = "", progress: Progress | None = None
    ) -> EditedFolder:
        """Edits every picture that is not in `out` already, and measures all of them.

        Raises:
            BadRequest: `out` holds edits of other settings (unless `again`) or lies among the sources, a picture or a
                mask is missing, cannot be read, or marks nothing.
        """
        folder = Path(out)
        self.found.refuse_out(folder)
        refuse_other(folder, self.settings, again)
        inputs = self._inputs()
        kept, rows, skipped, before = kept_in(folder), [], list(self.found.left_out), 0
        write_text(folder / SETTINGS, json.dumps(self.settings, indent=1, ensure_ascii=False) + "\n")
        for i, (name, file) in enumerate(self.found.pictures.items()):
            if progress is not None:
                progress("editing", i, len(self.found.pictures))
            try:
                encoded = file.read_bytes()
                picture = original(encoded)
            except (Unreadable, OSError) as e:
                if not self.skip_unreadable:
                    raise Damaged(
                        f"{printable(str(name))} cannot be edited: {e}. Repair it, or pass over such files with "
                        "--skip-unreadable."
                    ) from e
                skipped.append(f"{name} ({e})")
                continue
            given = inputs.of(name, file, picture)
            key = given.key(self.settings, encoded)
            row = kept.get(str(name))
            if row is not None and row.key == key and _whole(folder, row):
                before += 1
            else:
                row = self._one(folder, name, picture, given, key)
                with open(folder / KEPT, "a", encoding="utf-8") as f:
                    f.write(json.dumps(asdict(row), ensure_ascii=False) + "\n")
            rows.append(row)
        if not rows:
            raise BadRequest(f"None of {len(self.found.pictures)} pictures of {self.source} can be read and written.")
        write_beside(folder / TABLE, lambda tmp: tmp.write_text(table(rows), encoding="utf-8", newline=""))
        receipt = self._receipt(folder, rows, command, progress)
        return EditedFolder(out=folder, rows=tuple(rows), kept=before, skipped=tuple(skipped), receipt=receipt)

    def _receipt(self, folder: Path, rows: Sequence[Row], command: str, progress: Progress | None) -> Receipt:
        """What became of the pictures, measured on the written files."""
        world = self.host.knows.world if isinstance(self.host.knows, Words) else None
        wanted = self.wanted
        if wanted.asked:
            sign, gone, said = self.request.target[0], False, self.request.target[0].name
        else:
            said, sign, gone = sign_of(world, wanted.to, wanted.remove)
        told = (sign, *([Concept(name=wanted.instead, kind="attribute")] if wanted.instead else []))
        judges = [*judges_for(self.host), *readers(self.judges, told)]
        names = [row.name for row in rows]
        beside = {REGIONS: PictureFolder.of(folder / REGIONS, REGIONS)}
        if all(row.reconstruction is not None for row in rows):
            beside[REBUILT] = PictureFolder.of(folder / REBUILT, REBUILT)
        if self.truth is not None:
            beside["truth"] = PictureFolder.of(self.truth)
        plan = EditPlan(
            names=tuple(names), asked=tuple(row.asked for row in rows), wanted=said, sign=sign, gone=gone, keep=told,
            size=side_of(judges, self._side), beside={}, marked=self.mark, model=self.host.name,
            base=self.host.fingerprint(), flags=tuple("; ".join(row.flags) for row in rows),
        )  # fmt: skip
        made = self.method.provenance(self.request, self.seed)
        return receipt_of(
            plan, PictureFolder.of(self.found, str(self.source)).only(names),
            PictureFolder.of(folder / IMAGES, IMAGES).only(names), self.request, judges=judges,
            beside={what: complete(there.paired(names), names, what) for what, there in beside.items()}, out=folder,
            method={k: made[k] for k in ("method", "name", "parameters", "seed")}, command=command,
            spent={"seconds": round(sum(row.seconds for row in rows), 2), "pictures": len(rows)},
            trace=Trace(progress=progress),
        )  # fmt: skip

    # -- one picture -------------------------------------------------------------------------------------

    def _inputs(self) -> Inputs:
        return Inputs(
            self.found, host=self.host, wanted=self.wanted, side=self._side, said=self.said, masks=self.masks,
            reference=self.reference,
        )  # fmt: skip

    def _edited(self, picture: Original, given: Given, trace: Trace) -> tuple[Edited, Pictures]:
        sources, data = given.sources(picture, self._side), given.data(self._side)
        edited = self.method(self.host, sources, self.request, data=data, patch=self.held, seed=self.seed, trace=trace)
        return edited, sources

    def _one(self, folder: Path, name: PurePosixPath, picture: Original, given: Given, key: str) -> Row:
        """Edits a picture and writes it and its region."""
        trace, frame = Trace(), Frame.of(picture.height, picture.width, self._side)
        said = given.said
        edited, sources = self._edited(picture, given, trace)
        change, region = _full(edited, sources, frame, given.mask)
        encoded = picture.rewritten(change, Mark(f"palimpsest {__version__}") if self.mark else None)
        after = grey_levels(encoded).astype(np.float32)
        apart = np.abs(after - picture.colours).mean(2)
        still = region < STAYS
        decibels = None if edited.rebuilt is None else _decibels(edited.rebuilt, sources.pixels())
        flags = [*said.flags, *picture.told]
        if decibels is not None and decibels < POOR:
            flags.append(f"rebuilt with only {decibels:.1f} dB")
        if still.all():
            flags.append("nothing changed")
        write_beside(folder / IMAGES / name, lambda tmp: tmp.write_bytes(encoded))
        write_beside(folder / REGIONS / f"{name}.png", partial(_save, np.rint(255 * region).astype(np.uint8)))
        if edited.rebuilt is not None:
            rebuilt = (edited.rebuilt[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
            write_beside(folder / REBUILT / f"{name}.png", partial(_save, rebuilt))
        return Row(
            name=str(name),
            sha256=hashlib.sha256(picture.encoded).hexdigest(),
            written=hashlib.sha256(encoded).hexdigest(),
            key=key,
            said=said.said,
            asked=said.asked,
            avoided=said.avoided,
            captioned=given.captioned,
            reconstruction=decibels,
            outside=round(float(apart[still].mean()), 4) if still.any() else 0.0,
            region=round(1 - float(still.mean()), 4),
            seconds=round(trace.seconds, 2),
            flags=tuple(flags),
        )


def edit(
    host: Any,
    source: str | Path,
    *,
    to: str = "",
    instead: str = "",
    remove: str = "",
    asked: str = "",
    said: str = "",
    masks: str | Path | None = None,
    reference: str | Path | None = None,
    method: ImageEdit | str = "",
    patch: Patch | str | Path | None = None,
    scale: float = 1.0,
    size: int | None = None,
    out: str | Path = "edited",
    seed: int = 0,
    mark: bool = True,
    skip_unreadable: bool = False,
    judges: Sequence[str | Judge] = (),
    truth: str | Path | None = None,
    again: bool = False,
    progress: Progress | None = None,
) -> EditedFolder:
    """Changes one thing in pictures, and writes them in their own format and size; what was finished is kept.

    Args:
        host: from `load`; it is unchanged afterwards.
        source: a folder, a file, or a glob ("photos/*.jpg").
        to, instead, remove, asked: what shall change (`wording.Wanted`).
        said: what the pictures show (`wording.Captions`).
        masks: a folder of masks by the pictures' names; white may change.
        reference: a picture that all edits take their style from, or a folder with one for each, called like it; for
            systems that read one.
        method: a system, or its name; the verb's default where not given.
        patch, scale: of the model, under which edits are drawn.
        size: side of the square that pictures are worked on at; None: the model's own.
        out: folder for the pictures, the regions, edits.csv and the receipt.
        mark: whether files say that a model made a part of them (Software; XMP's DigitalSourceType).
        skip_unreadable: pass over files that cannot be read, instead of stopping.
        judges: who reads the pictures beside the reader of the model's drawn world: "nudenet", folders of classifiers
            or CLIP models.
        truth: a folder with the pictures as they should become, where somebody can draw them.
        again: go on in a folder that holds edits of other settings.

    Example:
        >>> done = edit(load("tiny/portraits"), "photos", to="glasses", out="with-glasses")        # doctest: +SKIP
        >>> print(done.summary(), done.rows[0].outside)                                            # doctest: +SKIP
    """
    if isinstance(method, str):
        method = catalog.load(catalog.find(method or catalog.verbs()["edit"].default, "edit").id)()
    assert isinstance(method, ImageEdit)
    work = Editing(
        host=host, source=source, wanted=Wanted(to=to, instead=instead, remove=remove, asked=asked), method=method,
        said=said, masks=masks, reference=reference, patch=patch, scale=scale, size=size, seed=seed, mark=mark,
        skip_unreadable=skip_unreadable, judges=judges, truth=truth,
    )  # fmt: skip
    return work.run(out, again=again, progress=progress)


# -- pictures at their own size --------------------------------------------------------------------------


def _full(edited: Edited, sources: Pictures, frame: Frame, mask: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """The change (H, W, 3) at the picture's own size, exactly 0 outside the region (H, W) in [0, 1]."""
    change = frame.back(edited.images - sources.pixels(), smooth=True)
    region = np.ones(change.shape[:2], np.float32)
    if edited.region is not None:
        region = frame.back(edited.region, smooth=False)[..., 0].clip(0, 1)
    if mask is not None:
        region = region * mask
        change = change * mask[..., None]
    region = np.where(region < STAYS, 0, region)
    return np.where(region[..., None] > 0, change, 0), region


def _decibels(one: Tensor, other: Tensor) -> float:
    error = float((one - other).pow(2).mean())
    return round(float(-10 * np.log10(max(error, 1e-10))), 2)


def _save(values: np.ndarray, path: Path) -> None:
    from PIL import Image

    Image.fromarray(values).save(path, format="PNG")


def _whole(folder: Path, row: Row) -> bool:
    """Whether everything that is written of a picture is there."""
    beside = [REGIONS, *([] if row.reconstruction is None else [REBUILT])]
    there = all((folder / part / f"{row.name}.png").is_file() for part in beside)
    return there and holds(folder / IMAGES / row.name, row.written)
