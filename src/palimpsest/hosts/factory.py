"""Models from a function that builds them and a safetensors state: folders of ours, and users' own code."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

import torch
from torch import nn

from palimpsest.core import declared
from palimpsest.core.errors import BadRequest, Damaged, Unsupported
from palimpsest.core.files import write_beside, write_text
from palimpsest.hosts.architectures import ARCHITECTURES, built
from palimpsest.hosts.classifiers import ClassifierHost
from palimpsest.hosts.encoder import EncoderHost
from palimpsest.hosts.preprocessing import Preprocessing
from palimpsest.hosts.source import CONFIG, STATE, Family, Source, known
from palimpsest.hosts.weights import filled

Side = Annotated[int, declared.Within(1, 10_000)]


class Steps(TypedDict, total=False):
    """The fields of Preprocessing that a folder may set."""

    size: Side | tuple[Side, Side] | None
    crop: tuple[Side, Side] | None
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    mode: Literal["bilinear", "bicubic", "nearest"]


class Answers(TypedDict, total=False):
    """What a classifier's config.json says beside; without labels and head it is an encoder."""

    labels: Annotated[tuple[str, ...], declared.Within(1, 1_000_000)]
    head: str
    backbone: str
    preprocessing: Steps


class Described(Answers):
    """config.json of a folder of ours."""

    factory: Annotated[str, declared.Within(0, 200)]
    arguments: dict[str, bool | int | float | str]


def _detect(files: Collection[str], config: Mapping[str, Any], keys: Collection[str]) -> bool:
    return "factory" in config


def _load(source: Source) -> EncoderHost:
    """A folder with config.json (factory, arguments, labels, head, backbone, preprocessing) and model.safetensors.

    Where config.json names anything but a listed architecture (`hosts.architectures`), the user has to vouch for the
    same name in `source.factory`.
    """
    folder = source.path
    config = known(source.config, Described, folder / CONFIG)
    named, arguments = config["factory"], config["arguments"]
    if named not in ARCHITECTURES and (not source.factory or named != source.factory):
        raise Damaged(
            f"{folder} asks to run {named!r}, which is not one of the architectures that a model's folder may choose. "
            "Where the function is your own or one that you have read, name it yourself with --factory."
        )
    anew = partial(built, named, arguments, folder) if named in ARCHITECTURES else partial(_built, named, arguments)
    model = filled(anew(), folder).to(source.device, source.dtype)
    common: dict[str, Any] = {"name": source.name, "folder": folder}
    common["preprocessing"] = Preprocessing(**config.get("preprocessing", {}))
    if "labels" not in config and "head" not in config:
        return EncoderHost(model, **common)
    if "labels" not in config or "head" not in config:
        raise Damaged(f"{folder / CONFIG} is incomplete; expected both labels and head, or neither.")
    return ClassifierHost(
        model, labels=config["labels"], head=config["head"], backbone=config.get("backbone", ""), anew=anew, **common
    )


FAMILY = Family(_detect, _load)


def from_state(source: Source) -> ClassifierHost:
    """A state dict (.safetensors) for the module that a user's function makes, called without arguments.

    The module takes pictures (n, 3, H, W) in [0, 1]; what it needs of normalisation belongs inside it. Its head is
    its last linear layer; where no labels are given, its classes are called by their numbers.
    """
    anew = partial(_built, source.factory, {})
    model = filled(anew(), source.path)
    linear = [(name, part) for name, part in model.named_modules() if isinstance(part, nn.Linear) and name]
    if not linear:
        raise Unsupported(
            f"{source.factory} has no linear layer to be its head; give a module whose last layer is nn.Linear."
        )
    head, width = linear[-1][0], linear[-1][1].out_features
    if source.labels and len(source.labels) != width:
        raise BadRequest(
            f"{source.factory} has {width} logits and {len(source.labels)} labels were given; give one for each."
        )
    labels = source.labels or tuple(map(str, range(width)))
    model = model.to(source.device, source.dtype)
    return ClassifierHost(model, name=source.path.stem, labels=labels, head=head, anew=anew)


def save(
    model: nn.Module,
    folder: Path,
    *,
    factory: str,
    arguments: Mapping[str, Any],
    labels: Sequence[str],
    head: str,
    backbone: str = "",
    dtype: torch.dtype = torch.float16,
    about: Mapping[str, Any] | None = None,
) -> Path:
    """Writes a folder that `hosts.load` reads.

    Args:
        factory: "module:function" that makes the module from `arguments`.
        about: anything else worth keeping, plain JSON; stored under "about".
    """
    from safetensors.torch import save_file

    tensors = {
        key: (value.to(dtype) if value.is_floating_point() else value).contiguous().clone()
        for key, value in model.state_dict().items()
    }
    config = {
        "factory": factory,
        "arguments": dict(arguments),
        "labels": list(labels),
        "head": head,
        "backbone": backbone,
        "about": dict(about or {}),
    }
    write_beside(folder / STATE, lambda tmp: save_file(tensors, str(tmp), metadata={"format": "pt"}))
    write_text(folder / CONFIG, json.dumps(config, indent=1) + "\n")
    return folder


def _built(factory: str, arguments: Mapping[str, Any]) -> nn.Module:
    module, colon, function = factory.partition(":")
    if not colon or not module or not function:
        raise BadRequest(f"{factory!r} names no factory; write module:function, e.g. my_models:small_cnn.")
    try:
        build: Callable[..., Any] = getattr(import_module(module), function)
    except (ImportError, AttributeError) as e:
        raise BadRequest(f"The factory {factory!r} cannot be found: {e}. Is its folder on the Python path?") from e
    try:
        model = build(**arguments)
    except TypeError as e:
        raise BadRequest(f"The factory {factory!r} cannot be called with {dict(arguments)}: {e}.") from e
    if not isinstance(model, nn.Module):
        raise BadRequest(f"The factory {factory!r} returned a {type(model).__name__}; expected a torch.nn.Module.")
    return model
