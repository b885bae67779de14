"""The verbs as a user calls them, from a notebook or from the command line."""

from __future__ import annotations

import importlib.util
import json
import math
import re
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from palimpsest.core import catalog
from palimpsest.core.concept import Concept, Kind, Request
from palimpsest.core.errors import BadRequest
from palimpsest.core.files import write_beside, write_text
from palimpsest.core.host import Classifier, Denoiser
from palimpsest.core.method import ModelEdit, versions
from palimpsest.core.patch import Patch
from palimpsest.core.trace import Progress, Trace
from palimpsest.data.concepts import Listed, is_list, read_concepts
from palimpsest.data.forget import ForgetRequest, record, split
from palimpsest.data.read import Dataset, aligned
from palimpsest.hosts.detect import load
from palimpsest.ops.neighbours import nearest
from palimpsest.probes import plan as planning
from palimpsest.probes.evaluators import judge, judges_for
from palimpsest.probes.forecast import lines as foresee
from palimpsest.probes.forecast import needed, time_host
from palimpsest.probes.resurfacing import Budget
from palimpsest.receipt.classifier import ClassifierReceipt, audit_classifier
from palimpsest.receipt.make import PATCH_FILE, Receipt
from palimpsest.receipt.make import audit as measure
from palimpsest.worlds import concepts as words

DEFAULT_ERASER = "uce"  # of the systems that take seconds, the one that spares most; see docs/systems.md
DEFAULT_UNLEARNER = "salun"
RECORD_FILE = "forget.json"
NEIGHBOURS = 8  # kept by default; more than an audit looks at, so that it also looks at what was not kept

__all__ = [
    "Erased",
    "Look",
    "Unlearned",
    "audit",
    "concepts",
    "doctor",
    "erase",
    "load",
    "request",
    "sample",
    "unlearn",
]


@dataclass(frozen=True, kw_only=True)
class Look:
    """How much an audit looks at.

    Args:
        prompts: for each target; neighbours and unrelated concepts get two fifths each.
        seeds: pictures a prompt.
        steps, guidance: of sampling; None is the model's own default.
        judges: folders of classifiers or CLIP models, or "nudenet"; a drawn world's oracle is always there.
        sees: a change of so many points, in any one neighbour or unrelated concept, is to be seen 9 times of 10; seeds
            are raised to what that needs.
        stop_early: look four times, and stop drawing as soon as every answer is clear.
    """

    prompts: int = 20
    seeds: int = 3
    steps: int | None = None
    guidance: float | None = None
    judges: tuple[str, ...] = ()
    sees: float | None = None
    stop_early: bool = False


@dataclass(frozen=True, kw_only=True)
class Erased:
    """What `erase` returns."""

    patch: Patch
    receipt: Receipt
    patch_path: Path | None


@dataclass(frozen=True, kw_only=True)
class Unlearned:
    """What `unlearn` returns.

    Args:
        patch: turns the model into one that forgot.
        record: the deletion record: what was asked, hashes of the request and of the samples, which model, how.
        receipt: what changed; None for regressors, or where nothing is written.
    """

    patch: Patch
    record: dict[str, Any]
    patch_path: Path | None
    record_path: Path | None
    receipt: ClassifierReceipt | None = None


def concepts(host: Any, names: str | Path | Sequence[str | Concept], kind: Kind = "object") -> tuple[Concept, ...]:
    """Names, with commas between, as a list or in a CSV file, as concepts; a drawn world's model knows their kind.

    Raises:
        BadRequest: a name that the model's world does not have, or a file that is no list (`data.concepts`).
    """
    if isinstance(names, Path) or is_list(names):
        return tuple(_listed(host, row, kind) for row in read_concepts(str(names)))
    listed = [n.strip() for n in names.split(",") if n.strip()] if isinstance(names, str) else list(names)
    world = words.world_of(getattr(host, "folder", None))
    return tuple(
        n if isinstance(n, Concept) else words.concept(world, n) if world is not None else Concept(name=n, kind=kind)
        for n in listed
    )


def _listed(host: Any, row: Listed, kind: Kind) -> Concept:
    """What a file says of a concept goes before what the world knows and what holds for all."""
    known = concepts(host, [row.name], kind)[0]
    return replace(known, kind=row.kind or known.kind, prompts=row.prompts or known.prompts)


def request(
    host: Any,
    target: str | Path | Sequence[str | Concept],
    *,
    keep: str | Path | Sequence[str | Concept] = (),
    toward: str | Sequence[str | Concept] = (),
    kind: Kind = "object",
) -> Request:
    """A request about a model; where nothing is kept by name, the model's nearest neighbours of the target are.

    Targets and kept concepts are names with commas between, lists, or CSV files with the columns name, kind, prompts
    and toward (all but the first optional); a file's own `toward` serves where none is given here.

    Neighbours are ranked by the cosine of the model's own text states. Models of drawn worlds choose among the
    world's words of the same kind; for other models there is no such list, and nothing is kept unless named.
    """
    if not toward and (isinstance(target, Path) or is_list(target)):
        toward = [row.toward for row in read_concepts(str(target)) if row.toward]
    asked = Request(
        target=concepts(host, target, kind),
        keep=concepts(host, keep, kind),
        toward=concepts(host, toward, kind),
    )
    world = words.world_of(getattr(host, "folder", None))
    if asked.keep or world is None or not isinstance(host, Denoiser):
        return asked
    taken = {c.name for c in (*asked.target, *asked.toward)}
    found: dict[str, Concept] = {}
    for goal in asked.target:
        siblings = [words.concept(world, w) for w in words.siblings(world, goal.name) if w not in taken]
        found |= {near.name: near for near, _ in nearest(host, goal, siblings, NEIGHBOURS)}
    return asked.keeping(found.values())


