"""Finds out what a model is from its files, and loads it as a host. Never touches the network, never opens a pickle."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch

from palimpsest.core.errors import BadRequest, Damaged, Unsupported
from palimpsest.core.host import Host
from palimpsest.core.patch import refuse_pickle

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")


class Family(NamedTuple):
    """How a pipeline family is loaded: diffusers' class, our module and class, the files' components."""

    pipeline: str
    module: str
    host: str
    models: tuple[str, ...]
    tokenizers: tuple[str, ...]


FAMILIES = {
    "StableDiffusion": Family(
        "StableDiffusionPipeline", "sd", "SDHost", ("unet", "text_encoder", "vae"), ("tokenizer",)
    ),
    "StableDiffusionXL": Family(
        "StableDiffusionXLPipeline",
        "sdxl",
        "SDXLHost",
        ("unet", "text_encoder", "text_encoder_2", "vae"),
        ("tokenizer", "tokenizer_2"),
    ),
    "StableDiffusion3": Family(
        "StableDiffusion3Pipeline",
        "sd3",
        "SD3Host",
        ("transformer", "text_encoder", "text_encoder_2", "text_encoder_3", "vae"),
        ("tokenizer", "tokenizer_2", "tokenizer_3"),
    ),
    "Flux": Family(
        "FluxPipeline",
        "flux",
        "FluxHost",
        ("transformer", "text_encoder", "text_encoder_2", "vae"),
        ("tokenizer", "tokenizer_2"),
    ),
}
UNUSED = ("safety_checker", "feature_extractor", "image_encoder")
PRESENT = {"scheduler": "scheduler_config.json"}
OPTIONAL = ("text_encoder_3", "tokenizer_3")  # SD3 runs without its T5 encoder
VARIANTS = ("", "Img2Img", "Inpaint")  # pipelines of the same models for other tasks


def load(
    model: str | os.PathLike[str],
    *,
    device: str = "cpu",
    dtype: str = "float32",
    factory: str = "",
    labels: Sequence[str] = (),
) -> Host:
    """Loads a model as a host, from local files alone.

    Args:
        model: `tiny/<name>`, or a model of another package; a diffusers folder; one .safetensors file of a Stable
            Diffusion checkpoint; a folder of a transformers, timm or palimpsest image classifier; the .safetensors
            state of a classifier, with its factory; or the id of a repository that is already in the local Hugging
            Face cache.
        device: "cpu", "cuda", "cuda:1", "mps".
        dtype: "float32", "float16" or "bfloat16".
        factory: "module:function" that makes the classifier whose state `model` is. It is code: name only your own.
        labels: the classes' names of such a classifier; other models know theirs.

    Raises:
        BadRequest: no such device or precision.
        Unsupported: nothing that can be loaded lies there, or a kind of model that has no host.
        Damaged: files are missing, broken or pickles.
    """
    place, precision = _device(device), _dtype(dtype)
    name = os.fspath(model)
    if import_module("palimpsest.tiny").shipped(name):
        return _folder(Path(import_module("palimpsest.tiny").path(name)), name, place, precision)
    path = Path(name).expanduser()
    if path.is_file() and factory:
        from palimpsest.hosts.factory import from_state

        return from_state(path, factory, labels=labels, device=place, dtype=precision)
    if path.is_file():
        return _file(path, place, precision)
    if path.is_dir():
        return _folder(path, name, place, precision, factory)
    return _folder(_cached(name), name, place, precision)


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


# -- folders ---------------------------------------------------------------------------------------------


def _folder(folder: Path, name: str, device: torch.device, dtype: torch.dtype, factory: str = "") -> Host:
    if (folder / "model_index.json").is_file():
        return _pipeline(folder, name, device, dtype)
    if (folder / "config.json").is_file():
        host = _classifier(folder, _json(folder / "config.json"), name, device, dtype, factory)
        if host is not None:
            return host
    raise Unsupported(
        f"{folder} holds neither a diffusers pipeline (model_index.json) nor an image classifier (config.json of "
        "transformers with an ...ForImageClassification architecture, of timm, or with a factory). Point to the "
        "folder that has one of them."
    )


def _classifier(
    folder: Path, config: Mapping[str, Any], name: str, device: torch.device, dtype: torch.dtype, factory: str
) -> Host | None:
    from palimpsest.hosts import factory as made

    if any("ForImageClassification" in a for a in config.get("architectures") or ()):
        from palimpsest.hosts.vision import from_folder

        _weights(folder, ".")
        return from_folder(folder, name=name, device=device, dtype=dtype)
    if made.is_own(config):
        _weights(folder, ".")
        return made.from_own(folder, config, name=name, device=device, dtype=dtype, factory=factory)
    if made.is_timm(config):
        _weights(folder, ".")
        return made.from_timm(folder, config, name=name, device=device, dtype=dtype)
    return None


def _pipeline(folder: Path, name: str, device: torch.device, dtype: torch.dtype) -> Host:
    index = _json(folder / "model_index.json")
    family = _family(str(index.get("_class_name")), folder)
    chosen: dict[str, Any] = {name: None for name in UNUSED if name in index}
    if "requires_safety_checker" in index:
        chosen["requires_safety_checker"] = False
    variants = []
    for part in (*family.models, *family.tokenizers, "scheduler"):
        library = _library(index, part)
        if library is None and part in OPTIONAL:
            chosen[part] = None
        elif library is None:
            raise Unsupported(f"{folder} comes without its {part}: it is a refiner or a part of a model.")
        elif library not in ("diffusers", "transformers"):
            # A library of any other name would be a Python file that the model brings along.
            raise Damaged(f"The {part} of {folder} comes with its own code ({library!r}), which is never run.")
        else:
            file = PRESENT.get(part, "config.json" if part in family.models else "")
            if not (folder / part / file).exists():
                lost = f"{part}/{file}".rstrip("/")
                raise Damaged(f"{folder} lacks {lost}; the download is incomplete: fetch the model again.")
            if part in family.models:
                variants.append(_weights(folder, part))
    common = sorted(set.intersection(*variants))
    if not common:
        raise Damaged(f"{folder} has no variant of its weights that is complete; fetch the model again.")
    import diffusers

    try:
        with _quiet():
            pipeline = getattr(diffusers, family.pipeline).from_pretrained(
                folder,
                variant=common[0] or None,
                use_safetensors=True,
                local_files_only=True,
                low_cpu_mem_usage=diffusers.utils.is_accelerate_available(),
                **_precision(dtype),
                **chosen,
            )
    except Exception as e:  # whatever diffusers, transformers or safetensors meet in a broken file
        raise Damaged(
            f"{folder} cannot be loaded as a {family.pipeline}: {_first_line(e)}. It is damaged (fetch it again), or "
            "was saved by newer versions of diffusers or transformers than those installed here (upgrade them)."
        ) from e
    for part in family.models:
        if _library(index, part) == "transformers":  # diffusers itself refuses files that lack tensors
            _complete(getattr(pipeline, part), folder / part)
    return _host(family, pipeline, name, folder, device)


def _complete(module: torch.nn.Module, folder: Path) -> None:
    """Refuses a component whose weights loaded only in part."""
    from palimpsest.hosts.weights import absent

    lost = absent(module, folder.glob("*.safetensors"))
    if lost:
        raise Damaged(
            f"{len(lost)} tensors of {folder} are not in its files, first {lost[0]!r}; they would be random. The "
            "download is incomplete (fetch the model again), or the names are those of another version of transformers."
        )


def _library(index: Mapping[str, Any], part: str) -> str | None:
    """The library that a component's class comes from, as model_index.json says; None for absent components."""
    named = index.get(part)
    return str(named[0]) if isinstance(named, list) and named and named[0] is not None else None


