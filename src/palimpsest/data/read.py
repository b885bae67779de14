"""Reads pictures with their labels from an image folder, from parquet tables or from arrays."""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from palimpsest.core.errors import BadRequest, Damaged
from palimpsest.core.samples import Samples
from palimpsest.data.parquet import rows_of_parquet
from palimpsest.data.raw import Row

if TYPE_CHECKING:
    from PIL import Image

PICTURES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """What was read.

    Args:
        samples: the pictures.
        classes: the classes' names; a label is an index into them. Empty: the labels are values of a regression.
        skipped: pictures that could not be read, each with the reason.
    """

    samples: Samples
    classes: tuple[str, ...]
    skipped: tuple[str, ...] = field(default=())


def read(
    source: str | os.PathLike[str],
    *,
    split: str = "train",
    size: int | None = None,
    skip_unreadable: bool = False,
) -> Dataset:
    """Reads a data set, from local files alone.

    Three layouts are known:

    - an image folder: `source/<class>/<picture>`, or `source/<split>/<class>/<picture>`. A further level,
      `<class>/<group>/<picture>`, says whom each picture shows (an identity, across classes);
    - parquet with columns `image` (a struct with the encoded `bytes`, or the bytes themselves) and `label`, and
      perhaps `identity`: one file, or the files of a folder whose names start with the split;
    - `.npz` with `images` uint8 (n, H, W), (n, H, W, 3) or (n, 3, H, W), `labels`, and perhaps `identity`, `names`
      and `classes`. Without `labels` the identities are the labels. Identities that are numbers are called s1, s2, ...

    Args:
        source: the folder or file.
        split: which part of the data, where it has parts.
        size: side in pixels; pictures are resized (shorter side, bilinear) and cut from the centre. None: as they are.
        skip_unreadable: leave out pictures that cannot be decoded, and name them in `skipped`.

    Raises:
        BadRequest: nothing is there, no pictures, pictures of several sizes without `size`, labels out of range.
        Damaged: pictures that cannot be decoded; the message names the first ones and counts them.
    """
    path = Path(source).expanduser()
    if not path.exists():
        raise BadRequest(f"There is no data at {path}; give a folder of pictures, a .parquet or an .npz file.")
    if path.suffix == ".npz":
        return _arrays(path, size)
    tables = _tables(path, split)
    if tables:
        classes, rows = rows_of_parquet(tables)
    else:
        classes, rows = _folder(path, split)
    return _gather(path, rows, classes, size, skip_unreadable)


def aligned(data: Dataset, labels: Sequence[str], called: str) -> Dataset:
    """The same data with a model's labels as classes: matched by name; by order where one side has only numbers.

    Args:
        labels: the model's.
        called: the model's name, for messages.

    Raises:
        BadRequest: the model's and the data's classes are not the same.
    """
    own, theirs = tuple(labels), data.classes
    if not theirs or theirs == own:
        return data
    samples = data.samples
    if set(theirs) <= set(own):
        order = torch.tensor([own.index(name) for name in theirs])
        return replace(data, samples=replace(samples, labels=order[samples.labels]), classes=own)
    if len(theirs) <= len(own) and all(map(str.isdecimal, theirs)):
        return replace(data, classes=own)
    if len(theirs) == len(own) and all(re.fullmatch(r"(LABEL_)?\d+", name) for name in own):
        return data
    foreign = next((name for name in theirs if name not in own), theirs[0])
    raise BadRequest(
        f"The data's class {foreign!r} is none of the {len(own)} classes of {called}: {', '.join(own[:20])}. Name the "
        "data's classes as the model does, or give the model that learned from these data."
    )


def _gather(
    path: Path, rows: Iterator[Row], classes: tuple[str, ...], size: int | None, skip_unreadable: bool
) -> Dataset:
    images: list[np.ndarray] = []
    kept: list[Row] = []
    bad: list[str] = []
    for row in rows:
        try:
            images.append(_decoded(row.open, size))
        except (OSError, ValueError, SyntaxError) as e:  # what Pillow raises for broken files of one kind or another
            bad.append(f"{row.name} ({str(e).splitlines()[0] if str(e) else type(e).__name__})")
            continue
        kept.append(row)
    if bad and not skip_unreadable:
        shown = "; ".join(bad[:5]) + (" ..." if len(bad) > 5 else "")
        raise Damaged(
            f"{len(bad)} of {len(bad) + len(kept)} pictures of {path} cannot be read: {shown}. Repair or remove them, "
            "or read with skip_unreadable (--skip-unreadable), which leaves them out."
        )
    if not kept:
        why = f"all {len(bad)} are unreadable" if bad else "there are none"
        raise BadRequest(f"{path} has no pictures ({why}); expected one folder of pictures a class.")
    return Dataset(
        samples=_samples(path, _stacked(path, images, kept), kept, classes), classes=classes, skipped=tuple(bad)
    )


