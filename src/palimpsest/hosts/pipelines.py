"""Text-to-image pipelines from their diffusers folders, part by part: each of a class on a closed list, each whole."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from palimpsest.core import declared
from palimpsest.core.errors import Damaged, Unsupported
from palimpsest.hosts import files
from palimpsest.hosts.checkpointing import checkpoint_blocks
from palimpsest.hosts.components import refuse_unfit, unfilled
from palimpsest.hosts.source import Family, Source, first_line, quiet
from palimpsest.hosts.weights import loaded, weights_of

TASKS = ("", "Img2Img", "Inpaint")  # pipelines of the same models for other tasks
OPTIONAL = ("text_encoder_3", "tokenizer_3")  # SD3 runs without its T5 encoder
CLIP = ("CLIPTextModel", "CLIPTextModelWithProjection")
T5 = ("T5EncoderModel",)
CLIP_TOKENIZER = ("CLIPTokenizer", "CLIPTokenizerFast")
T5_TOKENIZER = ("T5Tokenizer", "T5TokenizerFast")
AUTOENCODER = ("AutoencoderKL", "AutoencoderTiny", "AsymmetricAutoencoderKL")
NOISE_SCHEDULER = (
    *("DDIMScheduler", "DDPMScheduler", "PNDMScheduler", "LMSDiscreteScheduler", "EulerDiscreteScheduler"),
    *("EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "LCMScheduler"),
    *("KDPM2AncestralDiscreteScheduler", "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"),
    *("DEISMultistepScheduler", "UniPCMultistepScheduler", "SASolverScheduler"),
    *("TCDScheduler", "DDIMParallelScheduler", "DDPMParallelScheduler"),
)
FLOW_SCHEDULER = (
    *("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "FlowMatchLCMScheduler"),
    *("DPMSolverMultistepScheduler", "UniPCMultistepScheduler"),
)


def family(stem: str, host: Any, **parts: tuple[str, ...]) -> Family:
    """How pipelines of one family are recognised and loaded.

    Args:
        stem: of the pipeline's class name: "StableDiffusion" for StableDiffusionPipeline.
        host: its host class.
        parts: the pipeline's components by name -> the classes that a folder may choose for each.
    """
    names = {f"{stem}{task}Pipeline" for task in TASKS}
    return Family(
        detect=lambda files, config, keys: str(config.get("_class_name")) in names,
        load=partial(_from_folder, f"{stem}Pipeline", host, parts),
        host=host,
        stored=partial(_stored, parts),
    )


def assembled(pipeline: Any, source: Source, host: Any, folder: Path | None) -> Any:
    """A loaded pipeline as the host of its family, where and how the source says."""
    pipeline.set_progress_bar_config(disable=True)
    if source.offload:  # the rest stays in main memory and visits
        getattr(pipeline, host.network).to(source.device)
    else:
        pipeline.to(source.device)
    made = host(pipeline, name=source.name, folder=folder)
    if source.checkpointing:
        checkpoint_blocks(made.denoiser, source.name)
    return made


def _from_folder(pipeline: str, host: Any, parts: Mapping[str, tuple[str, ...]], source: Source) -> Any:
    import diffusers

    components: dict[str, Any] = {part: component(source, part, classes) for part, classes in parts.items()}
    with quiet():  # diffusers imports the class only now, and with it processors that would like torchvision
        cls = getattr(diffusers, pipeline)
    takes = inspect.signature(cls.__init__).parameters
    components |= {part: None for part in ("safety_checker", "feature_extractor", "image_encoder") if part in takes}
    if "requires_safety_checker" in takes:
        components["requires_safety_checker"] = False
    if "force_zeros_for_empty_prompt" in takes:
        zeros = source.config.get("force_zeros_for_empty_prompt", True)
        components["force_zeros_for_empty_prompt"] = declared.fitted(zeros, bool, f"{source.path}: its empty prompt")
    try:
        with quiet():
            return assembled(cls(**components), source, host, source.path)
    except (TypeError, ValueError, AttributeError, KeyError, RuntimeError) as e:  # parts that do not fit each other
        raise Damaged(f"{source.path} cannot be put together as a {pipeline}: {first_line(e)}.") from e


def component(source: Source, part: str, classes: tuple[str, ...]) -> Any:
    """One part of a pipeline, of a listed class."""
    cls = _chosen(source, part, classes)
    if cls is None:
        return None
    folder = source.path / part
    if part.startswith("tokenizer") or part == "scheduler":
        return _configured(cls, folder, part == "scheduler")
    return loaded(cls, folder, source.dtype)


def _chosen(source: Source, part: str, classes: tuple[str, ...]) -> Any:
    """The class of one part of a pipeline, whose files are there; None where the pipeline does without."""
    folder = source.path / part
    named = source.config.get(part)
    library, chosen = named if isinstance(named, list) and len(named) == 2 else (None, None)
    if library is None:
        if part in OPTIONAL:
            return None
        raise Unsupported(f"{source.path} comes without its {part}: it is a refiner or a part of a model.")
    if library not in ("diffusers", "transformers"):
        # A library of any other name would be a Python file that the model brings along.
        raise Damaged(f"The {part} of {source.path} comes with its own code ({library!r}), which is never run.")
    if chosen not in classes:
        raise Unsupported(f"The {part} of {source.path} is a {chosen!r}; supported are {', '.join(classes)}.")
    tokenizer, scheduler = part.startswith("tokenizer"), part == "scheduler"
    file = "" if tokenizer else "scheduler_config.json" if scheduler else "config.json"
    if not (folder / file).exists():
        lost = f"{part}/{file}".rstrip("/")
        raise Damaged(f"{source.path} lacks {lost}; the download is incomplete: fetch the model again.")
    return _class(library, chosen)


def _stored(parts: Mapping[str, tuple[str, ...]], source: Source) -> files.Files:
    """The tensors of a pipeline's folder where they lie."""
    places: dict[str, files.Place] = {}
    for part, classes in parts.items():
        if part.startswith("tokenizer") or part == "scheduler":
            continue
        cls = _chosen(source, part, classes)
        if cls is not None:
            held = weights_of(cls, source.path / part)
            refuse_unfit(cls, source.path / part, held)
            places |= files.folder(part, unfilled(cls, source.path / part), held, source.path / part)
    return files.Files(places)


def _class(library: str, name: str) -> Any:
    import diffusers
    import transformers

    cls = getattr(diffusers if library == "diffusers" else transformers, name, None)
    if cls is None:
        raise Unsupported(f"There is no {name} in the {library} installed here; upgrade it.")
    return cls


def _configured(cls: Any, folder: Path, scheduler: bool) -> Any:
    """A tokenizer or a scheduler: parts without weights."""
    if scheduler:
        config = declared.read(folder / "scheduler_config.json", dict, "a scheduler's configuration")
        times = config.get("num_train_timesteps", 1000)
        if type(times) is not int or not 1 <= times <= 100_000:
            raise Damaged(f"{folder} sets num_train_timesteps to {declared.shown(times)}; expected 1 to 100,000.")
    try:
        with quiet():
            return cls.from_pretrained(folder, local_files_only=True)
    except Exception as e:  # whatever the libraries meet in a broken file
        raise Damaged(f"{folder} cannot be loaded as a {cls.__name__}: {first_line(e)}. Fetch it again.") from e
