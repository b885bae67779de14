"""Where a model lies, what its files say, and how a family of models declares itself to `hosts.load`."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from palimpsest.core import declared
from palimpsest.core.errors import Damaged
from palimpsest.core.host import Host
from palimpsest.core.stored import Files

T = TypeVar("T")

PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")
INDEX, CONFIG, STATE = "model_index.json", "config.json", "model.safetensors"
MOST_LAYERS, MOST = 1_000, 10**8
ELSEWHERE = ("architectures", "dtype", "torch_dtype", "transformers_version", "id2label", "label2id")
"""Entries that do not say what a component does, or that hosts tell themselves."""
REACHING = ("quantization_config", "custom_pipelines", "adapter_config", "attn_implementation")
"""Entries of a component's configuration by which libraries would run or fetch something else than the component."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A model on disk, and how it is wanted.

    Args:
        path: a folder or one file.
        name: as messages and receipts call the model.
        config: the content of model_index.json, else of config.json; {} where there is neither.
        device, dtype: where to and in which precision.
        factory: "module:function" that the user vouches for; "" where none was named.
        labels: the names of its classes, where the user gave them.
        offload, checkpointing: see `hosts.load.load`.
        tokenizer: a folder with what a checkpoint in one file lacks: tokenizers, or a whole pipeline of its family.
        prediction: what such a checkpoint's network predicts; "": told from the file.
        download: whether tokenizers may be fetched.
    """

    path: Path
    name: str
    config: Mapping[str, Any]
    device: torch.device
    dtype: torch.dtype
    factory: str = ""
    labels: tuple[str, ...] = ()
    offload: bool = False
    checkpointing: bool = False
    tokenizer: Path | None = None
    prediction: str = ""
    download: bool = False


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What `hosts.load.load` was told, so that another process can load the same model: `host.origin`."""

    model: str
    device: str = "cpu"
    dtype: str = "float32"
    factory: str = ""
    labels: tuple[str, ...] = ()
    offload: bool = False
    checkpointing: bool = False
    tokenizer: str = ""
    prediction: str = ""


class Family(NamedTuple):
    """A kind of model: whether files are of it, and how they become a host.

    `detect(files, config, keys)` sees the names of the files in a folder (of the one file), the content of
    model_index.json or config.json, and the tensors' names in the safetensors files that lie there; it opens nothing.
    A module of `hosts/`, or of another package that declares it under the entry point "palimpsest.hosts", carries it
    as `FAMILY`. `host`, where it is one class, tells models of other families apart before they are loaded. `stored`
    gives a model's tensors where they lie, without loading it.
    """

    detect: Callable[[Collection[str], Mapping[str, Any], Collection[str]], bool]
    load: Callable[[Source], Host]
    host: type | None = None
    stored: Callable[[Source], Files] | None = None


def config_of(folder: Path) -> dict[str, Any]:
    """The content of a component's config.json, which may name no code, no other files and no other model.

    Raises:
        Damaged: no strict JSON object, or an entry that would make a library do more than build the component.
    """
    config = declared.read(folder / CONFIG, dict, "a configuration")
    parts = [config]
    while parts:
        part = parts.pop()
        parts += [value for value in part.values() if isinstance(value, dict)]
        odd = [k for k, v in part.items() if v and k.lstrip("_") in REACHING and v not in ("eager", "sdpa")]
        large = [k for k, v in part.items() if not _modest(k, v)]
        if large:
            raise Damaged(
                f"{folder / CONFIG} sets {large[0]!r} to {declared.shown(part[large[0]])}, more than any model has; it "
                "was not built. Fetch the model again."
            )
        if odd:
            raise Damaged(
                f"{folder / CONFIG} sets {odd[0]!r}, by which libraries would run or fetch something beside the model; "
                "it was not loaded. Remove the entry, or save the model without quantization or adapters."
            )
    if (folder / "adapter_config.json").is_file():
        raise Damaged(f"{folder} holds an adapter of another model; merge it into that model and save the whole.")
    return config


def _modest(key: str, value: Any) -> bool:
    """Whether whole numbers could be a model's: layers are built one by one, other sizes take memory at once."""
    most = MOST_LAYERS if re.search("layers|depth|blocks", key) else MOST
    numbers = value if isinstance(value, list) else [value]
    return all(abs(number) <= most for number in numbers if isinstance(number, int))


def weights_in(folder: Path, stem: str = "model") -> dict[str, list[Path]]:
    """The safetensors files of each variant ("", "fp16", ...) of a component's weights.

    Args:
        stem: how their names begin; other tensors may lie beside them.

    Raises:
        Damaged: there are none, or only pickles.
    """
    files = sorted(p for p in folder.iterdir() if p.is_file())
    variants: dict[str, list[Path]] = {}
    for file in files:
        if file.suffix == ".safetensors" and file.name.startswith(stem):
            # "model.safetensors" or "model-00001-of-00002.safetensors" against "model.fp16.safetensors" and its shards
            parts = file.name.split(".")
            variants.setdefault(parts[1].split("-0")[0] if len(parts) == 3 else "", []).append(file)
    pickles = [p.name for p in files if p.name.endswith(PICKLES)]
    if not variants and pickles:
        raise Damaged(
            f"{folder} has its weights only as {pickles[0]}, a pickle, which could run code when loaded; it was not "
            "opened. Fetch the safetensors weights, or convert them where you trust their source."
        )
    if not variants:
        raise Damaged(f"{folder} has no weights (*.safetensors); the download is incomplete: fetch the model again.")
    return variants


def known(config: Mapping[str, Any], kind: type[T], where: Path) -> T:
    """The entries of a configuration that a TypedDict declares, checked; others are left alone."""
    keys = kind.__annotations__
    return declared.fitted({key: value for key, value in config.items() if key in keys}, kind, str(where))


def public(config: Any) -> dict[str, Any]:
    """The entries of a configuration of diffusers or transformers that say what the component does, as plain JSON.

    Of transformers those that are not its class's defaults, which a later version may have more of.
    """
    plain = config.to_diff_dict() if hasattr(config, "to_diff_dict") else dict(config)
    told = {k: v for k, v in plain.items() if not k.startswith("_") and k not in ELSEWHERE}
    return json.loads(json.dumps(told, default=str))


def first_line(e: Exception) -> str:
    """What an error says first, without a full stop."""
    return (str(e).strip().splitlines() or [type(e).__name__])[0].rstrip(".")


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars while loading, which would be mistaken for progress of the work itself, and no notices.

    Notices are about parts that are not used here, such as image processors that would like torchvision, and about
    tensors that files lack, which `hosts.weights` refuses.
    """
    # transformers in any case: diffusers imports it in the middle of its own loading.
    names = ("diffusers", "transformers") if "diffusers" in sys.modules else ("transformers",)
    libraries = [import_module(f"{name}.utils.logging") for name in names]
    were = [(of.get_verbosity(), of.is_progress_bar_enabled()) for of in libraries]
    for of in libraries:
        of.set_verbosity_error()
        of.disable_progress_bar()
    try:
        yield
    finally:
        for of, (verbosity, bars) in zip(libraries, were, strict=True):
            of.set_verbosity(verbosity)
            if bars:
                of.enable_progress_bar()
