"""What a process is told before it computes, what memory it may take, and where the package may keep what it makes."""

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


def available(device: str = "cpu") -> int | None:
    """Bytes that can still be taken on a device ("cpu", "cuda:1", "mps"); None where nobody can tell.

    On the CPU what the system could give without swapping, and no more than a container's limit (cgroups) leaves.
    """
    if device == "cpu":
        import psutil

        return min([psutil.virtual_memory().available, *_left_of_container(Path("/sys/fs/cgroup"))])
    import torch

    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if kind == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return None


def amount(size: float) -> str:
    """Bytes in words: "13.1 GiB", "340 MiB"."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def _left_of_container(root: Path) -> list[int]:
    """What the container that this process runs in may still take; nothing where there is no limit."""
    try:
        v2 = (root / "memory.max").is_file()
        folder = root if v2 else root / "memory"
        most, now = ("memory.max", "memory.current") if v2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        lines = (line.split() for line in (folder / "memory.stat").read_text().splitlines())
        held = {name: int(value) for name, value in lines}
        pages = sum(held.get(name, 0) for name in ("active_file", "inactive_file"))  # of files: given back when needed
        return [int((folder / most).read_text()) - int((folder / now).read_text()) + pages]
    except (OSError, ValueError):  # no container, no limit ("max"), or no Linux
        return []


def launched() -> int:
    """How many processes `accelerate launch` or `torchrun` started together with this one; 1 where it is alone."""
    return int(os.environ["WORLD_SIZE"]) if {"RANK", "WORLD_SIZE"} <= set(os.environ) else 1


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