def _host(family: Family, pipeline: Any, name: str, folder: Path | None, device: torch.device) -> Host:
    pipeline.set_progress_bar_config(disable=True)
    cls = getattr(import_module(f"palimpsest.hosts.{family.module}"), family.host)
    host = cls(pipeline.to(device), name=name, folder=folder)
    if folder is not None and (folder / "world.json").is_file():
        # Models of drawn worlds are small and need fewer steps than a family's default; they say how many.
        own = _json(folder / "world.json")
        host.default_steps, host.default_guidance = own["steps"], own["guidance"]
    return host


def _precision(dtype: torch.dtype) -> dict[str, torch.dtype]:
    """Newer versions of diffusers warn about the older name of this argument, older ones do not know the newer."""
    from diffusers.pipelines import pipeline_utils

    return {"dtype" if hasattr(pipeline_utils, "_resolve_dtype") else "torch_dtype": dtype}


def _family(class_name: str, folder: Path) -> Family:
    for stem, family in FAMILIES.items():
        if class_name in {f"{stem}{variant}Pipeline" for variant in VARIANTS}:
            return family
    known = ", ".join(f"{stem}Pipeline" for stem in FAMILIES)
    raise Unsupported(f"{folder} is a {class_name}, which has no host; supported are {known}.")


def _weights(folder: Path, part: str) -> set[str]:
    """The variants ("", "fp16", ...) of a component's weights; refuses folders whose weights are only pickles."""
    names = [p.name for p in (folder / part).iterdir()]
    safe = [n for n in names if n.endswith(".safetensors")]
    if safe:
        # "model.safetensors" or "model-00001-of-00002.safetensors" against "model.fp16.safetensors" and its shards
        return {n.split(".")[1].split("-0")[0] if n.count(".") == 2 else "" for n in safe}
    where = folder if part == "." else folder / part
    pickles = [n for n in names if n.endswith(PICKLES)]
    if pickles:
        raise Damaged(
            f"{where} has its weights only as {pickles[0]}, a pickle, which could run code when loaded; it was not "
            "opened. Fetch the safetensors weights, or convert them where you trust their source."
        )
    raise Damaged(f"{where} has no weights (*.safetensors); the download is incomplete: fetch the model again.")


