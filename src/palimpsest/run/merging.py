"""Merge changes of one model: read what others made, combine it, and measure what each change kept."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from palimpsest.core.change import Change, Part, stored
from palimpsest.core.combine import Combine
from palimpsest.core.concept import Concept, Request
from palimpsest.core.errors import BadRequest, Damaged
from palimpsest.core.host import Classifier, Denoiser
from palimpsest.core.method import Method
from palimpsest.core.patch import Patch
from palimpsest.core.pictures import Material
from palimpsest.core.printable import printable
from palimpsest.core.stored import bytes_of
from palimpsest.core.trace import Progress, Trace
from palimpsest.data.dataset import Dataset, aligned
from palimpsest.export.read import WEIGHTS, is_own_file, read_patch, weights_of
from palimpsest.hosts import load as hosts
from palimpsest.probes.groups import Merged as Of
from palimpsest.probes.groups import Taught
from palimpsest.probes.plan import Plan
from palimpsest.receipt.make import PATCH_FILE
from palimpsest.receipt.subjects.merged import Merged
from palimpsest.run.auditing import is_patch
from palimpsest.run.cases import Case, GeneratorCase
from palimpsest.run.do import Done, perform
from palimpsest.run.looking import Look, plan
from palimpsest.run.requests import concepts

UNSAID = "-"  # in a list of what changes are about: nobody knows


@dataclass(frozen=True, kw_only=True)
class Ingredient:
    """A change that is to be merged.

    Args:
        part: the change. name: what it is called. about: concepts that it is about; () where nobody knows.
        newcomers: those of them that the untouched model does not know.
    """

    part: Part
    name: str
    about: tuple[Concept, ...] = ()
    newcomers: tuple[Taught, ...] = ()


@dataclass(frozen=True, kw_only=True)
class MergeCase(GeneratorCase):
    """Changes of a generator that are merged."""

    ingredients: tuple[Ingredient, ...] = field(default=())

    @property
    def parts(self) -> tuple[Part, ...]:
        return tuple(i.part for i in self.ingredients)

    @cached_property
    def plan(self) -> Plan:
        new = tuple(n for i in self.ingredients for n in i.newcomers)
        chosen = plan(self.host, self.request, self.look, newcomers=new)
        merged = [
            Of(name=i.name, sha256=i.part.sha256(), about=tuple(c.name for c in i.about)) for i in self.ingredients
        ]
        return replace(chosen, aim="away", merged=tuple(merged))

    def carry_out(self, method: Any, *, seed: int, trace: Trace) -> Patch:
        return method(self.parts, self.host, data=self.material, seed=seed, trace=trace)

    def subject(self) -> Merged:
        return Merged(**self.looked_at(), parts=self.parts)


@dataclass(frozen=True, kw_only=True)
class BareMerge(Case):
    """Changes that are merged without looking at what comes of it.

    Args:
        data: pictures by name, for systems that learn from some.
    """

    writes: ClassVar[bool] = True
    ingredients: tuple[Ingredient, ...]
    data: Mapping[str, Dataset] = field(default_factory=dict)

    @property
    def request(self) -> Request:
        raise BadRequest("Nobody said what the merged changes are about.")

    @property
    def material(self) -> Material:
        return Material({name: data.samples for name, data in self.data.items()})

    def check(self, method: Method | None = None) -> None:
        """Changes were held against the model when they were read."""

    def forecast(self, method: Method | None) -> str:
        return f"{self._read(method)} {self._unseen()}"

    def _read(self, method: Method | None) -> str:
        """How much is read, where the model is not loaded: for fingerprints, and for the changes of each pass."""
        base = stored(self.host)
        parts = [i.part for i in self.ingredients]
        passes = getattr(method, "passes", 1)
        whole = [bytes_of(p.after) for p in parts if isinstance(p, Change)]
        patches = [p.nbytes() for p in parts if isinstance(p, Patch)]
        own = 0 if hasattr(self.host, "root") else bytes_of(base)  # a loaded model is in memory
        total = own + sum(whole) + passes * (sum(whole) + sum(patches) + (own if whole else 0))
        times = f"{passes} times" if passes > 1 else "once"
        return (
            f"The model has {len(base.names())} tensors; the changes are read {times}, and {total / 1e9:.2g} GB in all."
        )

    def _unseen(self) -> str:
        if isinstance(self.host, Denoiser):
            why = "Nobody said what these changes are about (--about), so no picture is drawn and no receipt written"
        else:
            why = "No picture is drawn and no receipt written: the model is not loaded, or draws none"
        return f"{why}; what merging did to each is not known."

    def carry_out(self, method: Any, *, seed: int, trace: Trace) -> Patch:
        """The patch is written while it is computed: no more than a block of it is held."""
        parts = [i.part for i in self.ingredients]
        out = None if trace.folder is None else trace.folder / PATCH_FILE
        return method(parts, self.host, data=self.material, seed=seed, trace=trace, out=out)

    def audit(self, after: Any, *, out: Path | None, resume: bool, command: str, trace: Trace) -> None:
        return None


def ingredients(
    host: Any, parts: Sequence[str | Path | Part], *, about: Sequence[str] = (), names: Sequence[str] = ()
) -> tuple[Ingredient, ...]:
    """Changes of a model, read from wherever they lie.

    Args:
        host: the model that all of them change.
        parts: patches, changes, or paths: of a patch or its folder, of another program's LoRA or embedding, or of a
            whole edited model.
        about: for each what it is about, names with commas between; "-" or "": what the patch itself says.
        names: what each is called; its folder or file where not given.

    Raises:
        BadRequest: none or one is given, not as many words as changes, or two of one name.
        WrongBase, Damaged, Unsupported: a change is not one of this model.
    """
    if not parts:
        raise BadRequest("There is no change to merge: name patches, LoRAs or edited models.")
    if about and len(about) != len(parts):
        raise BadRequest(
            f"{len(about)} times what changes are about (--about) for {len(parts)} changes; say it for each."
        )
    found = []
    for i, given in enumerate(parts):
        part = given if isinstance(given, (Patch, Change)) else _read(Path(str(given)), host)
        name = names[i] if names else _name(given, i)
        said = about[i].strip() if about else ""
        found.append(_about(host, part, name, "" if said == UNSAID else said))
    return tuple(_numbered(found))


def merging(
    host: Any,
    found: Sequence[Ingredient],
    *,
    data: Mapping[str, Dataset] | None = None,
    look: Look | None = None,
    **drawing: Any,
) -> Case:
    """The case of changes that are merged; one without pictures where nobody knows what any of them is about, or the
    model draws none.

    Args:
        data: pictures by name, for systems that learn from some; labels are matched to a classifier's by name.
        look, drawing: of `run.cases.GeneratorCase`.

    Raises:
        BadRequest: the data have a class that the classifier does not have.
    """
    learnt = dict(data or {})
    if isinstance(host, Classifier):
        with_labels = {name: d for name, d in learnt.items() if len(d.samples.labels)}
        learnt |= {name: aligned(d, host.labels, host.name) for name, d in with_labels.items()}
    targets: dict[str, Concept] = {}
    for ingredient in sorted(found, key=lambda i: not i.newcomers):  # a plan has those that are taught first
        for concept in ingredient.about:
            targets.setdefault(concept.name.casefold(), concept)
    if not targets or not isinstance(host, Denoiser):
        return BareMerge(host=host, ingredients=tuple(found), data=learnt)
    asked = Request(target=tuple(targets.values()))
    return MergeCase(host=host, asked=asked, ingredients=tuple(found), data=learnt, look=look or Look(), **drawing)


def merge(
    host: Any,
    parts: Sequence[str | Path | Part],
    *,
    about: Sequence[str] = (),
    method: Combine | str = "",
    data: Mapping[str, Dataset] | None = None,
    look: Look | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    workers: int | None = 1,
    ray: str = "",
    command: str = "",
    progress: Progress | None = None,
) -> Done:
    """Merges changes of one model and measures what each of them kept.

    Args:
        host: from `load`; it is unchanged afterwards.
        parts, about: see `ingredients`.
        method: a system, or its name; the verb's default where not given.
        data: pictures that the system learns from, by the names that its card reads.
        look, workers, ray: see `run.case`.
        out: folder for patch.safetensors, receipt.json and receipt.html; None writes nothing.
        seed: of everything random in the method.

    Example:
        >>> done = merge(load("tiny/sd"), ["no-star", "crown"], out="both")        # doctest: +SKIP
        >>> print(done.receipt.summary())                                         # doctest: +SKIP
    """
    case = merging(host, ingredients(host, parts, about=about), data=data, look=look, workers=workers, ray=ray)
    with closing(case):
        return perform("merge", case, method=method, out=out, seed=seed, command=command, progress=progress)


def _read(path: Path, host: Any) -> Part:
    """A change from a path."""
    if path.is_dir() and (path / PATCH_FILE).is_file():
        path = path / PATCH_FILE
    if path.is_dir() and any((path / name).is_file() for name in WEIGHTS) and not (path / "config.json").is_file():
        path = weights_of(path)  # what peft or diffusers wrote
    if is_patch(path):
        opened = Patch.open(path) if is_own_file(path) else read_patch(path, host if hasattr(host, "root") else None)
        if hasattr(host, "root"):
            opened.fits(host)
        return opened
    if not path.exists() and path.suffix:
        raise Damaged(f"There is no {path}.")
    return Change(before=stored(host), after=hosts.stored(path), name=printable(path.name))


def _numbered(found: Sequence[Ingredient]) -> list[Ingredient]:
    """Changes of one name get numbers."""
    called = Counter(i.name for i in found)
    seen: Counter[str] = Counter()
    named = []
    for i in found:
        seen[i.name] += 1
        named.append(replace(i, name=f"{i.name} ({seen[i.name]})") if called[i.name] > 1 else i)
    return named


def _name(given: str | Path | Part, i: int) -> str:
    if isinstance(given, (str, Path)):
        path = Path(str(given))
        own = path.parent.name if path.name == PATCH_FILE else path.stem if path.suffix == ".safetensors" else path.name
        return printable(own or str(path))
    made = given.provenance
    targets = _targets(made)
    return ", ".join(c.name for c in targets) or str(made.get("edited") or made.get("file") or f"change {i + 1}")


def _about(host: Any, part: Part, name: str, said: str) -> Ingredient:
    """What a change is about: what the user says, else what the patch says of the request that it answers."""
    asked = _request(part.provenance)
    if said:
        return Ingredient(part=part, name=name, about=concepts(host, said), newcomers=_newcomers(part, said))
    if asked is None:
        return Ingredient(part=part, name=name, newcomers=())
    new = [
        Taught(name=target.name, like=like.name)
        for target, like in zip(asked.target, asked.replacements(), strict=True)
        if like is not None and _brought(part, target.name)
    ]
    return Ingredient(part=part, name=name, about=asked.target, newcomers=tuple(new))


def _newcomers(part: Part, said: str) -> tuple[Taught, ...]:
    """Words of a change among those that it is said to be about; the rest of the phrase is the class."""
    found = []
    for name in (n.strip() for n in said.split(",")):
        like = " ".join(w for w in name.split() if w not in part.words)
        if _brought(part, name):
            found.append(Taught(name=name, like=like or "object"))
    return tuple(found)


def _brought(part: Part, name: str) -> bool:
    return any(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", name) for word in part.words)


def _request(provenance: Mapping[str, Any]) -> Request | None:
    try:
        return Request.from_plain(provenance["request"])
    except (KeyError, TypeError, Damaged, BadRequest):
        return None


def _targets(provenance: Mapping[str, Any]) -> tuple[Concept, ...]:
    asked = _request(provenance)
    return () if asked is None else asked.target
