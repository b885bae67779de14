"""Files that are either whole or not there."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path

from palimpsest.core.errors import PalimpsestError


def write_beside(path: Path, write: Callable[[Path], object]) -> Path:
    """Lets `write` fill a temporary file beside `path`, then renames it: readers never see half a file.

    Raises:
        PalimpsestError: the folder cannot be written to or the disk is full; `path` is as it was.
    """
    tmp = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(tmp)
        with open(tmp, "rb+") as f:
            os.fsync(f.fileno())
        os.replace(tmp, path)
    except Exception as e:
        # Serialisers wrap a full disk in their own error types; those count as system errors, bugs do not.
        if isinstance(e, OSError) or "No space left" in str(e) or "I/O error" in str(e):
            raise PalimpsestError(f"Could not write {path}: {e}. Free some space or choose another folder.") from e
        raise
    finally:
        with contextlib.suppress(OSError):  # gone already, or its folder never was one
            tmp.unlink()
    return path


def write_text(path: Path, text: str) -> Path:
    """The same for text (UTF-8)."""
    return write_beside(path, lambda tmp: tmp.write_text(text, encoding="utf-8"))