# -- single files and the cache --------------------------------------------------------------------------


def _file(path: Path, device: torch.device, dtype: torch.dtype) -> Host:
    refuse_pickle(path)
    if path.suffix in PICKLES:
        raise Damaged(
            f"{path} is named like a pickle or torch archive, which could run code when loaded; it was not opened. "
            "Convert it to safetensors where you trust its source."
        )
    if path.suffix != ".safetensors":
        raise Unsupported(f"{path} is no .safetensors file; give a diffusers folder or a .safetensors checkpoint.")
    import diffusers
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as f:
            names = set(f.keys())
    except (SafetensorError, OSError) as e:
        raise Damaged(f"{path} cannot be read as safetensors: {e}. It is truncated or damaged.") from e
    if not any(n.startswith("model.diffusion_model.") for n in names):
        raise Unsupported(
            f"{path} holds no Stable Diffusion checkpoint (no model.diffusion_model.* tensors). A LoRA or a part of a "
            "model is not a model: give the folder or file of the whole model."
        )
    xl = any(n.startswith("conditioner.embedders.1.") for n in names)
    family = FAMILIES["StableDiffusionXL" if xl else "StableDiffusion"]
    try:
        with _quiet():
            pipeline = getattr(diffusers, family.pipeline).from_single_file(
                str(path), local_files_only=True, **_precision(dtype)
            )
    except Exception as e:  # diffusers looks for configuration and tokenizer in the local cache and fails variously
        raise Unsupported(
            f"{path} could not be loaded on its own ({_first_line(e)}). A checkpoint file carries neither its "
            "tokenizer nor its configuration. Convert it to a folder once, on a machine with network: "
            f"diffusers.{family.pipeline}.from_single_file({path.name!r}).save_pretrained('folder'), then load the "
            "folder."
        ) from e
    return _host(family, pipeline, path.stem, None, device)


def _cached(name: str) -> Path:
    """The snapshot folder of a repository in the local Hugging Face cache."""
    parts = Path(name).parts
    if len(parts) == 2 and not name.startswith((".", "/", "~")):
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

        try:
            return Path(snapshot_download(name, local_files_only=True))
        except (LocalEntryNotFoundError, HFValidationError) as e:
            raise Unsupported(
                f"There is neither a folder {name} nor a copy of the repository {name!r} in the local Hugging Face "
                f"cache, and models are never downloaded on their own. Download it first: `hf download {name}`."
            ) from e
    raise Unsupported(f"There is no model at {name}; give a folder, a .safetensors file or a name such as tiny/sd.")


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as e:
        raise Damaged(f"{path} is no valid JSON ({e}); fetch the model again.") from e
    if not isinstance(content, dict):
        raise Damaged(f"{path} should hold a JSON object; fetch the model again.")
    return content


def _first_line(e: Exception) -> str:
    return (str(e).strip().splitlines() or [type(e).__name__])[0].rstrip(".")


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars while loading, which would be mistaken for progress of the work itself, and no notices.

    Notices are about parts that are not used here, such as image processors that would like torchvision.
    """
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    was = of_diffusers.is_progress_bar_enabled(), of_transformers.is_progress_bar_enabled()
    verbosity = of_transformers.get_verbosity()
    of_transformers.set_verbosity_error()
    of_diffusers.disable_progress_bar()
    of_transformers.disable_progress_bar()
    try:
        yield
    finally:
        of_transformers.set_verbosity(verbosity)
        if was[0]:
            of_diffusers.enable_progress_bar()
        if was[1]:
            of_transformers.enable_progress_bar()
