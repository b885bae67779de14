"""Options that several commands share, one way to say each, and what commands print at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from palimpsest.cli.terminal import tell
from palimpsest.core.errors import BadRequest

Kind = Literal["identity", "object", "class", "attribute", "style", "domain"]
# A metavar is what stands there: a model, words, a file. `palimpsest COMMAND --help` shows them.
Model = Annotated[str, arg(metavar="MODEL")]
Models = Annotated[tuple[str, ...], arg(metavar="MODEL ...")]
Words = Annotated[str, arg(metavar="WORDS")]
ConceptNames = Annotated[str, arg(metavar="CONCEPT")]
Prompt = Annotated[Positional[str], arg(metavar="PROMPT")]
Data = Annotated[str, arg(metavar="DATA")]
Forget = Annotated[str, arg(metavar="KIND:NAMES")]
Name = Annotated[str, arg(metavar="NAME")]
PatchFile = Annotated[Path, arg(metavar="PATCH")]
Folder = Annotated[Path, arg(metavar="FOLDER")]
File = Annotated[Path, arg(metavar="FILE")]
Files = Annotated[tuple[Path, ...], arg(metavar="FILE ...")]
ReceiptFile = Annotated[Path, arg(metavar="RECEIPT")]
OptionalPatch = Annotated[Path | None, arg(metavar="PATCH")]
OptionalFolder = Annotated[Path | None, arg(metavar="FOLDER")]
OptionalFile = Annotated[Path | None, arg(metavar="FILE")]
Pixels = Annotated[int | None, arg(metavar="PIXELS")]
Count = Annotated[int, arg(metavar="N")]
OptionalCount = Annotated[int | None, arg(metavar="N")]
Number = Annotated[float | None, arg(metavar="X")]
Strength = Annotated[float, arg(metavar="X")]
Steps = Annotated[int | None, arg(metavar="N")]


@dataclass(frozen=True, kw_only=True)
class Loading:
    """How models are loaded."""

    device: Annotated[str, arg(metavar="DEVICE")] = "cpu"
    """torch device: cpu, cuda, cuda:1, mps."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of the model; float32 is what readings are comparable in."""
    factory: Annotated[str, arg(metavar="MODULE:FUNCTION")] = ""
    """Makes a classifier of your own, whose .safetensors state is the model; its code is run."""
    offload: bool = False
    """Let a generator's text encoders and autoencoder rest in main memory while the device works without them."""
    tokenizer: OptionalFolder = None
    """For a checkpoint in one file: a folder with its tokenizers, or of a pipeline of its family, from which come also
    text encoders and an autoencoder that the file lacks."""
    prediction: Literal["epsilon", "v_prediction"] | None = None
    """For a checkpoint in one file of Stable Diffusion 1, 2 or XL: what it predicts; told from its weights where not
    given."""
    download: bool = False
    """Fetch models that are named as on the Hugging Face hub (owner/name), and missing tokenizers; else nothing is."""

    def load(self, model: str, labels: tuple[str, ...] = ()) -> Any:
        from palimpsest import run
        from palimpsest.train import ranks

        return run.load(
            model, device=ranks.place(self.device), dtype=self.dtype, factory=self.factory, labels=labels,
            offload=self.offload, checkpointing=self._computes_again, tokenizer=self.tokenizer or "",
            prediction=self.prediction or "", download=self.download,
        )  # fmt: skip

    @property
    def _computes_again(self) -> bool:
        return False  # commands that train have an option for it

    def load_all(self, models: Sequence[str]) -> list[Any]:
        """Several models, each an argument of its own or with commas between."""
        return [self.load(name.strip()) for text in models for name in text.split(",") if name.strip()]


@dataclass(frozen=True, kw_only=True)
class Learning(Loading):
    """How models are loaded that something is trained on."""

    checkpointing: bool = False
    """Compute a generator's activations again for the gradient: a fraction of the memory, a third more time."""

    @property
    def _computes_again(self) -> bool:
        return self.checkpointing


@dataclass(frozen=True, kw_only=True)
class Looking:
    """How much is drawn, and who judges it."""

    prompts: Count = 20
    """Different prompts for each target."""
    seeds: Count = 3
    """Seeds for each prompt."""
    sample_steps: Steps = None
    """Sampling steps; the model's own default where not given."""
    guidance: Number = None
    """Scale of classifier-free guidance; the model's own default where not given."""
    at_once: Annotated[int | None, arg(metavar="N")] = None
    """Pictures that are drawn at once; as many as fill the device where not given. Fewer take less memory."""
    judge: Annotated[tuple[str, ...], arg(metavar="JUDGE ...")] = ()
    """Evaluators: folders of classifiers or CLIP models, nudenet, or own: the untouched model itself (own:100 for at
    most 100 forwards a picture), which judges where nobody else does. The reader of a drawn world comes first; none
    leaves out what the model brings."""
    features: Annotated[tuple[str, ...], arg(metavar="FOLDER ...")] = ()
    """Networks that judge nothing and in whose features distances are measured: folders of CLIP models (for CMMD and
    the CLIP score as well), of vision models or of classifiers."""
    reference: OptionalFolder = None
    """A folder of pictures that those of the audit are compared with, in the features of --features and of judges."""
    sees: Number = None
    """Draw as many seeds as a change of so many points in any one other concept needs to be seen 9 times of 10."""
    stop_early: bool = False
    """Look four times and stop drawing as soon as every answer is clear; intervals and p allow for the looks."""
    prompts_file: Files = ()
    """Prompts of your own, drawn besides: CSV as papers publish them (I2P, COCO, UnlearnDiffAtk, ...), JSON, or text
    with one a line. A row's seed and guidance are used; without a seed it gets --seeds of them."""

    def look(self) -> Any:
        """How much an audit looks at, as the verbs take it; says what was read of files of prompts."""
        from palimpsest.data.prompts import read_prompts
        from palimpsest.run import Look

        files = tuple(map(read_prompts, self.prompts_file))
        for line in (line for file in files for line in file.told()):
            tell(line)
        return Look(
            prompts=self.prompts,
            seeds=self.seeds,
            steps=self.sample_steps,
            guidance=self.guidance,
            batch=self._batch(),
            judges=self.judge,
            features=self.features,
            reference=self.reference,
            sees=self.sees,
            stop_early=self.stop_early,
            prompts_files=files,
        )

    def _batch(self) -> int | None:
        if self.at_once is not None and self.at_once < 1:
            raise BadRequest(f"--at-once is {self.at_once}; draw at least 1 picture at once.")
        return self.at_once