def _samples(path: Path, images: Tensor, rows: Sequence[Row], classes: tuple[str, ...]) -> Samples:
    labels = checked_labels(np.asarray([row.label for row in rows]), classes, [row.name for row in rows], str(path))
    grouped = all(row.group for row in rows)
    return Samples(
        images=images,
        labels=labels,
        names=tuple(row.name for row in rows),
        groups=tuple(row.group for row in rows) if grouped else (),
    )


def checked_labels(labels: np.ndarray, classes: Sequence[str], names: Sequence[str], where: str) -> Tensor:
    """(n,) int64 classes, or float32 values where there are no classes.

    Raises:
        BadRequest: a label that is no index into `classes`, or values that are not finite.
    """
    if labels.dtype.kind == "f" and not classes:
        if not np.isfinite(labels).all():
            row = int(np.flatnonzero(~np.isfinite(labels))[0])
            raise BadRequest(f"The value of {names[row]} in {where} is {labels[row]}; every value must be finite.")
        return torch.from_numpy(labels.astype(np.float32))
    if labels.dtype.kind not in "iu":
        raise BadRequest(f"The labels of {where} are {labels.dtype}; expected whole numbers, indices into the classes.")
    wide = labels.astype(np.int64)
    out = np.flatnonzero((wide < 0) | (wide >= (len(classes) or np.iinfo(np.int64).max)))
    if len(out):
        row, limit = int(out[0]), f"0 to {len(classes) - 1}" if classes else "0 or more"
        raise BadRequest(
            f"{len(out)} labels of {where} are out of range, first {wide[row]} of {names[row]}; expected {limit}. "
            "Correct them, or the list of classes that they index."
        )
    return torch.from_numpy(wide)


def _decoded(load: Callable[[], bytes], size: int | None) -> np.ndarray:
    """(H, W, 3) uint8, turned as its camera says."""
    from PIL import Image, ImageOps

    with Image.open(BytesIO(load())) as picture:
        upright = ImageOps.exif_transpose(picture).convert("RGB")
    return np.asarray(upright if size is None else _fitted(upright, size))


def _fitted(picture: Image.Image, size: int) -> Image.Image:
    """The largest square in the middle, at size x size."""
    from PIL import Image, ImageOps

    return picture if picture.size == (size, size) else ImageOps.fit(picture, (size, size), Image.Resampling.BILINEAR)


def _stacked(path: Path, images: Sequence[np.ndarray], rows: Sequence[Row]) -> Tensor:
    shape = images[0].shape
    for image, row in zip(images, rows, strict=True):
        if image.shape != shape:
            one, other = (f"{s[1]}x{s[0]}" for s in (shape, image.shape))
            raise BadRequest(
                f"The pictures of {path} differ in size: {rows[0].name} is {one}, {row.name} is {other}. "
                "Give the side to resize them to (size=..., --size ...)."
            )
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


# -- folders ---------------------------------------------------------------------------------------------


def _tables(path: Path, split: str) -> list[Path]:
    if path.suffix == ".parquet":
        return [path]
    if not path.is_dir():
        raise BadRequest(f"{path} is neither a folder of pictures nor a .parquet or .npz file.")
    for folder in (path, path / "data"):
        found = sorted(folder.glob("*.parquet"))
        if found:
            chosen = [p for p in found if p.stem.split("-")[0] == split]
            if not chosen:
                there = ", ".join(sorted({p.stem.split("-")[0] for p in found}))
                raise BadRequest(f"{path} has no parquet files of the split {split!r}; it has {there}.")
            return chosen
    return []


