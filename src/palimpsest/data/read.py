"""Reads pictures, with what is known of each, from an image folder, from parquet tables or from arrays."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from palimpsest.core.errors import BadRequest, Damaged
from palimpsest.core.pictures import Pictures
from palimpsest.data.arrays import read_arrays
from palimpsest.data.dataset import Dataset
from palimpsest.data.decode import Decoded, Unreadable, decoded, reason, stacked
from palimpsest.data.folders import rows_of_folder
from palimpsest.data.parquet import files_of_tables, rows_of_parquet
from palimpsest.data.raw import Row, labels_of


def read(
    source: str | os.PathLike[str],
    *,
    split: str = "train",
    size: int | None = None,
    skip_unreadable: bool = False,
    labelled: bool = True,
) -> Dataset:
    """Reads a data set, from local files alone.

    Three layouts are known:

    - an image folder: `source/<class>/<picture>`, or `source/<split>/<class>/<picture>`. A further level,
      `<class>/<identity>/<picture>`, says whom each picture shows. Without labels, pictures may lie in the folder
      itself. Beside them: `metadata.csv` or `metadata.jsonl` with `file_name` and further columns (`label` where the
      folders are no classes, `caption` or `text`, `identity`, ...); `<picture>.txt`, a caption; `masks/<picture>`,
      whose red channel is the mask;
    - parquet with columns `image` (a struct with the encoded `bytes`, or the bytes themselves) and `label`, and
      perhaps `identity` and others: one file, or the files of a folder in one of the hub's layouts;
    - `.npz`, see `from_arrays`.

    Everything that the decoder opens is a picture. Links are followed; hidden files are left out at every depth; what
    is left out is named in the result.

    Args:
        source: the folder or file.
        split: which part of the data, where it has parts; "": take all folders as classes.
        size: side in pixels; pictures are resized (shorter side, bilinear) and cut from the centre. None: as they are.
        skip_unreadable: leave out pictures that cannot be decoded, and name them in `skipped`.
        labelled: every picture must have a label.

    Raises:
        BadRequest: nothing is there, no pictures, two ways to read it, pictures of several sizes without `size`, labels
            that are missing or out of range.
        Damaged: pictures that cannot be decoded; the message names the first ones and counts them.
    """
    path = Path(source).expanduser()
    if not path.exists():
        raise BadRequest(f"There is no data at {path}; give a folder of pictures, a .parquet or an .npz file.")
    if path.suffix == ".npz":
        return read_arrays(path, size)
    if path.suffix != ".parquet" and not path.is_dir():
        raise BadRequest(f"{path} is neither a folder of pictures nor a .parquet or .npz file.")
    try:
        tables = files_of_tables(path, split)
        if tables:
            classes, rows, left_out = *rows_of_parquet(tables, labelled), ()
        else:
            classes, rows, left_out = rows_of_folder(path, split, labelled)
    except OSError as e:
        raise BadRequest(f"{e.filename or path} cannot be read: {e.strerror}. Allow it, or leave it out.") from e
    return _gather(path, rows, classes, size, skip_unreadable, left_out)


def _gather(
    path: Path,
    rows: Sequence[Row],
    classes: tuple[str, ...],
    size: int | None,
    skip_unreadable: bool,
    left_out: tuple[str, ...],
) -> Dataset:
    images: list[np.ndarray] = []
    masks: list[np.ndarray] = []
    kept: list[Row] = []
    bad, warned = [], []
    for row in rows:
        try:
            image = _opened(row.open, size)
            mask = None if row.mask is None else _opened(row.mask, size).colours
        except Unreadable as e:
            bad.append(f"{row.name} ({e})")
            continue
        images.append(image.colours)
        kept.append(row)
        warned += [f"{row.name} ({text})" for text in image.warned]
        if mask is not None:
            if mask.shape != image.colours.shape:
                raise BadRequest(f"The mask of {row.name} has another size than the picture; make them equal.")
            masks.append(mask)
    if bad and not skip_unreadable:
        shown = "; ".join(bad[:5]) + (" ..." if len(bad) > 5 else "")
        raise Damaged(
            f"{len(bad)} of {len(rows)} pictures of {path} cannot be read: {shown}. Repair or remove them, "
            "or read with skip_unreadable (--skip-unreadable), which leaves them out."
        )
    if not kept:
        why = f"all {len(bad)} are unreadable" if bad else "there are none"
        raise BadRequest(f"{path} has no pictures ({why}); expected one folder of pictures a class.")
    names = [row.name for row in kept]
    known, counted, labels = classes, False, np.empty(0, np.int64)
    if any(row.label is not None for row in kept):
        known, counted, labels = labels_of([row.label for row in kept], classes, names, str(path))
    samples = Pictures(
        images=torch.from_numpy(stacked(images, names, str(path))),
        names=tuple(names),
        labels=torch.from_numpy(labels),
        captions=tuple(row.caption for row in kept) if any(row.caption for row in kept) else (),
        masks=torch.from_numpy(stacked(masks, names, str(path)))[:, :1].float() / 255 if masks else None,
        columns={
            name: tuple(row.columns.get(name, "") for row in kept)
            for name in dict.fromkeys(name for row in kept for name in row.columns)
        },
    )
    return Dataset(
        samples=samples,
        classes=known,
        counted=counted,
        skipped=tuple(bad),
        left_out=left_out,
        warned=tuple(warned),
    )


def _opened(load: Callable[[], bytes], size: int | None) -> Decoded:
    try:
        encoded = load()
    except Exception as e:  # the file, or what the table holds in its place
        raise Unreadable(reason(e)) from e
    return decoded(encoded, size)
