"""Which pictures are meant by a folder, a file or a glob, and which mask or reference belongs to which."""

from __future__ import annotations

import glob
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from palimpsest.core.errors import BadRequest, Damaged
from palimpsest.core.printable import printable
from palimpsest.data.decode import Unreadable, decoded, is_picture
from palimpsest.data.folders import files_of

SUFFIX = "_mask"
WILD = "*?["


@dataclass(frozen=True, kw_only=True)
class Found:
    """Pictures by their path within a folder.

    Args:
        root: the folder. pictures: their files. left_out: what else lies there, with the reason.
    """

    root: Path
    pictures: Mapping[PurePosixPath, Path]
    left_out: tuple[str, ...] = ()

    def refuse_out(self, out: Path) -> None:
        """Raises BadRequest where what is written would lie among what is read, or the other way round."""
        there, here = out.resolve(), self.root.resolve()
        if there == here or here in there.parents or (there in here.parents and _holds(there, self.pictures.values())):
            raise BadRequest(
                f"The out folder {out} and the pictures ({self.root}) lie within each other; the edits would be taken "
                "for sources. Give a folder beside them."
            )


def _holds(folder: Path, files: object) -> bool:
    return any((folder / "images") in file.resolve().parents for file in files)  # type: ignore[attr-defined]


def found(source: str | Path) -> Found:
    """The pictures of a folder at every depth, one file, or what a glob matches.

    Raises:
        BadRequest: nothing is there, or no picture.
    """
    path = Path(source).expanduser()
    try:
        if path.is_dir():
            files = files_of(path)
            which = Found(root=path, pictures=files.pictures, left_out=files.left_out)
        elif path.is_file():
            which = Found(root=path.parent, pictures={PurePosixPath(path.name): path})
        elif any(c in str(source) for c in WILD):
            which = _matched(path)
        else:
            raise BadRequest(f"There are no pictures at {printable(str(path))}; give a folder, a file or a glob.")
    except OSError as e:
        raise BadRequest(f"{e.filename or path} cannot be read: {e.strerror}. Allow it, or leave it out.") from e
    if not which.pictures:
        raise BadRequest(f"{printable(str(path))} holds no pictures.")
    return which


def _matched(pattern: Path) -> Found:
    """Files that a glob matches, by their paths below its last part without wildcards."""
    fixed = [part for i, part in enumerate(pattern.parts) if not _wild(pattern.parts[: i + 1])]
    root = Path(*fixed) if fixed else Path()
    files = sorted(Path(name) for name in glob.glob(str(pattern), recursive=True) if Path(name).is_file())
    pictures = {PurePosixPath(f.relative_to(root).as_posix()): f for f in files if is_picture(f)}
    left = tuple(f"{f.relative_to(root).as_posix()} (no picture)" for f in files if not is_picture(f))
    return Found(root=root, pictures=pictures, left_out=left)


def _wild(parts: tuple[str, ...]) -> bool:
    return any(c in part for part in parts for c in WILD)


class Masks:
    """Masks of pictures, by the pictures' paths without endings, with or without "_mask"; white may change.

    Args:
        folder: of the masks; None: every picture may change everywhere.

    Raises:
        BadRequest: no such folder, a mask of no picture, two masks of one, or a picture without a mask.
    """

    def __init__(self, folder: str | Path | None, of: Found) -> None:
        self._files: dict[PurePosixPath, Path] = {}
        self._given = folder is not None
        if folder is None:
            return
        path = Path(folder).expanduser()
        if not path.is_dir():
            raise BadRequest(f"There is no folder of masks at {printable(str(path))}.")
        stems = {name.with_suffix("") for name in of.pictures}
        for name, file in files_of(path).pictures.items():
            stem = name.with_suffix("")
            if stem not in stems and stem.name.endswith(SUFFIX):
                stem = stem.with_name(stem.name.removesuffix(SUFFIX))
            if stem not in stems:
                raise BadRequest(f"The mask {printable(str(name))} is called like no picture; masks have their names.")
            if stem in self._files:
                raise BadRequest(f"{printable(str(stem))} has two masks, {self._files[stem].name} and {file.name}.")
            self._files[stem] = file
        bare = sorted(map(str, stems - set(self._files)))
        if bare:
            raise BadRequest(f"{len(bare)} pictures have no mask in {path}, first {printable(bare[0])}; add them.")

    def of(self, name: PurePosixPath, height: int, width: int) -> np.ndarray | None:
        """(height, width) float32 in [0, 1] of a picture of this size; None where no masks were given.

        Raises:
            BadRequest: it marks nothing. Damaged: it cannot be read.
        """
        if not self._given:
            return None
        from PIL import Image

        file = self._files[name.with_suffix("")]
        try:
            mask = decoded(file.read_bytes()).colours.max(2)
        except (Unreadable, OSError) as e:
            raise Damaged(f"The mask {printable(file.name)} cannot be read: {e}.") from e
        if not mask.any():
            raise BadRequest(f"The mask {printable(file.name)} is black: nothing may change. White may change.")
        if mask.shape != (height, width):
            mask = np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.BILINEAR))
        return mask.astype(np.float32) / 255


class References:
    """Pictures whose style, or whatever else, the edits of others take: one for all, or by the pictures' names.

    Args:
        source: a picture, which serves all, or a folder with one for each, called like it, endings aside; None: none.

    Raises:
        BadRequest: nothing is there, two references of one picture, or a picture without one.
    """

    def __init__(self, source: str | Path | None, of: Found) -> None:
        self._files: dict[PurePosixPath, Path] = {}
        if source is None:
            return
        path = Path(source).expanduser()
        if path.is_file():
            self._files = dict.fromkeys((name.with_suffix("") for name in of.pictures), path)
            return
        if not path.is_dir():
            raise BadRequest(f"There is no reference at {printable(str(path))}; give a picture, or a folder of them.")
        for name, file in files_of(path).pictures.items():
            stem = name.with_suffix("")
            if stem in self._files:
                raise BadRequest(
                    f"{printable(str(stem))} has two references, {self._files[stem].name} and {file.name}."
                )
            self._files[stem] = file
        bare = sorted(str(name) for name in of.pictures if name.with_suffix("") not in self._files)
        if bare:
            raise BadRequest(
                f"{len(bare)} of {len(of.pictures)} pictures have no reference in {printable(str(path))}, first "
                f"{printable(bare[0])}; references are called like the pictures, or give one file for all of them."
            )

    def of(self, name: PurePosixPath) -> bytes | None:
        """The file of a picture's reference; None where none were given.

        Raises:
            Damaged: it cannot be read.
        """
        file = self._files.get(name.with_suffix(""))
        try:
            return None if file is None else file.read_bytes()
        except OSError as e:
            raise Damaged(f"The reference {printable(str(file))} cannot be read: {e.strerror}.") from e


def colours_of(reference: bytes) -> np.ndarray:
    """(H, W, 3) uint8 of a reference's file.

    Raises:
        Damaged: it is no picture that can be read.
    """
    try:
        return decoded(reference).colours
    except Unreadable as e:
        raise Damaged(f"A reference cannot be read: {e}.") from e
