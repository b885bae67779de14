"""palimpsest <verb>: one command for each installed verb, made from what the verb declares."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import ExitStack, closing, redirect_stdout
from dataclasses import dataclass, fields, make_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import tyro
from tyro.conf import Positional, arg

from palimpsest.cli import options
from palimpsest.cli.options import (
    Learning,
    Loading,
    Looking,
    Reading,
    Working,
    refuse_overwriting,
    request_about,
    say,
)
from palimpsest.cli.terminal import tell
from palimpsest.core import catalog
from palimpsest.core.errors import BadRequest
from palimpsest.core.verb import Verb

WRITTEN = ("patch.safetensors", "receipt.json", "receipt.html", "forget.json")


@dataclass(frozen=True, kw_only=True)
class Target:
    target: Positional[options.ConceptNames]
    """The concept, several with commas between, or a CSV file with the columns name, kind, prompts and toward."""
    kind: options.Kind | None = None
    """What sort of thing it is; where not given, drawn worlds know it, the lists of names that come with this package
    may, and else it is an object."""


@dataclass(frozen=True, kw_only=True)
class Keep:
    keep: options.Words = ""
    """What must stay, with commas between or a CSV file; the model's own neighbours of the target where not given;
    "none": nothing."""


@dataclass(frozen=True, kw_only=True)
class Toward:
    toward: options.Words = ""
    """What the target becomes; nothing (the empty prompt) where not given."""


@dataclass(frozen=True, kw_only=True)
class Forget:
    forget: options.Forget
    """class:cat, class:cat,dog, identity:s7, or samples:list.csv with paths or row numbers."""


@dataclass(frozen=True, kw_only=True)
class Generator(Learning, Looking, Working):
    model: options.Model = "tiny/sd"
    """A diffusers folder, a .safetensors checkpoint, a repository of the hub, or one of the shipped tiny models."""
    data: Annotated[tuple[str, ...], arg(metavar="NAME=DATA ...")] = ()
    """Pictures that the system learns from, by the names that it reads (`palimpsest show` tells them)."""
    oracle: options.Models = ()
    """A model that never saw what this is about, for the receipt to compare with."""

    def case(self) -> Any:
        from palimpsest import run
        from palimpsest.data.concepts import is_list, read_concepts

        for given in filter(is_list, (getattr(self, "target", ""), getattr(self, "keep", ""))):
            for concept in read_concepts(given):
                tell(f"read     {concept}")
        host = self.load(self.model)
        said = {name: getattr(self, name, "") for name in ("target", "keep", "toward")}
        request = request_about(host, **said, kind=getattr(self, "kind", None))
        return run.case(
            host, request, data=_named(self.data), look=self.look(), oracles=self.load_all(self.oracle),
            workers=self.workers, ray=self.ray,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Word:
    word: Annotated[Positional[str], arg(metavar="WORD")]
    """The new word, like <crown>, or several with commas between; without spaces."""
    images: Annotated[tuple[str, ...], arg(metavar="PICTURES ...")]
    """For each word a folder of pictures or a file; world:WORD draws some of a drawn world's concept."""
    like: options.Words
    """What the newcomer is one of: dog, person, painting; several with commas between."""
    kind: options.Kind | None = None
    """What sort of thing it is; where not given, drawn worlds know it, the lists of names that come with this package
    may of its class, and else it is an object."""
    captions: Annotated[str, arg(metavar="auto|file|TEXT")] = "auto"
    """auto puts the word into the captions that lie beside the pictures and makes those that are missing; file takes
    them as they are; a text with {word} in it stands for all."""
    n: options.Count = 4
    """How many references world:WORD draws."""
    skip_unreadable: bool = False
    """Leave out pictures that cannot be read, and list them, instead of stopping."""
    consent: Annotated[str, arg(metavar="TEXT")] = ""
    """What the persons that are shown agreed to; it goes into the receipt."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    parts: Positional[Annotated[tuple[str, ...], arg(metavar="CHANGE ...")]]
    """Patches or their folders, other programs' LoRAs and embeddings, or whole edited models."""
    about: Annotated[tuple[str, ...], arg(metavar="WORDS ...")] = ()
    """For each change what it is about, names with commas between, or - where nobody knows; what the patches
    themselves say where not given. What they are about is drawn, with each change alone and with all of them."""