def erase(
    host: Any,
    target: str | Sequence[str | Concept] | Request,
    *,
    method: ModelEdit | str = DEFAULT_ERASER,
    out: str | Path | None = None,
    seed: int = 0,
    look: Look | None = None,
    oracle: Any = None,
    resume: bool = False,
    command: str = "",
    progress: Progress | None = None,
) -> Erased:
    """Erases concepts from a text-to-image model and measures what changed.

    Args:
        host: from `load`; it is unchanged afterwards.
        target: names, concepts, or a whole request.
        method: a system, or its name.
        out: folder for patch.safetensors, receipt.json and receipt.html; None writes nothing.
        oracle: a model that never saw the target, to compare with.
        resume: go on from what an interrupted run left in `out`.

    Example:
        >>> host = load("tiny/sd")                                   # doctest: +SKIP
        >>> done = erase(host, "star", method="esd", out="no-star")  # doctest: +SKIP
        >>> print(done.receipt.summary())                            # doctest: +SKIP
    """
    asked = target if isinstance(target, Request) else request(host, target)
    system = catalog.load(catalog.find(method, "erase").id)() if isinstance(method, str) else method
    drawn = plan(host, asked, look)  # before the work, so that an impossible plan costs nothing
    work = Trace(folder=Path(out) if out is not None else None, resume=resume, progress=progress)
    patch = system(host, asked, seed=seed, trace=work)
    receipt = measure(
        host,
        patch,
        asked,
        plan=drawn,
        judges=_judges(host, asked, look),
        oracle=oracle,
        out=out,
        command=command,
        resume=resume,
        stop_early=look is not None and look.stop_early,
        trace=Trace(progress=progress),
    )
    return Erased(patch=patch, receipt=receipt, patch_path=None if out is None else Path(out) / PATCH_FILE)


def unlearn(
    host: Any,
    data: Dataset,
    asked: ForgetRequest,
    *,
    method: ModelEdit | str = DEFAULT_UNLEARNER,
    test: Dataset | None = None,
    retrained: Sequence[Any] = (),
    out: str | Path | None = None,
    seed: int = 0,
    resume: bool = False,
    command: str = "",
    progress: Progress | None = None,
) -> Unlearned:
    """Makes a classifier forget samples of its training data.

    Args:
        host: from `load`; it is unchanged afterwards.
        data: what it learned from, from `palimpsest.data.read.read`.
        asked: what to forget, from `palimpsest.data.forget.ForgetRequest.parse`.
        method: a system, or its name.
        test, retrained: held-out samples and models that never saw what is forgotten, for the receipt.
        out: folder for all that is written; None writes nothing. resume: go on from what an interrupted run left.

    Raises:
        BadRequest: the data's classes are not the model's, or the request names nothing or everything.

    Example:
        >>> data = read("cifar10_jpeg")                                             # doctest: +SKIP
        >>> done = unlearn(load("tiny/cifar"), data, ForgetRequest.parse("class:cat"))  # doctest: +SKIP
        >>> done.patch.save("no-cat.safetensors")                                   # doctest: +SKIP
    """
    known = aligned(data, host.labels, host.name) if isinstance(host, Classifier) else data
    parts, mark = split(known, asked), record(known, asked)
    system = catalog.load(catalog.find(method, "unlearn").id)() if isinstance(method, str) else method
    work = Trace(folder=Path(out) if out is not None else None, resume=resume, progress=progress)
    patch = system(host, asked.concepts(), data=parts, seed=seed, trace=work)
    kept = {"format": 1, **mark, "skipped": list(known.skipped), "command": command, "patch": patch.sha256()}
    kept |= {"base": patch.base, **{key: patch.provenance[key] for key in ("method", "parameters", "seed", "versions")}}
    if out is None:
        return Unlearned(patch=patch, record=kept, patch_path=None, record_path=None)
    patch_path = patch.save(Path(out) / PATCH_FILE)
    record_path = write_text(Path(out) / RECORD_FILE, json.dumps(kept, indent=1, ensure_ascii=False) + "\n")
    told = None
    if isinstance(host, Classifier) and not known.samples.labels.is_floating_point():
        held = test and aligned(test, host.labels, host.name)
        told = audit_classifier(host, patch, known, asked, test=held, retrained=retrained, out=out, command=command)
    return Unlearned(patch=patch, record=kept, patch_path=patch_path, record_path=record_path, receipt=told)


