"""A user's own pictures of something that a model shall learn: read, cut to one size, captioned and masked."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch

from palimpsest.core.concept import Kind
from palimpsest.core.errors import BadRequest, Damaged
from palimpsest.core.pictures import Pictures
from palimpsest.data.dataset import NAMED, Dataset
from palimpsest.data.decode import Unreadable, decoded, fitted, formats, is_picture, reason
from palimpsest.data.folders import MASKS, files_of
from palimpsest.data.metadata import Fact, metadata_of
from palimpsest.data.raw import Row
from palimpsest.data.tables import decoded as text_of
from palimpsest.ops.prompts import TEMPLATES, holds, swapped

AUTO, FILE, WORD = "auto", "file", "{word}"


@dataclass(frozen=True, eq=False)
class _Opened:
    """One picture at its own size: (H, W, 3) and (H, W) bytes, and what the decoder warned of."""

    colours: np.ndarray
    mask: np.ndarray | None
    warned: tuple[str, ...]


def references(
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    size: int,
    skip_unreadable: bool = False,
) -> Dataset:
    """Reads a handful of pictures of one thing, from local files alone.

    A folder is read at every depth. Captions stand in `<picture>.txt` or in the folder's `metadata.csv` or
    `metadata.jsonl` (`file_name`, `caption` or `text`, further columns); masks lie at `masks/<picture>` (the red
    channel: 255 what the picture is about, 127 half of it), else a picture's alpha is its mask. Beside single files the
    same names are looked for.

    Pictures are turned as their camera says, brought from their colour profile to sRGB, laid on white where they are
    transparent, cut to the largest square around what the mask marks (else around the middle), and resized.

    Args:
        source: a folder, a file, or several of them.
        size: side of the square pictures, as the model draws them.
        skip_unreadable: leave out pictures that cannot be decoded, and name them in `skipped`.

    Returns:
        A Dataset without classes. `samples`: Pictures with captions, masks and columns as far as there are some.
        `left_out` names what is no picture, and pictures that equal another one pixel by pixel; `warned` those that
        had to be enlarged.

    Raises:
        BadRequest: nothing is there, no pictures, all are equal, a mask of another size than its picture or with
            nothing in it, some pictures without one.
        Damaged: pictures that cannot be decoded; the message names the first ones and counts them.
    """
    if size < 1:
        raise BadRequest(f"size is {size}; give the side of the pictures, as the model draws them.")
    paths = [source] if isinstance(source, (str, os.PathLike)) else list(source)
    rows, left_out = [], []
    for path in map(Path, paths):
        found, passed = _rows(path.expanduser())
        rows += found
        left_out += passed
    where = ", ".join(map(str, paths))
    if not rows:
        beside = f" Passed over: {'; '.join(left_out[:NAMED])}." if left_out else ""
        raise BadRequest(f"{where or 'The list'} holds no pictures; give a folder of them, or files.{beside}")
    kept, pictures, skipped = _read(rows, where, skip_unreadable)
    kept, pictures, copies = _distinct(kept, pictures)
    if copies and len(kept) == 1:
        raise BadRequest(f"All {len(copies) + 1} pictures of {where} are equal, pixel by pixel; give different ones.")
    _masked_alike(kept, pictures, where)
    cut = [_cut(row.name, picture, size) for row, picture in zip(kept, pictures, strict=True)]
    names = dict.fromkeys(name for row in kept for name in row.columns)
    samples = Pictures(
        images=_stacked([colours for colours, _ in cut]),
        names=tuple(row.name for row in kept),
        captions=tuple(row.caption for row in kept) if any(row.caption for row in kept) else (),
        masks=None if cut[0][1] is None else _stacked([m[..., None] for _, m in cut if m is not None]).float() / 255,
        columns={name: tuple(row.columns.get(name, "") for row in kept) for name in names},
    )
    return Dataset(
        samples=samples,
        classes=(),
        skipped=tuple(skipped),
        left_out=(*left_out, *copies),
        warned=tuple(text for row, p in zip(kept, pictures, strict=True) for text in _warned(row.name, p, size)),
    )


def captioned(pictures: Pictures, word: str, how: str = AUTO, *, like: str = "", kind: Kind = "object") -> Pictures:
    """The same pictures with captions that all hold the word that is taught.

    Args:
        word: the word.
        how: "file": captions stay as they are, and each must hold the word. "auto": captions without the word get it,
            in the place of `like` where they name that, else in front ("<v>, a dog on a sofa"); pictures without a
            caption are "a picture of <v>", or as their kind asks for it. Otherwise a caption for all, with "{word}" in
            it: "a photo of {word}".
        like: the class that the word belongs to ("dog"), "" where nobody said.
        kind: of the concept; chooses the words of captions that are made.

    Raises:
        BadRequest: no word, captions that lack it under "file", or an unknown `how`.
    """
    if not word.strip():
        raise BadRequest("The word that the pictures teach is empty; give one.")
    said = pictures.captions or ("",) * len(pictures)
    if how == FILE:
        without = [n for n, text in zip(pictures.names, said, strict=True) if not holds(text, word)]
        if without:
            shown = ", ".join(without[:NAMED]) + (" ..." if len(without) > NAMED else "")
            raise BadRequest(
                f"The captions of {len(without)} of {len(said)} pictures do not hold the word {word!r}: {shown}. Write "
                "it into them, or let it be put in (--captions auto)."
            )
        return pictures
    if how == AUTO:
        plain = next(t for t in TEMPLATES[kind] if t.startswith("a picture")).format(word)
        return replace(pictures, captions=tuple(_with(text, word, like, plain) for text in said))
    if WORD not in how:
        raise BadRequest(
            f"Captions {how!r} are not known; give auto, file, or a caption with {WORD} in it ('a photo of {WORD}')."
        )
    return replace(pictures, captions=(how.replace(WORD, word),) * len(pictures))


def _with(text: str, word: str, like: str, plain: str) -> str:
    if not text.strip():
        return plain
    if holds(text, word):
        return text
    return swapped(text, like, word) if like and holds(text, like) else f"{word}, {text}"


# -- which files ------------------------------------------------------------------------------------------


def _rows(path: Path) -> tuple[list[Row], list[str]]:
    """The pictures of a folder or file, with their captions, masks and columns, and what was left out."""
    if not path.exists():
        raise BadRequest(f"There are no pictures at {path}; give a folder of them, or files.")
    try:
        return _of_folder(path) if path.is_dir() else ([_of_file(path)], [])
    except OSError as e:
        raise BadRequest(f"{e.filename or path} cannot be read: {e.strerror}. Allow it, or leave it out.") from e


def _of_folder(root: Path) -> tuple[list[Row], list[str]]:
    files, facts = files_of(root), metadata_of(root)
    inside = {where: file for where, file in files.pictures.items() if where.parts[0] == MASKS and len(where.parts) > 1}
    pictures = {where: file for where, file in files.pictures.items() if where not in inside}
    masks = {PurePosixPath(*where.with_suffix("").parts[1:]): file for where, file in inside.items()}
    alone = [str(where) for where in masks if where not in {p.with_suffix("") for p in pictures}]
    if alone:
        raise BadRequest(
            f"{len(alone)} of {len(masks)} files of {root / MASKS} are called like no picture, first {alone[0]}. Masks "
            f"lie at {MASKS}/<path of the picture>; rename or remove them."
        )
    if facts is not None:
        facts.check([str(where) for where in pictures])
    rows = []
    for where, file in pictures.items():
        fact = None if facts is None else facts.of(str(where))
        text = files.texts.get(where.with_suffix(""))
        rows.append(_row(str(where), file, text, masks.get(where.with_suffix("")), fact))
    return rows, list(files.left_out)


def _of_file(file: Path) -> Row:
    if not is_picture(file):
        raise BadRequest(f"{file} is neither a folder nor a picture; give a folder of pictures, or files.")
    text = file.with_suffix(".txt")
    mask = next((m for m in sorted((file.parent / MASKS).glob("*")) if m.stem == file.stem and is_picture(m)), None)
    facts = metadata_of(file.parent)
    fact = facts.of(file.name) if facts is not None and file.name in facts.rows else None
    return _row(str(file), file, text if text.is_file() else None, mask, fact)


def _row(name: str, file: Path, text: Path | None, mask: Path | None, fact: Fact | None) -> Row:
    said = "" if fact is None else fact.caption
    if text is not None:
        said = text_of(text.read_bytes(), text, "a caption").strip()
    columns: Mapping[str, str] = {} if fact is None else fact.columns
    opened = None if mask is None else mask.read_bytes
    return Row(name=name, open=file.read_bytes, caption=said, mask=opened, columns=columns)


# -- what they hold ---------------------------------------------------------------------------------------


def _read(rows: Sequence[Row], where: str, skip: bool) -> tuple[list[Row], list[_Opened], list[str]]:
    """The rows that can be decoded, their pictures, and the others with the reason."""
    kept, pictures, bad = [], [], []
    for row in rows:
        try:
            picture = _opened(row)
        except Unreadable as e:
            bad.append(f"{row.name} ({e})")
            continue
        kept.append(row)
        pictures.append(picture)
    if bad and (not skip or not kept):
        shown = "; ".join(bad[:NAMED]) + (" ..." if len(bad) > NAMED else "")
        raise Damaged(
            f"{len(bad)} of {len(rows)} pictures of {where} cannot be read: {shown}. Repair or remove them, or read "
            "with skip_unreadable (--skip-unreadable), which leaves them out."
        )
    return kept, pictures, bad


def _opened(row: Row) -> _Opened:
    """A picture and its mask.

    Raises:
        Unreadable: one of them cannot be decoded.
        BadRequest: the mask is of another size, or marks nothing.
    """
    from PIL import Image, ImageOps

    encoded = row.open()
    plain = decoded(encoded)
    colours, warned = plain.colours, list(plain.warned)
    with Image.open(BytesIO(encoded), formats=formats()) as picture:
        upright = ImageOps.exif_transpose(picture)
        profile = picture.info.get("icc_profile")
        if profile and upright.mode in ("RGB", "RGBA", "P", "L", "LA", "CMYK"):
            try:
                colours = _in_srgb(upright, profile)
            except Unreadable as e:
                warned.append(f"its colour profile cannot be used ({e}), so its colours are taken as sRGB")
        alpha = None
        if {"A", "a"} & set(upright.getbands()) or "transparency" in upright.info:
            alpha = np.asarray(upright.convert("RGBA").getchannel("A"))
    mask = None
    if alpha is not None and alpha.min() < 255:
        cover, mask = alpha[..., None] / 255, alpha
        colours = np.rint(colours * cover + 255 * (1 - cover)).astype(np.uint8)
    if row.mask is not None:
        try:
            mask = decoded(row.mask()).colours[..., 0]
        except Unreadable as e:
            raise Unreadable(f"its mask: {e}") from e
    if mask is not None and mask.shape != colours.shape[:2]:
        (h, w), (mask_h, mask_w) = colours.shape[:2], mask.shape
        raise BadRequest(
            f"The mask of {row.name} is {mask_w}x{mask_h} and the picture {w}x{h} (as its camera was held); make the "
            "mask as large as the picture."
        )
    if mask is not None and not mask.any():
        raise BadRequest(f"The mask of {row.name} marks nothing: all of it is 0. Mark the subject in white.")
    return _Opened(colours, mask, tuple(warned))


def _in_srgb(upright: Any, profile: bytes) -> np.ndarray:
    """(H, W, 3) bytes of a Pillow image whose colours are told by a profile."""
    from PIL import ImageCms

    picture = upright if upright.mode in ("L", "CMYK") else upright.convert("L" if upright.mode == "LA" else "RGB")
    try:
        told = ImageCms.ImageCmsProfile(BytesIO(profile))
        turned = ImageCms.profileToProfile(picture, told, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError) as e:
        raise Unreadable(reason(str(e))) from e
    return np.asarray(turned)


def _distinct(rows: Sequence[Row], pictures: Sequence[_Opened]) -> tuple[list[Row], list[_Opened], list[str]]:
    """The first of those that are equal pixel by pixel, and the others in words."""
    first: dict[tuple[tuple[int, ...], bytes], str] = {}
    kept, left, copies = [], [], []
    for row, picture in zip(rows, pictures, strict=True):
        seen = (picture.colours.shape, picture.colours.tobytes())
        if seen in first:
            copies.append(f"{row.name} (equals {first[seen]}, pixel by pixel)")
            continue
        first[seen] = row.name
        kept.append(row)
        left.append(picture)
    return kept, left, copies


def _masked_alike(rows: Sequence[Row], pictures: Sequence[_Opened], where: str) -> None:
    bare = [row.name for row, picture in zip(rows, pictures, strict=True) if picture.mask is None]
    if bare and len(bare) < len(rows):
        raise BadRequest(
            f"{len(bare)} of {len(rows)} pictures of {where} have no mask, first {bare[0]}; add theirs (a white one "
            "marks all), or remove the others."
        )


def _cut(name: str, picture: _Opened, size: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Picture and mask as squares of one size, around what the mask marks."""
    from PIL import Image

    h, w = picture.colours.shape[:2]
    side, middle = min(h, w), (w / 2, h / 2)
    if picture.mask is not None:
        weight = picture.mask / picture.mask.sum(dtype=np.int64)
        middle = (float(weight.sum(0) @ (np.arange(w) + 0.5)), float(weight.sum(1) @ (np.arange(h) + 0.5)))
    left, top = (round(min(max(m - side / 2, 0), most - side)) for m, most in zip(middle, (w, h), strict=True))
    window = slice(top, top + side), slice(left, left + side)
    colours = np.asarray(fitted(Image.fromarray(picture.colours[window]), size))
    if picture.mask is None:
        return colours, None
    mask = np.asarray(fitted(Image.fromarray(picture.mask[window]), size))
    if not mask.any():
        raise BadRequest(f"Nothing is left of the mask of {name} in a square of {size} pixels; cut the picture closer.")
    return colours, mask


def _stacked(squares: Sequence[np.ndarray]) -> torch.Tensor:
    """(n, c, size, size) of (size, size, c) bytes."""
    return torch.from_numpy(np.ascontiguousarray(np.stack(squares).transpose(0, 3, 1, 2)))


def _warned(name: str, picture: _Opened, size: int) -> list[str]:
    h, w = picture.colours.shape[:2]
    small = [f"{w}x{h}, enlarged to {size}x{size}"] if min(h, w) < size else []
    return [f"{name} ({text})" for text in (*picture.warned, *small)]