@dataclass(frozen=True, kw_only=True)
class Merged(Loading, Looking, Working):
    """A model of which several changes are merged."""

    model: options.Model = "tiny/sd"
    """The model that all of them change."""
    data: Annotated[tuple[str, ...], arg(metavar="NAME=DATA ...")] = ()
    """Pictures that the system learns from, by the names that it reads (`palimpsest show` tells them)."""
    stream: bool = False
    """Load no model: read all files a block at a time. Nothing is drawn, and no receipt is written."""
    write: Annotated[Path | None, arg(metavar="FOLDER|FILE")] = None
    """Write the whole merged model as well, as the model's own files are: a folder, or a checkpoint in one file."""

    def case(self) -> Any:
        from palimpsest.hosts.load import stored
        from palimpsest.run import merging

        about: Any = self  # what the command asks stands in its other bases
        if self.write is not None and self.write.exists():
            raise BadRequest(f"{self.write} is there already; name another place with --write.")
        host = stored(self.model) if self.stream else self.load(self.model)
        found = merging.ingredients(host, about.parts, about=about.about)
        if self.write is not None and (brought := [word for i in found for word in i.part.words]):
            raise BadRequest(f"--write writes weights alone, and a change brings the word {brought[0]}; leave it out.")
        for i in found:
            tell(f"{i.name}: {', '.join(c.name for c in i.about) or 'nobody says what it is about'}.")
        data = _named(self.data, size=options.own_side(host))
        return merging.merging(host, found, data=data, look=self.look(), workers=self.workers, ray=self.ray)


