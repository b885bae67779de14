"""What a process is told before it computes, and where the package may keep what it makes."""

from __future__ import annotations

import atexit
import ctypes
import os
import shutil
import tempfile
import warnings
from functools import cache
from pathlib import Path

from palimpsest.core.errors import PalimpsestError

CACHE = "PALIMPSEST_CACHE"
_TRIM, _MMAP = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of glibc's malloc.h


def prepare() -> None:
    """Sets a process up for many small tensors; to be called before torch is imported, at most once with effect.

    Threads wait for each other without spinning, which costs nothing alone and saves most of the time beside other
    work; large blocks stay with the process between uses instead of going back to the system page by page
    (bench/processes.py has the numbers). What the user has set stays, and without glibc the second is left out.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if not {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"} & set(os.environ):
        keep_memory()


@cache
def keep_memory() -> bool:
    """Whether malloc was told to keep large blocks (glibc only)."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # other C libraries; Windows takes no None
        return False
    return bool(mallopt(_MMAP, 1 << 30)) and bool(mallopt(_TRIM, (1 << 31) - 1))


def cache_folder() -> Path:
    """The folder of everything that is made once and kept: $PALIMPSEST_CACHE, or ~/.cache/palimpsest; it exists.

    Where the home cannot be written, a folder that goes with the process takes its place, with a warning.

    Raises:
        PalimpsestError: $PALIMPSEST_CACHE names a place that cannot be written.
    """
    named = os.environ.get(CACHE)
    try:
        folder = Path(named) if named else Path.home() / ".cache" / "palimpsest"
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except (OSError, RuntimeError) as e:  # no home at all is a RuntimeError
        if named:
            raise PalimpsestError(f"{CACHE} is {named}, which cannot be written ({e}). Name another folder.") from e
        return _passing(str(e))
    return folder


@cache
def _passing(why: str) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="palimpsest-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    warnings.warn(
        f"The home folder cannot be written ({why}): what is made is kept in {folder} until this process ends. Set "
        f"{CACHE} to a folder that can be written.",
        stacklevel=3,
    )
    return folder
