"""Image folders: which files are pictures of which class, and what stands beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from palimpsest.core.errors import BadRequest
from palimpsest.data.decode import is_picture
from palimpsest.data.metadata import METADATA, Facts, metadata_of
from palimpsest.data.raw import Row

PARTS = ("train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval", "evaluation")
MASKS = "masks"
SYSTEM = ("__MACOSX", "@eaDir")  # what archivers and file servers put beside pictures


@dataclass(frozen=True)
class Files:
    """What lies in a folder, at every depth.

    Args:
        pictures: by their path within the folder. texts: captions beside pictures, by the path without its ending.
        left_out: every other file or link, with the reason.
    """

    pictures: Mapping[PurePosixPath, Path]
    texts: Mapping[PurePosixPath, Path] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()


def rows_of_folder(path: Path, split: str, labelled: bool) -> tuple[tuple[str, ...], list[Row], tuple[str, ...]]:
    """The classes' names, the pictures, and what was left out.

    Raises:
        BadRequest: no pictures, an empty class, no classes where they are needed, two ways to read the folders, or
            metadata and masks that do not fit the pictures.
    """
    root = _part(path, split, labelled)
    files = files_of(root)
    facts = metadata_of(root)
    pictures, masks = _masks(files.pictures, root)
    classes = tuple(sorted({where.parts[0] for where in pictures if len(where.parts) > 1}))
    _no_empty_class(root, classes, masks)
    left_out = list(files.left_out)
    if classes:
        loose = [where for where in pictures if len(where.parts) == 1]
        left_out += [f"{where} (lies outside the folders of the classes)" for where in loose]
        pictures = {where: file for where, file in pictures.items() if len(where.parts) > 1}
    if not pictures:
        raise BadRequest(f"{root} holds no pictures; expected one folder of pictures for each class.")
    if labelled and not classes and (facts is None or not facts.has_labels):
        raise BadRequest(
            f"The pictures of {root} have no classes; expected one folder of pictures for each class, or a "
            "metadata.csv beside the pictures with the columns file_name and label."
        )
    if facts is not None:
        facts.check([str(where) for where in pictures])
    prefix = root.relative_to(path)
    rows = [_row(prefix, where, file, files.texts, facts, masks, classes) for where, file in pictures.items()]
    return classes, rows, tuple(str(prefix / name) for name in left_out)


def _row(
    prefix: Path,
    where: PurePosixPath,
    file: Path,
    texts: Mapping[PurePosixPath, Path],
    facts: Facts | None,
    masks: Mapping[PurePosixPath, Path],
    classes: Sequence[str],
) -> Row:
    said, columns = "", {}
    label = classes.index(where.parts[0]) if classes else None
    if classes and len(where.parts) > 2:
        columns["identity"] = where.parts[1]
    if facts is not None:
        fact = facts.of(str(where))
        said, columns = fact.caption, {**columns, **fact.columns}
        label = fact.label if label is None else label
    text, mask = texts.get(where.with_suffix("")), masks.get(where.with_suffix(""))
    if text is not None:
        said = _text(text)
    return Row(
        name=(prefix / where).as_posix(),
        open=file.read_bytes,
        label=label,
        caption=said,
        mask=None if mask is None else mask.read_bytes,
        columns=columns,
    )


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig").strip()
    except (OSError, ValueError) as e:
        raise BadRequest(f"The caption {file} cannot be read: {e}. Save it in UTF-8.") from e


# -- which files ------------------------------------------------------------------------------------------


def files_of(root: Path) -> Files:
    """What lies in a folder, links followed, hidden files and folders left out at every depth.

    Cost: a file whose name does not end like a picture's is opened to see whether it is one.
    """
    left: list[str] = []
    every = {PurePosixPath(file.relative_to(root).as_posix()): file for file in _walk(root, root, left, ())}
    pictures = {where: file for where, file in every.items() if is_picture(file)}
    stems = {where.with_suffix("") for where in pictures}
    texts = {}
    for where, file in every.items():
        if where in pictures or str(where) in METADATA:
            continue
        if where.suffix.lower() == ".txt" and where.with_suffix("") in stems:
            texts[where.with_suffix("")] = file
        else:
            left.append(f"{where} (no picture)")
    return Files(pictures, texts, tuple(left))


def _walk(folder: Path, root: Path, left: list[str], within: tuple[tuple[int, int], ...]) -> Iterator[Path]:
    """Files in the order of their paths; what is passed over is added to `left`."""
    status = folder.stat()
    here = (*within, (status.st_dev, status.st_ino))
    for entry in sorted(folder.iterdir()):
        where = entry.relative_to(root).as_posix()
        if entry.name.startswith(".") or entry.name in SYSTEM:
            left.append(f"{where} (hidden)")
        elif entry.is_dir():
            status = entry.stat()
            if (status.st_dev, status.st_ino) in here:
                left.append(f"{where} (a link to a folder that it lies in)")
            else:
                yield from _walk(entry, root, left, here)
        elif entry.is_file():
            yield entry
        else:
            left.append(f"{where} ({'a link to nothing' if entry.is_symlink() else 'no ordinary file'})")


def _folders(path: Path) -> list[Path]:
    return sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith(".") and p.name not in SYSTEM)


def _holds(path: Path, *, deeper: bool) -> bool:
    """Whether a folder holds a picture at any depth; deeper: in a folder of its own."""
    return any(is_picture(file) and (not deeper or file.parent != path) for file in _walk(path, path, [], ()))


def _no_empty_class(root: Path, classes: Sequence[str], masks: Mapping[PurePosixPath, Path]) -> None:
    for folder in _folders(root):
        if classes and folder.name not in classes and not (masks and folder.name == MASKS):
            raise BadRequest(f"The class folder {folder.name!r} of {root} holds no pictures; fill it or remove it.")


# -- which folders ----------------------------------------------------------------------------------------


def _part(path: Path, split: str, labelled: bool) -> Path:
    """The folder of a part of the data, where the data have parts; otherwise the whole.

    A folder called like a part is one if it holds folders of pictures, or a list of them, and the only folders of
    pictures beside it are called like parts too.
    """
    folders = [folder for folder in _folders(path) if folder.name != MASKS]
    named = [folder for folder in folders if folder.name.casefold() in (*PARTS, split.casefold())]
    if not split or not named:
        return path
    classes = [f for f in folders if f not in named and _holds(f, deeper=False)]
    lists = [f for f in named if any((f / name).is_file() for name in METADATA)]
    parts = [f for f in named if f in lists or _holds(f, deeper=labelled)]
    if not parts and classes:  # folders of loose pictures are classes, whatever they are called
        return path
    if not parts or classes:
        raise _two_readings(path, parts or named, [*classes, *named])
    chosen = path / split
    if chosen not in parts:
        there = ", ".join(f.name for f in parts)
        raise BadRequest(f"{path} has no part called {split!r}; it has {there}. Name one (split=..., --split ...).")
    return chosen


def _two_readings(path: Path, parts: Sequence[Path], classes: Sequence[Path]) -> BadRequest:
    named, classed = (", ".join(sorted(f.name for f in some)) for some in (parts, classes))
    return BadRequest(
        f"{path} can be read in two ways: parts of the data ({named}), or classes ({classed}). For a part give its own "
        f"folder ({parts[0]}); for classes give an empty split (split='', --split '')."
    )


def _masks(
    pictures: Mapping[PurePosixPath, Path], root: Path
) -> tuple[dict[PurePosixPath, Path], dict[PurePosixPath, Path]]:
    """The pictures, and the masks of `masks/` by the path of the picture that they mask, without its ending.

    `masks` is a class like another unless its files are called like pictures outside of it.

    Raises:
        BadRequest: only some are, or some pictures lack one.
    """
    inside = {where: file for where, file in pictures.items() if where.parts[0] == MASKS and len(where.parts) > 1}
    others = {where: file for where, file in pictures.items() if where not in inside}
    stems = {where.with_suffix("") for where in others}
    masks = {PurePosixPath(*where.with_suffix("").parts[1:]): file for where, file in inside.items()}
    foreign = [where for where in masks if where not in stems]
    if not masks or len(foreign) == len(masks):
        return dict(pictures), {}
    if foreign:
        raise BadRequest(
            f"{len(masks) - len(foreign)} of {len(masks)} files of {root / MASKS} are called like a picture and others "
            f"are not, first {foreign[0]}. Masks lie at {MASKS}/<path of the picture>; a class needs another name."
        )
    bare = sorted(str(where) for where in stems - set(masks))
    if bare:
        raise BadRequest(f"{len(bare)} of {len(stems)} pictures of {root} have no mask, first {bare[0]}; add them.")
    return others, masks