@dataclass(frozen=True, kw_only=True)
class Working:
    """Who draws."""

    workers: Annotated[int | None, arg(metavar="N")] = None
    """Processes that draw and read pictures; 0: one a core or CUDA device. Where not given the same, but one alone for
    little work, and fewer where memory holds no more."""
    ray: Annotated[str, arg(metavar="local|ADDRESS")] = ""
    """Draw over Ray: on this machine, or in a cluster whose nodes see the same files."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a classifier's samples are read."""

    split: Name = "train"
    """The part of the data that the model learned from, where the data have parts."""
    test: Data = ""
    """Data that the model never saw; where the data have a part called test, that part."""
    size: Pixels = None
    """Side in pixels to resize pictures to; the model's own where not given."""
    skip_unreadable: bool = False
    """Leave out pictures that cannot be read, and list them, instead of stopping."""

    def samples(self, loading: Loading, model: str, data: str) -> tuple[Any, Any, Any]:
        """A classifier, what it learned from and what it never saw (None where there is no such part)."""
        from palimpsest.data.read import read

        if loading.factory:  # its state does not say what its classes are called; the data do
            known = read(data, split=self.split, size=self.size, skip_unreadable=self.skip_unreadable)
            host, size = loading.load(model, labels=known.classes), self.size
        else:
            host = loading.load(model)
            size = self.size or own_side(host)
            known = read(data, split=self.split, size=size, skip_unreadable=self.skip_unreadable)
        test = held_out(self.test, data, size=size, skip_unreadable=self.skip_unreadable)
        return host, known, test


def request_about(host: Any, target: str, *, keep: str = "", toward: str = "", kind: Kind | None = None) -> Any:
    """The request that these options make of a generator; says what it takes from the model's own words, and reads
    them first where that was never done."""
    from palimpsest import run
    from palimpsest.machine import cache_folder
    from palimpsest.probes.lexicon import Lexicon, vocabulary
    from palimpsest.progress import bars

    words = vocabulary(host)
    if isinstance(words, Lexicon) and words.unread:
        tell(f"Reading {words.unread:,} words with the text encoder of {host.name}, once; they are kept in")
        tell(f"{cache_folder() / 'words'}. On two processor cores this takes a minute or two.")
        with bars() as progress:
            words.read(lambda done, total: progress("reading words", done, total))
    request = run.request(host, target, keep=keep, toward=toward, kind=kind)
    for line in run.told(host, request, keep=keep, kind=kind):
        tell(line)
    return request


def own_side(host: Any) -> int | None:
    """The side of the square pictures that a classifier reads as they are; None where it takes any."""
    preprocessing = getattr(host, "preprocessing", None)
    side = getattr(preprocessing, "size", None) or getattr(preprocessing, "crop", None)
    return side if side is None or isinstance(side, int) else side[0] if side[0] == side[1] else None


def held_out(test: str, data: str, *, size: int | None, skip_unreadable: bool = False) -> Any:
    """Samples that a classifier did not learn from: the data named, or the data's own part called test; else None."""
    from palimpsest.data.read import read

    folder = Path(data).expanduser()
    own = folder.is_dir() and any(
        found for pattern in ("test/*/*", "test*.parquet", "data/test*.parquet") for found in folder.glob(pattern)
    )
    if not (test or own):
        return None
    return read(test or data, split="test", size=size, skip_unreadable=skip_unreadable)


def refuse_overwriting(folder: Path, names: Sequence[str], overwrite: bool, resume: bool = False) -> None:
    """Raises BadRequest where files of these names would be replaced and nobody said that they may."""
    there = [name for name in names if (folder / name).exists()]
    if there and not overwrite and not resume:
        raise BadRequest(
            f"{folder} already holds {', '.join(there)}; nothing was overwritten. Give another --out, or --overwrite "
            "to replace what is there."
        )


def say(receipt: Any) -> None:
    """Tells a receipt's sentences and where it was written."""
    tell(receipt.summary())
    tell(f"receipt  {receipt.html}\n         {receipt.json}")
