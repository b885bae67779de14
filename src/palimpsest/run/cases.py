"""What a verb is asked about: the request with all that its work, its forecast and its receipt need to know."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch

from palimpsest.core.concept import Concept, Request
from palimpsest.core.errors import BadRequest
from palimpsest.core.host import Classifier
from palimpsest.core.method import Method
from palimpsest.core.patch import Patch
from palimpsest.core.pictures import Material
from palimpsest.core.trace import Trace
from palimpsest.data.dataset import Dataset, aligned
from palimpsest.data.forget import ForgetRequest, record, repeated, resolved, split, told
from palimpsest.data.photos import Photos
from palimpsest.ops.statistics import Interval, wilson
from palimpsest.probes.attempt import Budget
from palimpsest.probes.crew import Crew, crew_for
from palimpsest.probes.evaluators import Judge, rows_of
from palimpsest.probes.forecast import judging, time_host
from palimpsest.probes.forecast import lines as foresee
from palimpsest.probes.memory import Taken, refuse_too_large, taken
from palimpsest.probes.own_judge import OwnJudge
from palimpsest.probes.plan import Plan
from palimpsest.receipt.make import Receipt
from palimpsest.receipt.make import audit as measure
from palimpsest.receipt.subject import Subject, find
from palimpsest.receipt.subjects import classifier, generator
from palimpsest.run.looking import Look, judges, knowing, plan, reference
from palimpsest.run.requests import request
from palimpsest.run.work import right, stated, work

Asked = str | Path | Sequence[str | Concept] | Request | ForgetRequest
FEWEST = 20  # samples of which anything can be said


@dataclass(frozen=True, kw_only=True)
class Case(ABC):
    """One request about one model.

    Args:
        oracles: models that never saw what is asked about, for the receipt to compare with.
    """

    writes: ClassVar[bool] = False  # whether `carry_out` writes the patch into the trace's folder itself
    host: Any
    oracles: Sequence[Any] = ()

    @property
    @abstractmethod
    def request(self) -> Request:
        """What a method is asked to do."""

    @property
    @abstractmethod
    def material(self) -> Material:
        """What a method learns from."""

    @abstractmethod
    def check(self, method: Method | None = None) -> None:
        """Refuses, before any work of a method or of an audit alone, what cannot come to a meaningful end."""

    @abstractmethod
    def forecast(self, method: Method | None) -> str:
        """What would be done, looked at and shown, and how long it takes, in words."""

    def carry_out(self, method: Any, *, seed: int, trace: Trace) -> Patch:
        """Runs a system on this case."""
        return method(self.host, self.request, data=self.material, seed=seed, trace=trace)

    def record(self) -> dict[str, Any] | None:
        """What a deletion record keeps of the request; None where nothing is deleted."""
        return None

    def begin(self) -> None:  # noqa: B027 (nothing to do is a default)
        """Starts what an audit needs and takes long to start, without waiting for it."""

    def close(self) -> None:  # noqa: B027
        """Ends what an audit or `begin` started."""

    @abstractmethod
    def audit(self, after: Any, *, out: Path | None, resume: bool, command: str, trace: Trace) -> Any:
        """The receipt of a change; None where there is none for such a model."""


@dataclass(frozen=True, kw_only=True)
class GeneratorCase(Case):
    """Concepts in a generator of pictures, which is compared with one oracle at most.

    Args:
        look: how much is drawn.
        data: pictures by name, for systems that learn from some. resurfacing: also try to bring the target back.
        workers, ray: the processes that draw, as `probes.crew.crew_for` takes them.
        edited: the edited model, where it is a whole one and known already: each process holds it as well.
    """

    asked: Request
    look: Look = field(default_factory=Look)
    data: Mapping[str, Dataset] = field(default_factory=dict)
    resurfacing: Budget | None = None
    workers: int | None = 1
    ray: str = ""
    edited: Any = None
    _needs: dict[str, Taken | None] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if len(self.oracles) > 1:
            raise BadRequest(f"{len(self.oracles)} oracles were given; a generator is compared with one.")

    @property
    def request(self) -> Request:
        return self.asked

    @cached_property
    def plan(self) -> Plan:
        return plan(self.host, self.request, self.look)

    @cached_property
    def judges(self) -> list[Judge]:
        return judges(self.host, self.plan, self.look)

    @cached_property
    def reference(self) -> Photos | None:
        return reference(self.host, self.plan, self.look)

    @cached_property
    def crew(self) -> Crew:
        """The processes that draw; none is started before `begin`."""
        models = [self.host, *self.oracles, *([] if self.edited is None else [self.edited])]
        rows = self.plan.pictures(3 if self.oracles else 2) * (self.plan.steps or 50)
        size = sum(p.numel() for part in self.host.parts("denoiser").values() for p in part.parameters())
        return crew_for(models, workers=self.workers, ray=self.ray, work=float(rows * size))

    @property
    def material(self) -> Material:
        return Material({name: data.samples for name, data in self.data.items()})

    def check(self, method: Method | None = None) -> None:
        # An impossible plan, a judge that is not there and an empty folder cost nothing.
        _ = self.judges, self.reference, self.crew
        refuse_too_large(self.host, self._need(method))

    def _need(self, method: Method | None) -> Taken | None:
        """What it all takes in memory; counted once."""
        if repr(method) not in self._needs:
            found = taken(self.host, self.plan, method=method, oracle=bool(self.oracles), batch=self.look.batch)
            self._needs[repr(method)] = found
        return self._needs[repr(method)]

    def begin(self) -> None:
        self.crew.start()

    def close(self) -> None:
        self.crew.close()

    def forecast(self, method: Method | None) -> str:
        """See `Case.forecast`; draws a few pictures to take the time."""
        speed = time_host(self.host, self.plan)
        lines = foresee(
            self.plan, speed, oracle=bool(self.oracles), resurfacing=self.resurfacing, at_once=max(1, self.crew.count)
        )
        lines += [
            judging(self.plan, speed, j.most, rows_of(self.host, self.plan), oracle=bool(self.oracles))
            for j in self.judges
            if isinstance(j, OwnJudge)
        ]
        lines += [need.told()] if (need := self._need(method)) else []
        lines += [*knowing(self.judges, self.plan), *([self.crew.words] if self.crew.words else [])]
        pace = f"one forward of the denoiser takes {500 * speed.step:.0f} ms here"
        return "\n".join([*lines, *work(method, Material(), pace)])

    def looked_at(self) -> dict[str, Any]:
        """What every subject of drawn pictures takes of this request, by name."""
        return {
            "plan": self.plan,
            "judges": self.judges,
            "oracle": self.oracles[0] if self.oracles else None,
            "reference": self.reference,
            "batch": self.look.batch,
            "stop_early": self.look.stop_early,
            "resurfacing": self.resurfacing,
            "crew": self.crew,
        }

    def subject(self) -> generator.Generator:
        """What the receipt is about."""
        return generator.Generator(**self.looked_at())

    def audit(self, after: Any, *, out: Path | None, resume: bool, command: str, trace: Trace) -> Receipt:
        subject = self.subject()
        return measure(
            self.host, after, self.asked, subject=subject, out=out, resume=resume, command=command, trace=trace
        )


@dataclass(frozen=True, kw_only=True)
class ClassifierCase(Case):
    """Samples that a classifier or regressor learned from.

    Args:
        data: what it learned from. asked: which of it is to be forgotten. test: data that it never saw.
        accept_chance: work also where it reads its data at chance.
    """

    data: Dataset
    asked: ForgetRequest
    test: Dataset | None = None
    accept_chance: bool = False

    @property
    def classifies(self) -> bool:
        return isinstance(self.host, Classifier) and not self.known.samples.labels.is_floating_point()

    @cached_property
    def known(self) -> Dataset:
        """The data, with the model's labels as classes."""
        return self._aligned(self.data)

    def _aligned(self, data: Dataset) -> Dataset:
        return aligned(data, self.host.labels, self.host.name) if isinstance(self.host, Classifier) else data

    @cached_property
    def clear(self) -> ForgetRequest:
        """What is to be forgotten, as the data call it."""
        return resolved(self.known, self.asked)

    @property
    def request(self) -> Request:
        return self.clear.concepts()

    @cached_property
    def material(self) -> Material:
        return split(self.known, self.clear)

    def check(self, method: Method | None = None) -> None:
        """Raises BadRequest where the model does not know what it is said to have learned from."""
        if not self.classifies or self.accept_chance:
            return
        chance, claimed = 1 / len(self.host.labels), stated(self.host)
        for part, (samples, n, rate) in self._read.items():
            # A list of samples may be of wrong labels, and of a handful nothing can be said.
            if n < FEWEST or (part == "forgotten" and self.asked.kind == "samples"):
                continue
            far = part == "retained" and rate.high < (chance + claimed) / 2
            if rate.low > chance and not far:
                continue
            height, width = samples.images.shape[2:]
            found = (
                f"{100 * rate.value:.0f} % of {n} {part} samples right ({100 * rate.low:.0f} to {100 * rate.high:.0f})"
            )
            own = f", and its folder says {100 * claimed:.0f} %" if far else ""
            raise BadRequest(
                f"{self.host.name} gets {found}; chance is {100 * chance:.0f} %{own}: what it does not know it cannot "
                f"forget. They were read at {width} x {height} pixels, their labels matched by name. Likely it learned "
                "from pictures of another size (--size), scale or colour, its labels mean other classes, it is another "
                "model, or it has forgotten them already. To go on all the same: --accept-chance."
            )

    @cached_property
    def _read(self) -> dict[str, tuple[Any, int, Interval]]:
        """The samples of either part, how many of them were read, and how many of those right."""
        parts = {"retained": self.material["retain"], "forgotten": self.material["forget"]}
        counts = {name: right(self.host, samples) for name, samples in parts.items()}
        return {name: (samples, counts[name][1], wilson(*counts[name])) for name, samples in parts.items()}

    def forecast(self, method: Method | None) -> str:
        lines = [*self.known.told(), *told(self.known, self.clear)]
        if self.classifies:
            rates = [f"{100 * rate.value:.0f} % of {n} {part}" for part, (_, n, rate) in self._read.items()]
            lines.append(f"Now {self.host.name} gets {' and '.join(rates)} samples right.")
        return "\n".join(
            [
                *lines,
                *work(method, self.material, f"one forward of 100 samples takes {1000 * self._seconds:.0f} ms here"),
            ]
        )

    @cached_property
    def _seconds(self) -> float:
        """Of a forward of 100 samples."""
        samples = self.material["forget"]
        rows = torch.arange(100) % len(samples)
        with torch.no_grad():
            start = time.perf_counter()
            self.host.embed(samples.pixels(rows))
        return time.perf_counter() - start

    def record(self) -> dict[str, Any]:
        known, copies = self.known, repeated(self.material)
        read = {"skipped": list(known.skipped), "left_out": list(known.left_out), "matched": dict(known.matched)}
        asked = list(self.asked.items) if self.asked.kind != "samples" else len(self.asked.items)
        return {**record(known, self.clear), "asked": asked, "copies_retained": len(copies), **read}

    def audit(self, after: Any, *, out: Path | None, resume: bool, command: str, trace: Trace) -> Receipt | None:
        if not self.classifies:
            return None
        test = None if self.test is None else self._aligned(self.test)
        subject = classifier.Classifier(data=self.known, asked=self.clear, test=test, retrained=self.oracles)
        asked = self.request
        return measure(self.host, after, asked, subject=subject, out=out, command=command, trace=trace)


@dataclass(frozen=True, kw_only=True)
class PlainCase(Case):
    """Concepts in a model of a kind that another package brings, with the subject of its receipts."""

    asked: Request
    subject: Subject
    data: Mapping[str, Dataset] = field(default_factory=dict)

    @property
    def request(self) -> Request:
        return self.asked

    @property
    def material(self) -> Material:
        return Material({name: data.samples for name, data in self.data.items()})

    def check(self, method: Method | None = None) -> None:
        """Nothing is known of such a model."""

    def forecast(self, method: Method | None) -> str:
        return "\n".join(work(method, self.material, f"on {self.host.name}"))

    def audit(self, after: Any, *, out: Path | None, resume: bool, command: str, trace: Trace) -> Receipt:
        return measure(
            self.host, after, self.asked, subject=self.subject, out=out, resume=resume, command=command, trace=trace
        )


def case(
    host: Any,
    asked: Asked,
    *,
    data: Dataset | Mapping[str, Dataset] | None = None,
    test: Dataset | None = None,
    look: Look | None = None,
    oracles: Sequence[Any] = (),
    resurfacing: Budget | None = None,
    accept_chance: bool = False,
    subject: str = "generator",
    workers: int | None = 1,
    ray: str = "",
    edited: Any = None,
) -> Case:
    """A request about a model: of concepts (names, a Request), or of samples (a ForgetRequest).

    Args:
        data: for concepts, data sets by name for systems that read some; for samples, what the model learned from.
        test, accept_chance: for samples, see `ClassifierCase`. look, resurfacing: for concepts, see `GeneratorCase`.
        oracles: models that never saw what is asked about. subject: of the receipt, where concepts are asked about.
        workers, ray, edited: for concepts, see `GeneratorCase`.

    Raises:
        BadRequest: no data for samples, or something that belongs to the other kind of request.
    """
    if isinstance(asked, ForgetRequest):
        if not isinstance(data, Dataset):
            raise BadRequest("A request to forget samples needs the data that the model learned from: give data.")
        if look is not None or resurfacing is not None:
            raise BadRequest(
                f"look and resurfacing are about pictures that a generator draws; {host.name} is asked about samples."
            )
        return ClassifierCase(
            host=host, data=data, asked=asked, test=test, oracles=oracles, accept_chance=accept_chance
        )
    if isinstance(data, Dataset) or test is not None or accept_chance:
        raise BadRequest("data, test and accept_chance belong to a request about samples; give a ForgetRequest.")
    wanted = asked if isinstance(asked, Request) else request(host, asked)
    if subject != "generator":
        return PlainCase(host=host, asked=wanted, subject=find(subject)(), data=data or {}, oracles=oracles)
    return GeneratorCase(
        host=host,
        asked=wanted,
        look=look or Look(),
        oracles=oracles,
        data=data or {},
        resurfacing=resurfacing,
        workers=workers,
        ray=ray,
        edited=edited,
    )
