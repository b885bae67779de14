"""Classifiers from a function that builds them and a safetensors state: our folders, timm's, and users' own code."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from palimpsest.core.errors import BadRequest, Damaged, Unsupported
from palimpsest.core.files import write_beside, write_text
from palimpsest.core.patch import refuse_pickle
from palimpsest.hosts.architectures import ARCHITECTURES, built
from palimpsest.hosts.vision import ClassifierHost, Preprocessing

CONFIG, STATE = "config.json", "model.safetensors"


def is_own(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is of `save`'s format."""
    return "factory" in config


def is_timm(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is what timm writes."""
    return "architecture" in config and "pretrained_cfg" in config


def from_own(
    folder: Path, config: Mapping[str, Any], *, name: str, device: torch.device, dtype: torch.dtype, factory: str = ""
) -> ClassifierHost:
    """A folder with config.json (factory, arguments, labels, head, backbone, preprocessing) and model.safetensors.

    Args:
        factory: "module:function" that the user vouches for; needed where config.json names anything but a listed
            architecture (`hosts.architectures`).

    Raises:
        Damaged: keys or tensors are missing, or the folder names code by itself.
        BadRequest: the factory cannot be found.
    """
    named = config["factory"]
    if not isinstance(named, str):
        raise Damaged(f"{folder / CONFIG} names {named!r} as its factory; expected a text.")
    if named not in ARCHITECTURES and (not factory or named != factory):
        raise Damaged(
            f"{folder} asks to run {named!r}, which is not one of the architectures that a model's folder may choose. "
            "Where the function is your own or one that you have read, name it yourself with --factory."
        )
    try:
        arguments, labels = dict(config["arguments"]), tuple(map(str, config["labels"]))
        preprocessing = _preprocessing(config.get("preprocessing", {}))
        head, backbone = str(config["head"]), str(config.get("backbone", ""))
    except (KeyError, TypeError, ValueError) as e:
        raise Damaged(f"{folder / CONFIG} is incomplete ({e!r}); expected factory, arguments, labels and head.") from e
    model = built(named, arguments, folder) if named in ARCHITECTURES else _built(named, _plain(arguments, folder))
    return ClassifierHost(
        _filled(model, folder / STATE).to(device, dtype),
        name=name,
        labels=labels,
        head=head,
        backbone=backbone,
        preprocessing=preprocessing,
        folder=folder,
    )


def from_state(
    path: Path, factory: str, *, labels: Sequence[str] = (), device: torch.device, dtype: torch.dtype
) -> ClassifierHost:
    """A state dict (.safetensors) for the module that a user's function makes.

    The module takes pictures (n, 3, H, W) in [0, 1]; what it needs of normalisation belongs inside it. Its head is
    its last linear layer.

    Args:
        factory: "module:function"; called without arguments.
        labels: the classes' names; the numbers from 0 on where none are given.
    """
    model = _filled(_built(factory, {}), path)
    head, width = head_of(model, factory)
    if labels and len(labels) != width:
        raise BadRequest(f"{factory} has {width} logits and {len(labels)} labels were given; give one for each.")
    names = tuple(labels) or tuple(map(str, range(width)))
    return ClassifierHost(model.to(device, dtype), name=path.stem, labels=names, head=head)


def from_timm(
    folder: Path, config: Mapping[str, Any], *, name: str, device: torch.device, dtype: torch.dtype
) -> ClassifierHost:
    """A timm model's folder, as its hub lays it out.

    Raises:
        Unsupported: timm is not installed.
        Damaged: the folder does not hold what timm expects.
    """
    try:
        timm: Any = import_module("timm")
    except ImportError as e:
        raise Unsupported(f"{folder} is a timm model; install timm to load it: pip install timm.") from e
    architecture = config["architecture"]
    if not isinstance(architecture, str) or not re.fullmatch(r"\w+(\.\w+)?", architecture):
        # Other spellings ("hf-hub:...", "local-dir:...") would make timm read or fetch further files.
        raise Damaged(f"{folder} names {architecture!r}, which is no name of a timm model.")
    cfg = config["pretrained_cfg"]
    classes = int(config.get("num_classes") or cfg["num_classes"])
    try:
        model = timm.create_model(architecture, pretrained=False, num_classes=classes)
    except Exception as e:  # an unknown architecture, or options that this timm lacks
        raise Damaged(f"{folder} cannot be built by timm {timm.__version__}: {e}.") from e
    side = int(cfg["input_size"][-1])
    resize = round(side / float(cfg.get("crop_pct") or 1.0))
    return ClassifierHost(
        _filled(model, folder / STATE).to(device, dtype),
        name=name,
        labels=tuple(map(str, config.get("label_names") or range(classes))),
        head=str(cfg["classifier"]),
        preprocessing=Preprocessing(
            size=resize,
            crop=(side, side),
            mean=tuple(cfg["mean"]),
            std=tuple(cfg["std"]),
            mode="bicubic" if cfg.get("interpolation") == "bicubic" else "bilinear",
        ),
        folder=folder,
    )


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
    """Writes the folder that `from_own` reads.

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


def head_of(model: nn.Module, called: str) -> tuple[str, int]:
    """The name of a module's last linear layer, and how many logits it gives.

    Raises:
        Unsupported: there is none.
    """
    linear = [(name, part) for name, part in model.named_modules() if isinstance(part, nn.Linear) and name]
    if not linear:
        raise Unsupported(f"{called} has no linear layer to be its head; give a module whose last layer is nn.Linear.")
    return linear[-1][0], linear[-1][1].out_features


def _plain(arguments: Mapping[str, Any], folder: Path) -> Mapping[str, Any]:
    """The arguments of a user's own factory, as its folder keeps them: plain numbers and texts."""
    for key, value in arguments.items():
        if not isinstance(value, (bool, int, float, str)):
            raise Damaged(f"{folder} gives its factory {key} = {value!r}; expected a number, a text, true or false.")
    return arguments


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


def _filled(model: nn.Module, file: Path) -> nn.Module:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not file.is_file():
        raise Damaged(f"There are no weights at {file}; expected a safetensors state dict.")
    refuse_pickle(file)
    try:
        state = load_file(str(file))
    except (SafetensorError, OSError) as e:
        raise Damaged(f"{file} cannot be read as safetensors: {e}. It is truncated or damaged.") from e
    # Strict on names and shapes alike: a head of another size is another model.
    own = model.state_dict()
    odd = sorted(set(own) ^ set(state)) or [n for n in own if own[n].shape != state[n].shape]
    if odd:
        raise Damaged(f"{file} does not fit its model: {len(odd)} tensors differ, first {odd[0]!r}.")
    model.load_state_dict({key: value.to(own[key].dtype) for key, value in state.items()})
    return model


def _preprocessing(config: Mapping[str, Any]) -> Preprocessing:
    size, crop = config.get("size"), config.get("crop")
    return Preprocessing(
        size=tuple(size) if isinstance(size, list) else size,
        crop=tuple(crop) if crop is not None else None,
        mean=tuple(config.get("mean", Preprocessing.mean)),
        std=tuple(config.get("std", Preprocessing.std)),
        mode=config.get("mode", "bilinear"),
    )