def audit(
    before: Any,
    after: Any,
    target: str | Sequence[str | Concept] | Request,
    *,
    out: str | Path | None = None,
    look: Look | None = None,
    oracle: Any = None,
    resume: bool = False,
    resurfacing: Budget | None = None,
    command: str = "",
    progress: Progress | None = None,
) -> Receipt:
    """Measures what changed between two models, whoever edited them.

    Args:
        before: the untouched model.
        after: a Patch, the path of one, or the edited model or its path.
        target: what the edit was about.
        resume: take the pictures that an interrupted audit left in `out`. resurfacing: with what to bring it back.
    """
    asked = target if isinstance(target, Request) else request(before, target)
    return measure(
        before,
        edited(before, after) if isinstance(after, (str, Path)) else after,
        asked,
        plan=plan(before, asked, look),
        judges=_judges(before, asked, look),
        oracle=oracle,
        out=out,
        command=command,
        resume=resume,
        stop_early=look is not None and look.stop_early,
        resurfacing=resurfacing,
        trace=Trace(progress=progress),
    )


def sample(
    host: Any,
    prompt: str,
    *,
    out: str | Path,
    patch: Patch | str | Path | None = None,
    scale: float = 1.0,
    force: bool = False,
    negative: str = "",
    seed: int = 0,
    n: int = 1,
    steps: int | None = None,
    guidance: float | None = None,
) -> Path:
    """Draws n pictures of a prompt side by side into a PNG, with or without a patch."""
    from PIL import Image

    if n < 1:
        raise BadRequest(f"n is {n}; draw at least 1 picture.")
    held = Patch.load(patch) if isinstance(patch, (str, Path)) else patch
    with held.scaled(scale).applied(host, force=force) if held is not None else nullcontext():
        images = host.sample(
            [prompt] * n, list(range(seed, seed + n)), negative=negative, steps=steps, guidance=guidance
        )
    strip = torch.cat(list(images), dim=2).permute(1, 2, 0)
    picture = Image.fromarray((strip * 255).round().to(torch.uint8).numpy())
    return write_beside(Path(out), lambda tmp: picture.save(tmp, format="PNG"))


def doctor() -> dict[str, str]:
    """Versions, devices and what is installed; plain text by name."""
    found = {**versions(), "threads": str(torch.get_num_threads()), "cuda": "no", "mps": "no"}
    if torch.cuda.is_available():
        found["cuda"] = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    if torch.backends.mps.is_available():
        found["mps"] = "yes"
    for extra in ("torchmetrics", "sklearn", "nudenet", "ray", "gradio", "playwright"):
        found[extra] = "installed" if importlib.util.find_spec(extra) else "not installed (optional)"
    found["systems"] = str(len(catalog.entries()))
    from palimpsest import tiny

    found["tiny models"] = ", ".join(f"tiny/{name}" for name in tiny.names()) or "none"
    return found


def edited(before: Any, path: str | Path) -> Any:
    """A patch file or another model."""
    if str(path).endswith(".safetensors") and _is_patch(Path(path)):
        return Patch.load(path)
    return load(path)


def _is_patch(path: Path) -> bool:
    """Whether a safetensors file's header says that it is a patch; false for checkpoints and missing files."""
    try:
        with open(path, "rb") as f:
            size = int.from_bytes(f.read(8), "little")
            return re.search(rb'"palimpsest"\s*:', f.read(min(size, 1 << 26))) is not None
    except OSError:
        return path.name == PATCH_FILE


def plan(host: Any, asked: Request, look: Look | None = None) -> planning.Plan:
    """The pictures that an audit of a request draws; `forecast` says what they can show and how long they take."""
    look = look or Look()

    def with_seeds(seeds: int) -> planning.Plan:
        return planning.plan(
            host,
            asked,
            world=words.world_of(getattr(host, "folder", None)),
            prompts_per_concept=look.prompts,
            seeds=seeds,
            steps=look.steps,
            guidance=look.guidance,
        )

    found = with_seeds(look.seeds)
    if look.sees is None:
        return found
    if not 0 < look.sees <= 100:
        raise BadRequest(f"sees is {look.sees:g}; it must be points above 0, at most 100.")
    others = [g for g in found.groups if g.role in ("neighbour", "unrelated")] or list(found.groups)
    tests = max(sum(g.role == o.role for g in others) for o in others)
    pictures = needed(look.sees / 100, tests)
    return with_seeds(max(look.seeds, math.ceil(pictures / min(len(g.prompts) for g in others))))


def forecast(
    host: Any, target: str | Sequence[str | Concept] | Request, *, look: Look | None = None, oracle: bool = False
) -> str:
    """What an audit would draw, what it could show and how long it would take, in plain words; draws a few to time."""
    chosen = plan(host, target if isinstance(target, Request) else request(host, target), look)
    return "\n".join(foresee(chosen, time_host(host, chosen), oracle=oracle))


def _judges(host: Any, asked: Request, look: Look | None) -> list[Any]:
    told = (*asked.target, *asked.keep)
    return [*judges_for(host), *(judge(source, told) for source in (look or Look()).judges)]