@dataclass(frozen=True, kw_only=True)
class Newcomer(Learning, Looking, Working):
    """A generator that is taught something."""

    model: options.Model = "tiny/sd"
    """A diffusers folder, a .safetensors checkpoint, a repository of the hub, or one of the shipped tiny models."""
    oracle: options.Models = ()
    """A model that always knew the newcomer, for the receipt to compare with."""

    def case(self) -> Any:
        from palimpsest.run import inserting

        about: Any = self  # what the command asks stands in its other bases
        host = self.load(self.model)
        brought = inserting.introduce(
            host, about.word, about.images, like=about.like, kind=about.kind, keep=about.keep,
            captions=about.captions, n=about.n, skip_unreadable=about.skip_unreadable, consent=about.consent,
        )  # fmt: skip
        for line in brought.told:
            tell(line)
        if not about.consent and any(c.kind == "identity" for c in brought.request.target) and host.knows is None:
            tell("Nothing is said of whether the person agreed (--consent); the receipt says so.")
        return inserting.NewcomerCase(
            host=host, asked=brought.request, pictures=brought.references, newcomers=brought.newcomers,
            look=self.look(), oracles=self.load_all(self.oracle), workers=self.workers, ray=self.ray,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Classifier(Loading, Reading):
    model: options.Model
    """The classifier: tiny/cifar, a transformers, timm or palimpsest folder, or a .safetensors state and --factory."""
    data: options.Data
    """What it learned from: an image folder, a folder of parquet files, a .parquet or an .npz file."""
    oracle: options.Models = ()
    """Models that were trained without what is forgotten, for the receipt to compare with."""
    accept_chance: bool = False
    """Work also where the model reads its own data no better than by chance."""

    def case(self) -> Any:
        from palimpsest import run
        from palimpsest.data.forget import ForgetRequest

        asked = ForgetRequest.parse(getattr(self, "forget", ""))
        host, data, test = self.samples(self, self.model, self.data)
        oracles = self.load_all(self.oracle)
        return run.case(host, asked, data=data, test=test, oracles=oracles, accept_chance=self.accept_chance)


@dataclass(frozen=True, kw_only=True)
class Other(Loading):
    """Models of a kind that another package brings."""

    verb: ClassVar[str]

    model: options.Model
    """The model."""
    data: Annotated[tuple[str, ...], arg(metavar="NAME=DATA ...")] = ()
    """Pictures that the system learns from, by the names that it reads."""

    def case(self) -> Any:
        from palimpsest import run

        words: dict[str, Any] = {name: getattr(self, name) for name in ("keep", "toward") if hasattr(self, name)}
        host, subject = self.load(self.model), catalog.verbs()[self.verb].subject
        request = run.request(host, getattr(self, "target", ""), kind=getattr(self, "kind", None), **words)
        return run.case(host, request, data=_named(self.data), subject=subject)


@dataclass(frozen=True, kw_only=True)
class Doing:
    verb: ClassVar[str]
    case: ClassVar[Callable[[], Any]]

    method: options.Name = ""
    """The system, e.g. uce, esd or salun; the default is named when used. Its own options follow as --name value, or as
    --method.name value where the command has one of that name."""
    budget: Literal["paper", "exam"] | None = None
    """The system's settings to start from: as published for large models, or as examined on the small ones that are
    shipped; for those, the latter unless given."""
    out: options.Folder = Path("out")
    """Folder for the results."""
    seed: options.Count = 0
    """Of everything random in the method."""
    resume: bool = False
    """Go on from what an interrupted run left in the out folder."""
    overwrite: bool = False
    """Replace results that are in the out folder already."""
    dry_run: bool = False
    """Print what would be done, looked at and shown, and the minutes; then stop."""

    def run(self, rest: list[str], command: str) -> int:
        from palimpsest.train import ranks

        with ExitStack() as stack:
            if stack.enter_context(ranks.joined(str(getattr(self, "device", "cpu")))):
                stack.enter_context(redirect_stdout(stack.enter_context(open(os.devnull, "w", encoding="utf-8"))))
            return self._carry_out(rest, command)

    def _carry_out(self, rest: list[str], command: str) -> int:
        from palimpsest import run
        from palimpsest.progress import bars

        entry = catalog.find(self.method or catalog.verbs()[self.verb].default, self.verb)
        method = self._method(entry, rest)
        if getattr(self, "checkpointing", False) and not hasattr(method, "steps"):
            raise BadRequest(f"{entry.card.name} takes no steps of training; leave out --checkpointing.")
        if not self.dry_run:
            refuse_overwriting(self.out, WRITTEN, self.overwrite, self.resume)
        if not self.method:
            tell(f"No --method given: using {entry.card.name} ({entry.id}), the default.")
        case = self.case()
        case.check(method)
        tell(case.forecast(method))
        if self.dry_run:
            tell(f"{entry.card.name} ({entry.id}): {method}")
            return 0
        with closing(case), bars() as progress:
            done = run.perform(
                self.verb, case, method=method, out=self.out, seed=self.seed, resume=self.resume, command=command,
                progress=progress,
            )  # fmt: skip
        if done.record is not None:
            left_out = len(done.record["skipped"])
            tell(f"{done.record['samples']} of {done.record['of']} samples forgotten, skipped {left_out}.")
        tell(f"patch    {done.patch_path}")
        if done.record_path is not None:
            tell(f"record   {done.record_path}")
        if done.receipt is not None:
            say(done.receipt)
        if (write := getattr(self, "write", None)) is not None:
            from palimpsest.hosts.load import write_edited

            tell(f"model    {write_edited(getattr(self, 'model', ''), done.patch, write)}")
        return 0

    def _method(self, entry: catalog.Entry, rest: list[str]) -> Any:
        """The system with what its own options say, on top of the exam's settings for this work or the paper's."""
        cls = catalog.load(entry.id)
        examined = self._examined(entry.id)
        if self.budget == "exam" and not examined:
            raise BadRequest(f"The exam has no settings of {entry.card.name} for this; leave out --budget.")
        if examined:
            told = ", ".join(f"{name} {value}" for name, value in examined.items())
            tell(
                f"{entry.card.name} starts from the exam's settings for small models: {told} (--budget paper: its own)."
            )
        args = [arg.replace("--method.", "--", 1) for arg in rest]
        default = _chosen(cls.from_plain(examined), self.verb, args)
        return tyro.cli(cls, default=default, prog=f"palimpsest {self.verb} ... --method {entry.id}", args=args)

    def _examined(self, system: str) -> dict[str, Any]:
        """What the exam sets for a system on this work; {} where that is not wanted or not known."""
        model = str(getattr(self, "model", ""))
        if self.budget == "paper" or (self.budget is None and not model.startswith("tiny/")):
            return {}
        from palimpsest.exam import budgets

        kind = str(getattr(self, "forget", "")).partition(":")[0]
        return budgets.parameters(system, f"{model.removeprefix('tiny/')}, {kind}" if kind else "")


def _chosen(method: Any, verb: str, args: list[str]) -> Any:
    """The system with other systems in its parameters, where options name some (`--unlearner neg_grad_plus`).

    These options are taken out of `args`; options of the systems themselves (`--unlearner.lr 0.1`) stay.
    """
    from palimpsest.core.method import Method

    named = {}
    for name in (f.name for f in fields(method) if isinstance(getattr(method, f.name), Method)):
        flag = "--" + name.replace("_", "-")
        if flag in args[:-1]:
            at = args.index(flag)
            named[name] = catalog.load(catalog.find(args[at + 1], verb).id)()
            del args[at : at + 2]
    return replace(method, **named)


def _named(given: tuple[str, ...], *, size: int | None = None) -> dict[str, Any]:
    """Data sets by the names in NAME=DATA."""
    from palimpsest.data.read import read

    parts = [re.fullmatch(r"([a-z_]+)=(.+)", text) for text in given]
    odd = [text for text, part in zip(given, parts, strict=True) if part is None]
    if odd:
        raise BadRequest(f"--data {odd[0]} does not say what the data are for; write --data NAME=DATA.")
    return {part[1]: read(part[2], size=size, labelled=False) for part in parts if part is not None}


_ASKS = {"target": Target, "keep": Keep, "toward": Toward, "forget": Forget, "word": Word, "parts": Parts}
_SUBJECTS = {"generator": Generator, "classifier": Classifier, "newcomer": Newcomer, "merged": Merged}


def command_of(name: str, verb: Verb) -> type:
    """The command of a verb: a dataclass with the options that the verb asks for, its subject's, and those of all."""
    groups = [_ASKS[word] for word in verb.asks]
    bases = (Doing, _SUBJECTS.get(verb.subject, Other), *reversed(groups))  # help lists the last base's options first
    examples = "\n".join(f"  {line}" for line in verb.examples)
    made = make_dataclass(
        name.title(), [("out", options.Folder, Path(verb.out))], bases=bases, frozen=True, kw_only=True
    )
    made.verb, made.__doc__ = name, f"{verb.does}\n\nExamples:\n{examples}"
    return made
