"""Files that are either whole or not there; what killed writers left is removed; no pickle is ever opened."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from palimpsest.core.declared import bare
from palimpsest.core.errors import BadRequest, Damaged, PalimpsestError

if TYPE_CHECKING:
    from torch import Tensor

_LEFT = re.compile(r"\..*\.palimpsest-[0-9a-f]{8}\.part")
_swept: set[Path] = set()


def write_beside(path: Path, write: Callable[[Path], object]) -> Path:
    """Lets `write` fill a temporary file beside `path`, then renames it: readers never see half a file.

    Raises:
        PalimpsestError: the folder cannot be written to or the disk is full; `path` is as it was.
    """
    with _room(path) as room:
        write(room / path.name)
        with open(room / path.name, "rb+") as f:
            os.fsync(f.fileno())
        os.replace(room / path.name, path)
    return path


def write_text(path: Path, text: str) -> Path:
    """The same for text (UTF-8)."""
    return write_beside(path, lambda tmp: tmp.write_text(text, encoding="utf-8"))


def build_beside(folder: Path, build: Callable[[Path], object]) -> Path:
    """The same for a folder: `build` fills an empty one. Where another process was faster, its folder stays."""
    with _room(folder) as room:
        (room / folder.name).mkdir()
        build(room / folder.name)
        with contextlib.suppress(OSError):
            (room / folder.name).rename(folder)
    return folder


def read_tensors(path: Path, what: str) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The texts of a safetensors file's header, and its tensors.

    Memory: no more than the file's bytes, whatever its header says; safetensors holds the two against each other.

    Args:
        what: the file in words, for errors: "a patch".

    Raises:
        Damaged: no such file, or not a whole safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise Damaged(f"There is no {bare(what)} at {path}.")
    refuse_pickle(path)
    try:
        with safe_open(path, framework="pt") as f:
            return f.metadata() or {}, {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118 (no dict)
    # Beside its own errors: types that torch lacks (KeyError, AttributeError), sizes that overflow (RuntimeError).
    except (SafetensorError, OSError, ValueError, KeyError, AttributeError, RuntimeError, TypeError) as e:
        raise Damaged(f"{path} cannot be read as {what}: {e}. It is truncated, damaged or of another kind.") from e


def refuse_pickle(path: Path) -> None:
    """Raises Damaged where a file is a pickle or a torch archive: loading one would run code from it."""
    with open(path, "rb") as f:
        head = f.read(9)
    # A safetensors file begins with its header's length, whose bytes may be those that pickles begin with.
    if head[8:] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size:
        return
    if head[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05") or head[:4] == b"PK\x03\x04":
        raise Damaged(
            f"{path} is a pickle or torch archive, which could run code when loaded; it was not opened. "
            "Convert it to safetensors where you trust its source."
        )


@contextlib.contextmanager
def _room(path: Path) -> Iterator[Path]:
    """A hidden folder beside `path` to write in, gone afterwards, locked meanwhile.

    The lock is on the folder, since serialisers may put another file in the place of the one that they are given.
    """
    handle = None
    room = path.with_name(f".{path.name}.palimpsest-{secrets.token_hex(4)}.part")
    young = room.with_suffix(".young")  # until it is locked, so that nobody takes it for abandoned
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path.parent)
        young.mkdir()
        handle = _lock(young)
        young.rename(room)
        yield room
    except Exception as e:
        # Serialisers wrap a full disk in their own error types; those count as system errors, bugs do not.
        if isinstance(e, OSError) or "No space left" in str(e) or "I/O error" in str(e):
            raise PalimpsestError(f"Could not write {path}: {e}. Free some space or choose another folder.") from e
        raise
    finally:
        shutil.rmtree(room, ignore_errors=True)
        if handle is not None:
            os.close(handle)


@contextlib.contextmanager
def alone(folder: Path, what: str) -> Iterator[None]:
    """Until the block ends no other process is let into the same block of a folder.

    The system's lock ends with its process however that ends, so that none is ever left behind. Where the system or
    the disk has no such locks, nobody is kept out.

    Args:
        what: the folder in words, for the error: "the ledger".

    Raises:
        BadRequest: another process, or another thread, is there.
    """
    handle = None
    with contextlib.suppress(ImportError, OSError):
        import fcntl

        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise BadRequest(f"Another process is changing {what} {folder} now; try again once it is done.") from None
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


def _sweep(folder: Path) -> None:
    """Removes what killed writers left in a folder, once in a process.

    A living writer holds a lock, which ends with its process however that ends; where the system has no such locks
    nothing is removed.
    """
    if folder in _swept:
        return
    _swept.add(folder)
    for left in folder.glob(".*.part"):
        if _LEFT.fullmatch(left.name) and not left.is_symlink() and (handle := _lock(left)) is not None:
            shutil.rmtree(left, ignore_errors=True)
            os.close(handle)


def _lock(folder: Path) -> int | None:
    """The handle of a folder that is now locked; None where another holds it, or where there are no locks."""
    try:
        import fcntl

        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except (ImportError, OSError):
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle
