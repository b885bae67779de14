"""Judges: who reads a picture back. One protocol for worlds' oracles, classifiers, CLIP, NudeNet and a model itself."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional

from palimpsest.core.concept import Concept
from palimpsest.core.errors import BadRequest, Unsupported
from palimpsest.core.fingerprint import fingerprint
from palimpsest.core.host import Classifier, Denoiser, Matcher
from palimpsest.core.reading import Evaluator
from palimpsest.ops.names import meant
from palimpsest.ops.prompts import asking
from palimpsest.worlds.concepts import World

if TYPE_CHECKING:
    from palimpsest.probes.plan import Plan

OWN = "own"  # source of the audited model as its own judge
NOBODY = "none"  # named among judges: none that the model brings
FORWARDS = 64  # of it for each picture, at most, where nobody says


@runtime_checkable
class Judge(Protocol):
    """Reads pictures.

    `evaluator.classes` names the classes. `source` is what `judge` takes to load the same judge again, "" where only
    its owner can.
    """

    evaluator: Evaluator
    source: str

    def read(self, images: Tensor) -> Tensor:
        """(n, classes) probabilities of images (n, 3, H, W) in [0, 1]."""
        ...

    def features(self, images: Tensor) -> Tensor:
        """(n, d) of images (n, 3, H, W) in [0, 1]; (n, 0) where the judge has none."""
        ...


def decide(evaluator: Evaluator, probabilities: Tensor) -> Tensor:
    """(n, classes) bool: which classes count as present. Without a threshold the largest class alone does."""
    if not evaluator.classes:
        return probabilities.bool()
    if evaluator.threshold is not None:
        return probabilities >= evaluator.threshold
    return functional.one_hot(probabilities.argmax(1), probabilities.shape[1]).bool()


def classes_of(evaluator: Evaluator, concept: Concept) -> list[int]:
    """Which classes mean a concept: those of its labels (names or indices), else that of its name; [] if none.

    Names are matched as `ops.names.meant` says; of a drawn world's "subject:star" the word alone counts too.

    Raises:
        BadRequest: its name may mean several classes ("crane" of ImageNet, a bird and a machine).
    """
    classes = evaluator.classes
    indices = [label for label in concept.labels if isinstance(label, int) and label < len(classes)]
    named = [i for label in concept.labels if isinstance(label, str) for i in meant(label, classes)]
    if indices or named:
        return list(dict.fromkeys(indices + named))
    places = meant(concept.name, classes)
    if len(places) > 1:
        both = " and ".join(f"{classes[i]!r} (number {i})" for i in places)
        raise BadRequest(
            f"{concept.name!r} may mean {both} of {evaluator.name}. Say which by the number or the whole label: "
            f"Concept(name={concept.name!r}, labels=({places[0]},)), or the column `labels` of a list of concepts."
        )
    return list(places or meant(concept.name, [word_of(c) for c in classes]))


def kind_of(label: str) -> str:
    """What a class "subject:star" is one of; "" where its label says none."""
    kind, colon, _ = label.partition(":")
    return kind if colon else ""


def word_of(label: str) -> str:
    """What a class "subject:star" shows."""
    return label.partition(":")[2] or label


class OracleJudge:
    """The oracle of a drawn world. Classes are "key:word"; a word of a two-subject scene counts on either side."""

    def __init__(self, oracle: Any, world: World, *, version: str = "1") -> None:
        self.oracle = oracle
        self.source = f"tiny/{world.name}"
        self.keys = [k for k in oracle.vocabulary if not k.endswith("2")]
        self.evaluator = Evaluator(
            name=f"{world.name} oracle",
            version=version,
            sha256=fingerprint(oracle),
            threshold=0.5,
            classes=tuple(f"{k}:{w}" for k in self.keys for w in oracle.vocabulary[k]),
            licence="Apache-2.0",
        )

    def read(self, images: Tensor) -> Tensor:
        heads = self.oracle.read(images)
        both = [torch.maximum(heads[k], heads[f"{k}2"]) if f"{k}2" in heads else heads[k] for k in self.keys]
        return torch.cat(both, 1).float()

    def features(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            return self.oracle.features(images).float()


class ClassifierJudge:
    """Any image classifier that has a host: its labels are the classes, the largest one wins."""

    def __init__(self, host: Classifier, *, source: str = "", threshold: float | None = None) -> None:
        self.host, self.source = host, source
        self.evaluator = Evaluator(
            name=host.name,
            version=host.fingerprint()[:12],
            sha256=host.fingerprint(),
            threshold=threshold,
            classes=tuple(host.labels),
            licence="see the model's own card",
        )

    @torch.no_grad()
    def read(self, images: Tensor) -> Tensor:
        return self.host.logits(images).float().softmax(1)

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        return self.host.embed(images).float()


class MatcherJudge:
    """A CLIP model as a zero-shot classifier over concept names: the nearest text wins.

    p = softmax(scale * cos(image, text of each concept)); a concept's text is the mean over its prompt templates
    (Radford et al. 2021, section 3.1.4).

    Args:
        concepts: at least two; a picture of none of them still counts as the nearest one.
    """

    def __init__(self, host: Matcher, concepts: Sequence[Concept], *, source: str = "") -> None:
        if len(concepts) < 2:
            raise BadRequest("A CLIP judge needs at least two concepts to tell apart; add some that should stay.")
        self.host, self.source = host, source
        with torch.no_grad():
            means = torch.stack([host.texts(asking(c)).mean(0) for c in concepts])
            self.texts = functional.normalize(means, dim=1)  # (classes, d)
        self.evaluator = Evaluator(
            name=f"CLIP {Path(host.name).name}",
            version=host.fingerprint()[:12],
            sha256=host.fingerprint(),
            classes=tuple(c.name for c in concepts),
            licence="see the model's own card",
        )

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        return self.host.embed(images)

    @torch.no_grad()
    def read(self, images: Tensor) -> Tensor:
        return (self.host.scale * self.features(images) @ self.texts.T).softmax(1)


def judges_for(host: Any, plan: Plan | None = None) -> list[Judge]:
    """The judges that a model brings along: the oracle of the drawn world it was trained on, else the model itself.

    Args:
        host: the untouched model.
        plan: of the audit; without one nobody says what may be seen, and a model of no drawn world brings nobody.
    """
    known = getattr(host, "knows", None)
    if known is not None and known.judge:
        return [judge(known.judge)]
    return [] if plan is None or not isinstance(host, Denoiser) else [itself(host, plan)]


def itself(host: Denoiser, plan: Plan) -> Judge:
    """The untouched model as the judge of the pictures of a plan; reading one costs no more than drawing it, or five
    forwards of each candidate."""
    steps = plan.sampling.over(host.defaults).steps or 1
    return judge(f"{OWN}:{rows_of(host, plan) * steps}", plan.concepts, host)


def rows_of(host: Denoiser, plan: Plan) -> int:
    """Forwards that one step of drawing a picture of a plan takes: 2 with an unconditional branch, else 1."""
    return 2 if host.guided(plan.sampling.over(host.defaults).guidance or 1.0) else 1


def judge(source: str, concepts: Sequence[Concept] = (), host: Any = None) -> Judge:
    """Loads a judge from local files.

    Args:
        source: "tiny/glyphs" or "tiny/faces" for the shipped oracles, "nudenet", a folder of an image classifier or
            CLIP model, "own" for the audited model itself (after a colon the forwards for each picture, at most),
            "features:FOLDER" for a network that judges nothing and in whose features distances are measured, or what
            an installed package adds: the name of its entry point in the group "palimpsest.judges", a function
            of (source, concepts); after a colon it may say more.
        concepts: what a CLIP model or the audited model has to tell apart.
        host: the audited model, untouched.

    Raises:
        BadRequest: nothing of the kind there.
        Unsupported: an extra package is missing, or the folder holds another kind of model.
    """
    from palimpsest.hosts.load import load
    from palimpsest.probes.extractors import FEATURES, extractor
    from palimpsest.worlds.concepts import WORLDS

    name, colon, more = source.partition(":")
    if name == OWN:
        return _own(host, concepts, more if colon else str(FORWARDS))
    if name == FEATURES:
        return extractor(more)
    for point in entry_points(group="palimpsest.judges"):
        if point.name == name:
            return point.load()(source, concepts)
    if source.startswith("tiny/"):
        if source[5:] not in WORLDS:
            raise BadRequest(f"There is no oracle {source!r}; there are {', '.join('tiny/' + w for w in WORLDS)}.")
        return _oracle(WORLDS[source[5:]])
    if source == "nudenet":
        from palimpsest.probes.evaluators_nudenet import NudeNetJudge

        return NudeNetJudge()
    if not (Path(source).expanduser() / "config.json").is_file():
        raise BadRequest(
            f"There is no judge at {source!r}: give own, nudenet, tiny/glyphs, tiny/faces, or the folder of an image "
            "classifier or CLIP model (with config.json and safetensors weights)."
        )
    host = load(source)
    if isinstance(host, Matcher):
        return MatcherJudge(host, concepts, source=source)
    if not isinstance(host, Classifier):
        raise Unsupported(f"{source} is not an image classifier; judges are classifiers or CLIP models.")
    return ClassifierJudge(host, source=source)


def _own(host: Any, concepts: Sequence[Concept], forwards: str) -> Judge:
    from palimpsest.probes.own_judge import OwnJudge, Race

    if not isinstance(host, Denoiser):
        raise BadRequest(
            "The judge `own` is the audited model itself, and it must be a diffusion or flow model that draws pictures "
            "of prompts."
        )
    if not forwards.isdecimal() or not 0 < int(forwards) < 10**6:
        raise BadRequest(f"own:{forwards} does not say how many forwards a picture may take: write own:64, say.")
    return OwnJudge(host, concepts, Race(forwards=int(forwards)))


def _oracle(world: World) -> OracleJudge:
    from palimpsest import tiny

    return OracleJudge(tiny.oracle(world.name), world)
