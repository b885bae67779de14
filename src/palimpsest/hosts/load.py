"""Loads a model as a host: finds it, and asks the families which it is. Fetches only what it is told to fetch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any, TypedDict

import torch

from palimpsest.core import declared
from palimpsest.core.errors import BadRequest, Damaged, Unsupported
from palimpsest.core.fingerprint import PRECISIONS, tensors_of
from palimpsest.core.host import Host
from palimpsest.core.patch import Patch, refuse_pickle
from palimpsest.core.stored import Memory, Stored
from palimpsest.hosts import hub, single_file
from palimpsest.hosts.checkpoints import recognised
from palimpsest.hosts.headers import Header, Shapes
from palimpsest.hosts.sizes import Held, held_by, refuse_too_large
from palimpsest.hosts.source import CONFIG, INDEX, PICKLES, Family, Origin, Source, config_of
from palimpsest.hosts.weights import Weights, refuse_odd, unprefixed
from palimpsest.worlds.concepts import vocabulary_of

DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in PRECISIONS}
PREDICTIONS = ("epsilon", "v_prediction")


class Drawn(TypedDict):
    """world.json: the drawn world that a model was trained on, and how it is sampled."""

    world: str
    steps: Annotated[int, declared.Within(1, 1_000)]
    guidance: Annotated[float, declared.Within(-100, 100)]


def load(
    model: str | os.PathLike[str],
    *,
    device: str = "cpu",
    dtype: str = "float32",
    factory: str = "",
    labels: Sequence[str] = (),
    offload: bool = False,
    checkpointing: bool = False,
    tokenizer: str | os.PathLike[str] = "",
    prediction: str = "",
    download: bool = False,
) -> Any:
    """Loads a model as a host, from local files alone unless `download` says otherwise.

    Args:
        model: `tiny/<name>`, or a model of another package; a folder of a diffusers pipeline or autoencoder, of a
            transformers classifier, vision model or CLIP, of timm, or of palimpsest; one .safetensors checkpoint of
            Stable Diffusion 1, 2, XL or 3 or of Flux.1; the .safetensors state of a classifier, with its factory; or
            the id of a repository of the Hugging Face hub.
        device: "cpu", "cuda", "cuda:1", "mps".
        dtype: "float32", "float16" or "bfloat16".
        factory: "module:function" that makes the classifier whose state `model` is. It is code: name only your own.
        labels: the classes' names of such a classifier; other models know theirs.
        offload: text encoders and autoencoder lie in main memory and visit the device while they work.
        checkpointing: gradients compute a network's activations again, block by block, instead of keeping them.
        tokenizer: a folder with the tokenizers that a checkpoint in one file lacks; where that is a pipeline's folder,
            components that the file lacks come from it, too.
        prediction: what the network of such a checkpoint of Stable Diffusion 1, 2 or XL predicts, "epsilon" or
            "v_prediction"; "": told from the file.
        download: fetch what is not on this disk from the hub: a repository by its id, or a checkpoint's tokenizers.

    Raises:
        BadRequest: no such device, precision, prediction or folder of tokenizers, or one that does not fit the model;
            offload from the CPU; offload or checkpointing of a model that has no text encoders, autoencoder and
            denoiser.
        Unsupported: nothing that can be loaded lies there, or a kind of model that has no host.
        Damaged: files are missing, broken or pickles, lack tensors, or hold numbers that are not finite.
        TooLarge: its weights take more memory than is free.
    """
    name = os.fspath(model)
    if prediction and prediction not in PREDICTIONS:
        raise BadRequest(f"Unknown prediction {prediction!r}; use one of {', '.join(PREDICTIONS)}.")
    words = os.path.abspath(Path(tokenizer).expanduser()) if tokenizer else ""
    if words and not Path(words).is_dir():
        raise BadRequest(f"There is no folder {tokenizer} for --tokenizer.")
    source = Source(
        path=_place(name, download),
        name=name,
        config={},
        device=_device(device),
        dtype=_dtype(dtype),
        factory=factory,
        labels=tuple(labels),
        offload=offload,
        checkpointing=checkpointing,
        tokenizer=Path(words) if words else None,
        prediction=prediction,
        download=download,
    )
    _refuse_idle(source)
    host: Any = _first(source)
    where = os.path.abspath(source.path) if Path(name).expanduser().exists() else name
    told = {"device": device, "dtype": dtype, "factory": factory, "labels": tuple(labels)}
    told |= {"offload": offload, "checkpointing": checkpointing, "tokenizer": words, "prediction": prediction}
    host.origin = Origin(model=where, **told)
    refuse_odd(host.root, source.name)
    if isinstance(weights := getattr(host, "weights", None), Weights):
        weights.come_from(source.path.rglob("*.safetensors") if source.path.is_dir() else [source.path])
    if (source.path / "world.json").is_file():
        # Models of drawn worlds are small and need fewer steps than a family's default; they say how many.
        drawn = declared.read(source.path / "world.json", Drawn, "a drawn world")
        host.defaults = replace(host.defaults, steps=drawn["steps"], guidance=drawn["guidance"])
        host.knows = vocabulary_of(source.path)
    return host


def held(model: str | os.PathLike[str], *, device: str = "cpu", dtype: str = "float32") -> Held:
    """What a model's weights will take once they are loaded. Cost: the headers of its files.

    Raises:
        BadRequest, Unsupported, Damaged: as `load`.
    """
    path = _place(os.fspath(model))
    index = declared.read(path / INDEX, dict, "the index of a pipeline") if (path / INDEX).is_file() else {}
    parts = held_by(path, index, _dtype(dtype), _device(device)).values()
    return Held(*map(sum, zip(*parts, strict=True)))


def stored(model: str | os.PathLike[str]) -> Stored:
    """A model's tensors where they lie in its files, under the names that they have once it is loaded.

    Args:
        model: as `load` takes it. Generators are not loaded; other models are, into memory.

    Raises:
        Unsupported, Damaged, BadRequest: as `load`.
    """
    name = os.fspath(model)
    path = _place(name)
    bare = Source(path=path, name=name, config={}, device=torch.device("cpu"), dtype=torch.float32)
    family, source = _recognised(bare)
    if family is not None and family.stored is not None:
        return family.stored(source)
    return Memory(tensors_of(load(model).root))


def write_edited(model: str | os.PathLike[str], patch: Patch, out: str | os.PathLike[str]) -> Path:
    """Writes a generator's files once more, with a patch in them (`hosts.writing.write_edited`).

    Args:
        model: as `load` takes it.
    """
    from palimpsest.hosts import writing

    return writing.write_edited(_place(os.fspath(model)), stored(model), patch, Path(out))


def families() -> Iterator[Family]:
    """Every kind of model that can be loaded: the modules here that carry a FAMILY, then those of other packages."""
    for path in sorted(Path(__file__).parent.glob("[a-z]*.py")):
        if "\nFAMILY = " in path.read_text(encoding="utf-8"):
            yield import_module(f"{__package__}.{path.stem}").FAMILY
    for point in sorted(entry_points(group="palimpsest.hosts"), key=lambda point: point.name):
        yield import_module(point.module).FAMILY


def check_alike(before: Host, after: str | os.PathLike[str], *, download: bool = False) -> None:
    """Raises Unsupported where another model plainly is no edit of this one. Cost: headers of its files, no tensors.

    Only models with files of their own are looked into, under names of their own: the others, and whole checkpoints in
    one file, whose tensors are renamed on the way, wait until they are loaded (`check_loaded`).
    """
    path = _place(os.fspath(after), download)
    headers = [Header.of(file) for file in ([path] if path.is_file() else sorted(path.rglob("*.safetensors")))]
    if path.is_file() and single_file.FAMILY.detect([path.name], {}, headers[0].shapes.keys()):
        return
    if (path / INDEX).is_file():
        index = declared.read(path / INDEX, dict, "the index of a pipeline")
        kind = next((f.host for f in families() if f.detect([INDEX], index, ())), None)
        if kind not in (None, type(before)):
            raise Unsupported(f"{after} is no edit of {before.name}: it is a {declared.shown(index['_class_name'])}.")
    held = {}
    for header in headers:
        part = "" if path.is_file() else ".".join((*header.path.parent.relative_to(path).parts, ""))
        held |= {part + name: header.shapes[key] for key, name in unprefixed(header.shapes.keys()).items()}
    if held:
        _check_tensors(before, held, os.fspath(after))


def check_loaded(before: Any, after: Any) -> None:
    """Raises Unsupported where a loaded model is no edit of another: another kind of model, classes or shapes."""
    kinds = [type(host).__name__.removesuffix("Host") for host in (before, after)]
    if kinds[0] != kinds[1]:
        raise Unsupported(f"{after.name} ({kinds[1]}) is no edit of {before.name} ({kinds[0]}): other kinds of models.")
    mine, theirs = (tuple(getattr(host, "labels", ())) for host in (before, after))
    unnamed = tuple(map(str, range(len(mine))))  # what a state without names calls its classes
    if mine != theirs and (len(mine) != len(theirs) or unnamed not in (mine, theirs)):
        odd = next((i for i, pair in enumerate(zip(mine, theirs, strict=False)) if pair[0] != pair[1]), None)
        other = "" if odd is None else f"; {declared.shown(theirs[odd])} stands for {declared.shown(mine[odd])}"
        raise Unsupported(
            f"{after.name} is no edit of {before.name}: it has {len(theirs)} classes, that has {len(mine)}{other}."
        )
    _check_tensors(before, {name: tuple(t.shape) for name, t in tensors_of(after.root).items()}, after.name)


def _check_tensors(before: Host, held: Shapes, name: str) -> None:
    """Raises Unsupported where another model has too few of this one's tensors, or too many in other shapes.

    A few may be others: a table of tokens grows with new words, and what is not there is told where it is loaded.
    """
    own = {_bare(key): tuple(t.shape) for key, t in tensors_of(before.root).items()}
    held = {_bare(key): shape for key, shape in held.items()}
    both = {key: k for key in own if (k := key if key in held else key.partition(".")[2]) in held}
    odd = [key for key, k in both.items() if own[key] != held[k]]
    if len(both) >= len(own) / 2 and len(odd) <= len(both) / 10:
        return
    why = f"of its {len(held)} tensors only {len(both)} have names of that model's {len(own)}"
    if len(both) >= len(own) / 2:
        was, now = own[odd[0]], held[both[odd[0]]]
        why = (
            f"{len(odd)} of the {len(both)} tensors of that model have other shapes, first {odd[0]!r}: {now}, was {was}"
        )
    raise Unsupported(f"{name} is no edit of {before.name}: {why}. Give the model that was made out of {before.name}.")


def _bare(name: str) -> str:
    return name.replace("text_model.", "")


def _recognised(source: Source) -> tuple[Family | None, Source]:
    """The family of a model, None where none knows it; and the source with the configuration that lies there.

    Raises:
        Damaged: a pickle, or a broken configuration. Unsupported: a file of another kind.
    """
    path = source.path
    if path.is_file():
        if path.suffix in PICKLES:
            raise Damaged(
                f"{path} is named like a pickle or torch archive, which could run code when loaded; it was not opened. "
                "Convert it to safetensors where you trust its source."
            )
        refuse_pickle(path)
        if path.suffix.casefold() == ".gguf":
            raise Unsupported(
                f"{path} is a GGUF file: numbers of few bits, which neither take edits nor say what the trained model "
                "does, and most such files hold one network alone. Take the .safetensors release of the model."
            )
        if path.suffix != ".safetensors":
            raise Unsupported(f"{path} is no .safetensors file; give a diffusers folder or a .safetensors checkpoint.")
        files, weights = [path.name], [path]
    else:
        files = sorted(p.name for p in path.iterdir())
        weights = sorted(path.glob("*.safetensors"))
        if INDEX in files:
            source = replace(source, config=declared.read(path / INDEX, dict, "the index of a pipeline"))
        elif CONFIG in files:
            source = replace(source, config=config_of(path))
    keys = [key for file in weights for key in Header.of(file).shapes]
    found = next((family for family in families() if family.detect(files, source.config, keys)), None)
    return found, source


def _first(source: Source) -> Host:
    family, source = _recognised(source)
    if family is not None:
        refuse_too_large(source)
        return family.load(source)
    path = source.path
    if path.is_file() and source.factory:
        from palimpsest.hosts.factory import from_state

        return from_state(source)
    if path.is_file():
        raise Unsupported(f"{recognised(Header.of(path)).name} is the family of {path}, which has no host.")
    if source.config and (path / INDEX).is_file():
        raise Unsupported(
            f"{path} is a {declared.shown(source.config.get('_class_name'))}, which has no host here. A package "
            "can add one by the entry point palimpsest.hosts."
        )
    raise Unsupported(
        f"{path} holds neither a diffusers pipeline (model_index.json) nor an image classifier, encoder, CLIP model or "
        "autoencoder (config.json of transformers, timm, diffusers or palimpsest). Point to the folder that has one."
    )


def _refuse_idle(source: Source) -> None:
    """Raises BadRequest where offload or checkpointing would bring nothing."""
    if source.offload and source.device.type == "cpu":
        raise BadRequest(
            "--offload lets text encoders and autoencoder rest in main memory, away from the device; on the CPU that "
            "is where they lie. Where files hold the precision that is asked for, weights are the files' own pages; "
            "the system takes back those that rest when memory is short. Leave the option out."
        )
    pipeline = (source.path / INDEX).is_file() or (source.path.is_file() and not source.factory)
    if (source.offload or source.checkpointing) and not pipeline:
        option = "offload" if source.offload else "checkpointing"
        raise BadRequest(f"--{option} is for text-to-image pipelines; {source.name} is none. Leave the option out.")


def _device(device: str) -> torch.device:
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as e:
        raise BadRequest(f"There is no device {device!r} here ({str(e).splitlines()[0]}); use cpu.") from e
    return place


def _dtype(dtype: str) -> torch.dtype:
    if dtype not in DTYPES:
        raise BadRequest(f"Unknown precision {dtype!r}; use one of {', '.join(DTYPES)}.")
    return DTYPES[dtype]


def _place(name: str, download: bool = False) -> Path:
    """The file or folder of a model by its name; a repository of the hub may be fetched."""
    shipped = import_module("palimpsest.tiny")
    if shipped.shipped(name):
        return Path(shipped.path(name))
    path = Path(name).expanduser()
    if path.exists():
        return path
    if hub.is_name(name):
        return hub.place(name, download=download)
    raise Unsupported(f"There is no model at {name}; give a folder, a .safetensors file or a name such as tiny/sd.")
