"""The Hugging Face hub: what of it lies on this disk, and, where the user asks for it, fetching a repository."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from palimpsest.core.errors import Unsupported
from palimpsest.hosts.source import CONFIG, INDEX, PICKLES, first_line

KINDS = (".safetensors", ".json", ".txt", ".model")
"""Endings of files that are fetched: weights as data, configurations and vocabularies; never code, never pickles."""
UNUSED = ("safety_checker", "feature_extractor", "image_encoder")


def is_name(name: str) -> bool:
    """Whether a name can be that of a repository: owner/name."""
    return len(PurePosixPath(name).parts) == 2 and not name.startswith((".", "/", "~")) and not name.endswith(KINDS)


def cached(repository: str, file: str) -> Path | None:
    """A file of a repository in the local cache; None where it is not there."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        path = try_to_load_from_cache(repository, file)
    except HFValidationError:
        return None
    return Path(path) if isinstance(path, str) else None


def place(name: str, *, download: bool) -> Path:
    """The folder of a repository: fetched where `download` says so, else its copy in the local cache.

    Raises:
        Unsupported: there is no copy, no such repository, or no way to it; the message says the ways to go on.
    """
    if download:
        return _fetched(name)
    # By the files that every model has: newer clients call a copy incomplete that lacks files which nothing here reads.
    there = next((path for file in (INDEX, CONFIG) if (path := cached(name, file)) is not None), None)
    if there is None:
        raise Unsupported(
            f"There is neither a folder {name} nor a copy of the repository {name!r} in the local Hugging Face cache, "
            "and models are never downloaded on their own. Two ways to go on: --download, which fetches it now, or the "
            f"folder of a copy (on a machine with network: hf download {name} --local-dir FOLDER)."
        )
    return there.parent


def fetched_files(repository: str, files: Collection[str]) -> Path:
    """The folder with those of these files that a repository has, fetched. Raises Unsupported where it cannot be."""
    return _snapshot(repository, lambda names: set(names) & set(files))


def wanted(names: Iterable[str]) -> set[str]:
    """Which files of a repository a model needs: of a pipeline its components, of another model what lies at the top;
    of several variants of weights the plain one."""
    files = {name for name in names if name.endswith(KINDS)}
    tops = {name for name in files if "/" not in name}
    if INDEX in files:
        weights = {n for n in files if n.endswith(KINDS[0])}
        # Whole checkpoints that lie beside the folder of the same model would be fetched twice.
        kept = (tops - weights) | {n for n in files if n.count("/") == 1 and n.partition("/")[0] not in UNUSED}
    else:
        kept = tops
    return kept - _variants(kept)


def _variants(files: Collection[str]) -> set[str]:
    """Weights in another variant ("fp16") of which the plain ones are there, or a variant that comes before."""
    by_stem: dict[tuple[str, str], dict[str, set[str]]] = {}
    for file in files:
        path = PurePosixPath(file)
        if path.suffix == KINDS[0] or path.name.endswith(".safetensors.index.json"):
            parts = path.name.removesuffix(".index.json").split(".")
            variant = parts[1].split("-0")[0] if len(parts) == 3 else ""
            by_stem.setdefault((str(path.parent), parts[0].split("-0")[0]), {}).setdefault(variant, set()).add(file)
    return {f for found in by_stem.values() for variant in sorted(found)[1:] for f in found[variant]}


def _fetched(name: str) -> Path:
    def chosen(names: Collection[str]) -> set[str]:
        files = wanted(names)
        if not any(file.endswith(KINDS[0]) for file in files):
            pickles = [file for file in names if file.endswith(PICKLES)]
            why = f", only pickles such as {pickles[0]}, which are never fetched" if pickles else ""
            raise Unsupported(f"The repository {name} has no safetensors weights{why}. Choose one that has.")
        if not {INDEX, CONFIG} & files:
            raise Unsupported(
                f"The repository {name} has neither {INDEX} nor {CONFIG}: it is no folder of a model. Where it holds "
                "checkpoints in one file, fetch the one that you want and give its path."
            )
        return files

    return _snapshot(name, chosen)


def _snapshot(name: str, chosen: Any) -> Path:
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        files = sorted(chosen(HfApi().list_repo_files(name)))
        return Path(snapshot_download(name, allow_patterns=files))
    except Unsupported:
        raise
    except HFValidationError as e:
        raise Unsupported(f"{name!r} cannot be a repository: {first_line(e)}.") from e
    except Exception as e:  # the client's errors differ by version: no network, no such repository, no access
        raise Unsupported(
            f"The repository {name} cannot be fetched from {constants.ENDPOINT} ({type(e).__name__}: {first_line(e)}). "
            "Check its name, the network, and whether it asks you to accept its terms (hf auth login); or give the "
            "folder of a copy."
        ) from e