def _folder(path: Path, split: str) -> tuple[tuple[str, ...], Iterator[Row]]:
    root = path / split if (path / split).is_dir() else path
    folders = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not folders:
        raise BadRequest(f"{root} is empty or holds no folders; expected one folder of pictures for each class.")
    named = tuple(p.name for p in folders)
    empty = [p.name for p in folders if not any(_pictures(p))]
    if empty:
        raise BadRequest(f"The class folder {empty[0]!r} of {root} holds no pictures; fill it or remove it.")
    return named, _rows_of_folders(path, folders, named)


def _pictures(folder: Path) -> Iterator[Path]:
    return (p for p in sorted(folder.rglob("*")) if p.suffix.lower() in PICTURES and p.is_file())


def _rows_of_folders(path: Path, folders: Sequence[Path], classes: tuple[str, ...]) -> Iterator[Row]:
    for folder in folders:
        for picture in _pictures(folder):
            inside = picture.relative_to(folder).parts
            yield Row(
                name=picture.relative_to(path).as_posix(),
                label=classes.index(folder.name),
                group=inside[0] if len(inside) > 1 else "",
                open=picture.read_bytes,
            )


# -- arrays ----------------------------------------------------------------------------------------------


def _arrays(path: Path, size: int | None) -> Dataset:
    try:
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as e:
        raise Damaged(f"{path} cannot be read as arrays: {e}. It is truncated, damaged or holds Python objects.") from e
    return from_arrays(arrays, size=size, where=str(path))


def from_arrays(arrays: dict[str, np.ndarray], *, size: int | None = None, where: str = "the arrays") -> Dataset:
    """Samples from arrays, named as in an .npz file (see `read`).

    Raises:
        BadRequest: an array is missing, of another shape or type, or labels are out of range.
    """
    if "images" not in arrays:
        raise BadRequest(f"{where} has no array 'images'; it has {', '.join(arrays) or 'none'}.")
    if not len(arrays["images"]):
        raise BadRequest(f"{where} has no pictures (there are none in 'images').")
    images = _as_colour(arrays["images"], where)
    identity = arrays.get("identity")
    names = tuple(str(n) for n in arrays["names"]) if "names" in arrays else tuple(map(str, range(len(images))))
    groups: tuple[str, ...] = ()
    if identity is not None:
        groups = tuple(f"s{i}" for i in identity) if identity.dtype.kind in "iu" else tuple(map(str, identity))
    known = tuple(str(c) for c in arrays.get("classes", ()))
    labels = arrays.get("labels")
    if labels is None:
        if not groups:
            raise BadRequest(f"{where} has neither 'labels' nor 'identity'; a classifier's data needs one of them.")
        known = known or tuple(dict.fromkeys(groups))
        labels = np.asarray([known.index(g) if g in known else -1 for g in groups])
    elif not known and labels.dtype.kind in "iu" and len(labels):
        known = tuple(map(str, range(int(labels.max()) + 1)))
    if len(labels) != len(images):
        raise BadRequest(f"{where} has {len(images)} pictures and {len(labels)} labels; give one for each picture.")
    samples = Samples(
        images=_resized(images, size), labels=checked_labels(labels, known, names, where), names=names, groups=groups
    )
    return Dataset(samples=samples, classes=known)


def _as_colour(images: np.ndarray, where: str) -> Tensor:
    """(n, 3, H, W) uint8."""
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or (images.ndim == 4 and 3 not in images.shape[1::2]):
        raise BadRequest(
            f"'images' of {where} is {images.dtype} {images.shape}; expected uint8 (n, H, W), (n, H, W, 3) or "
            "(n, 3, H, W)."
        )
    tensor = torch.from_numpy(np.ascontiguousarray(images))
    if tensor.dim() == 3:
        return tensor[:, None].expand(-1, 3, -1, -1).contiguous()
    return tensor if tensor.shape[1] == 3 else tensor.permute(0, 3, 1, 2).contiguous()


def _resized(images: Tensor, size: int | None) -> Tensor:
    if size is None or tuple(images.shape[2:]) == (size, size):
        return images
    from PIL import Image

    rows = [np.asarray(_fitted(Image.fromarray(i.permute(1, 2, 0).numpy()), size)) for i in images]
    return torch.from_numpy(np.stack(rows)).permute(0, 3, 1, 2).contiguous()
