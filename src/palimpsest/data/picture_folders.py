"""Pictures in files as the two sides of a comparison: paired by file name, held to one hash of all of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import ClassVar

import numpy as np

from palimpsest.core.errors import BadRequest, Damaged
from palimpsest.core.printable import printable
from palimpsest.data.decode import Unreadable
from palimpsest.data.originals import Original, original
from palimpsest.data.sources import SUFFIX, Found, found

NAMED = 3  # pictures that a message names


@dataclass(frozen=True, kw_only=True, eq=False)
class PictureFolder:
    """Pictures by the names under which a comparison knows them.

    Args:
        name: of the folder, file or glob, as the user wrote it.
        files: by the pictures' paths within it; where it was paired, by those of the other side.
    """

    kind: ClassVar[str] = "pictures"
    name: str
    files: Mapping[str, Path]

    @classmethod
    def of(cls, source: str | Path | Found, name: str = "") -> PictureFolder:
        """The pictures of a folder at every depth, of a file or a glob.

        Raises:
            BadRequest: there are none.
        """
        pictures = source.pictures if isinstance(source, Found) else found(source).pictures
        given = str(source.root) if isinstance(source, Found) else str(source)
        return cls(name=name or given, files={str(k): v for k, v in pictures.items()})

    def __len__(self) -> int:
        return len(self.files)

    def only(self, names: Iterable[str]) -> PictureFolder:
        """Of these names those that are there, in this order."""
        return PictureFolder(name=self.name, files={n: self.files[n] for n in names if n in self.files})

    def paired(self, names: Iterable[str]) -> PictureFolder:
        """The same pictures under the names of the other side: the same path, with whatever ending, also after
        "_mask". Names without a partner, and pictures without one, are left out."""
        stems: dict[str, list[str]] = {}
        for name in self.files:
            stems.setdefault(_stem(name), []).append(name)
        found: dict[str, Path] = {}
        for name in names:
            nearest = (name, f"{name}.png", *stems.get(_stem(name), ()), *stems.get(_stem(name) + SUFFIX, ()))
            partner = next((n for n in nearest if n in self.files), None)
            if partner is not None:
                found[name] = self.files[partner]
        return PictureFolder(name=self.name, files=found)

    def fingerprint(self) -> str:
        """sha256 over the names and bytes of all pictures."""
        h = hashlib.sha256()
        for name, file in sorted(self.files.items()):
            h.update(f"{name}\0{hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
        return h.hexdigest()

    def picture(self, name: str) -> Original:
        """A picture with what its file says.

        Raises:
            Damaged: it cannot be read.
        """
        try:
            return original(self.files[name].read_bytes())
        except (Unreadable, OSError) as e:
            raise Damaged(f"{printable(str(self.files[name]))} cannot be read: {e}.") from e

    def mask(self, name: str, height: int, width: int) -> np.ndarray:
        """(height, width) float32 in [0, 1] of a picture read as a mask, brought to this size."""
        from PIL import Image

        grey = self.picture(name).colours.max(2)
        if grey.shape != (height, width):
            grey = np.asarray(Image.fromarray(grey).resize((width, height), Image.Resampling.BILINEAR))
        return grey.astype(np.float32) / 255


def pair(before: PictureFolder, after: PictureFolder) -> tuple[PictureFolder, PictureFolder]:
    """Both sides under the names of the first, picture by picture.

    Raises:
        BadRequest: a picture has no partner on the other side, or two share one.
    """
    both = after.paired(before.files)
    lonely = [name for name in before.files if name not in both.files]
    used = list(both.files.values())
    extra = [name for name, file in after.files.items() if file not in set(used)]
    for names, there, other in ((lonely, before, after), (extra, after, before)):
        if names:
            some = ", ".join(map(printable, names[:NAMED])) + (", ..." if len(names) > NAMED else "")
            raise BadRequest(
                f"{len(names)} of {len(there)} pictures of {printable(there.name)} have no partner in "
                f"{printable(other.name)} ({some}). Pictures are paired by file name, endings aside: rename or leave "
                "them out."
            )
    if len(set(used)) < len(used):
        twice = next(n for n, f in both.files.items() if used.count(f) > 1)
        raise BadRequest(f"{printable(twice)} shares its partner with another picture; give each a name of its own.")
    return before, both


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))
