"""Pictures that others made, read part by part: a folder of photographs to compare with, however many."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from palimpsest.core.errors import BadRequest, Damaged
from palimpsest.core.printable import printable
from palimpsest.data.decode import Unreadable, decoded, reason
from palimpsest.data.folders import rows_of_folder
from palimpsest.data.parquet import files_of_tables, rows_of_parquet

MOST = 4_000  # pictures that are read of a larger folder, evenly spread


class Photos:
    """Pictures of a folder, or of a parquet file, that are never in memory all at once.

    Args:
        source: the folder, at whatever depth they lie in it, or the file.
        size: side in pixels; the largest square in the middle of each is resized to it (bilinear).
        least: how few are too few.

    Raises:
        BadRequest: nothing is there, or fewer pictures than `least`.

    Cost: every chosen file is read once, for `sha256`; decoding waits for `parts`.
    """

    def __init__(self, source: str | os.PathLike[str], *, size: int, least: int = 1) -> None:
        path = Path(source).expanduser()
        if not path.is_dir() and path.suffix != ".parquet":
            raise BadRequest(f"There are no pictures at {path}; give a folder of pictures or a .parquet file.")
        try:
            tables = files_of_tables(path, "train")
            rows = rows_of_parquet(tables, False)[1] if tables else rows_of_folder(path, "", False)[1]
        except OSError as e:
            raise BadRequest(f"{e.filename or path} cannot be read: {e.strerror}. Allow it, or leave it out.") from e
        if len(rows) < least:
            raise BadRequest(f"{path} holds {len(rows)} pictures; it takes at least {least}, better some hundreds.")
        self.name, self.size, self.found = printable(path.name or str(path)), size, len(rows)
        chosen = torch.linspace(0, len(rows) - 1, min(MOST, len(rows))).long().tolist()
        self._rows = [rows[i] for i in chosen]
        self.sha256 = self._hashed()

    def __len__(self) -> int:
        return len(self._rows)

    def parts(self, n: int = 64) -> Iterator[Tensor]:
        """(up to n, 3, size, size) uint8, in order.

        Raises:
            Damaged: a picture that cannot be decoded.
        """
        for i in range(0, len(self), n):
            rows = []
            for row in self._rows[i : i + n]:
                try:
                    rows.append(torch.from_numpy(decoded(row.open(), self.size).colours.copy()))
                except (Unreadable, OSError) as e:
                    raise Damaged(
                        f"{printable(row.name)} of {self.name} cannot be read ({reason(e)}). Repair or remove it."
                    ) from e
            yield torch.stack(rows).permute(0, 3, 1, 2).contiguous()

    def _hashed(self) -> str:
        """sha256 over the sha256 of every picture's encoded bytes, in order."""
        whole = hashlib.sha256()
        for row in self._rows:
            try:
                whole.update(hashlib.sha256(row.open()).digest())
            except OSError as e:
                raise Damaged(f"{printable(row.name)} of {self.name} cannot be read ({reason(e)}).") from e
        return whole.hexdigest()
