"""The base of every system: it checks, seeds, runs, verifies that nothing was left behind, and stamps provenance."""

from __future__ import annotations

import platform
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any, ClassVar, Literal, TypedDict, TypeVar, final, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from palimpsest.core import catalog
from palimpsest.core.card import Card
from palimpsest.core.concept import Request
from palimpsest.core.declared import fitted
from palimpsest.core.errors import BadRequest, Touched, Unsupported
from palimpsest.core.fingerprint import hook_count, quick_state
from palimpsest.core.host import CAPABILITIES, Denoiser, Guide, capabilities
from palimpsest.core.patch import Hook, Patch
from palimpsest.core.trace import Trace

M = TypeVar("M")


@dataclass(frozen=True, kw_only=True)
class Method:
    """A published system. Its dataclass fields are its parameters; its card says where it comes from."""

    card: ClassVar[Card]

    def __post_init__(self) -> None:
        """Raises BadRequest where a field holds none of the values that its type lists."""
        for name, values in _choices(type(self)).items():
            if getattr(self, name) not in values:
                raise BadRequest(f"{name} is {getattr(self, name)!r}; use one of {', '.join(map(str, values))}.")

    @property
    def id(self) -> str:
        """What the catalog calls it: the path of its file under the package, "erase/esd"."""
        return catalog.id_of(type(self).__module__)

    def parameters(self) -> dict[str, Any]:
        """Plain JSON of the fields."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def check(self, host: object) -> None:
        """Raises Unsupported where the host lacks what the card needs."""
        if not isinstance(host, CAPABILITIES[self.card.needs]):
            able = " and ".join(capabilities(host)) or type(host).__name__
            raise Unsupported(
                f"{self.card.name} needs a {self.card.needs}; {getattr(host, 'name', 'this')} is a {able}."
            )


@dataclass(frozen=True, kw_only=True)
class ModelEdit(Method, ABC):
    """A system that changes a model. It never writes into the host: it returns a Patch."""

    @abstractmethod
    def run(self, host: Any, request: Request, *, data: Any, rng: torch.Generator, trace: Trace) -> Patch:
        """The algorithm. `rng` is seeded; every random draw comes from it. `Patch.base` may be left empty."""

    @final
    def __call__(
        self, host: Any, request: Request, *, data: Any = None, seed: int = 0, trace: Trace | None = None
    ) -> Patch:
        """Runs the system on a host.

        Args:
            host: the model; it is unchanged afterwards, also after an error.
            request: what to change.
            data: what the system learns from, where it needs data.
            seed: of every random draw.
            trace: takes the cost and the log; give one to resume, to see progress or to read the log.

        Raises:
            Unsupported: the host cannot do what the system needs.
            BadRequest: the request or a parameter makes no sense for this system.
            Touched: the system changed the host or left a hook (a bug in the system).
        """
        self.check(host)
        trace = trace or Trace()
        rng = torch.Generator().manual_seed(seed)
        base, tensors, hooks = host.fingerprint(), quick_state(host.root), hook_count(host.root)
        try:
            with trace.watching(host):
                patch = self.run(host, request, data=data, rng=rng, trace=trace)
        finally:
            self._verify(host, tensors, hooks)
        cost = {"seconds": trace.seconds, "forwards": dict(trace.forwards), "peak_bytes": trace.peak_bytes}
        return replace(patch, base=base, provenance=self._provenance(request, seed), cost=cost)

    def _verify(self, host: Any, tensors: dict[str, tuple[int, int, int]], hooks: int) -> None:
        if quick_state(host.root) != tensors:
            raise Touched(f"{self.id} changed the tensors of {host.name}; a system must return a patch instead.")
        if hook_count(host.root) != hooks:
            raise Touched(f"{self.id} left a hook on {host.name}.")

    def _provenance(self, request: Request, seed: int) -> dict[str, Any]:
        return {
            "method": self.id,
            "name": self.card.name,
            "parameters": self.parameters(),
            "request": request.plain(),
            "seed": seed,
            "versions": versions(),
        }


@dataclass(frozen=True, kw_only=True)
class SamplingEdit(ModelEdit):
    """A system that changes no weight: its patch is a hook that replaces classifier-free guidance while sampling."""

    @abstractmethod
    def guide(self, host: Denoiser, request: Request) -> Guide:
        """A fresh rule for one run of sampling; whatever it remembers from step to step lives in its closure."""

    @final
    def run(self, host: Any, request: Request, *, data: Any, rng: torch.Generator, trace: Trace) -> Patch:
        return Patch(base="", hooks=(_hook(self, request, {}),))

    @classmethod
    @contextmanager
    def attach(cls, host: Denoiser, hook: Hook) -> Iterator[None]:
        """Makes `host.sample` use the hook's rule until the context ends."""
        method, request = _read(cls, hook)
        with guiding(host, hook, lambda: method.guide(host, request)):
            yield


@dataclass(frozen=True, kw_only=True)
class LearnedSamplingEdit(ModelEdit, ABC):
    """A system whose rule of sampling needs tensors that it learns once: they travel in the patch's hook."""

    @abstractmethod
    def learn(
        self, host: Any, request: Request, *, data: Any, rng: torch.Generator, trace: Trace
    ) -> Mapping[str, Tensor]:
        """The tensors by name, found on the untouched model. `rng` is seeded; every random draw comes from it."""

    @abstractmethod
    def guide(self, host: Denoiser, request: Request, learned: Mapping[str, Tensor]) -> Guide:
        """A fresh rule for one run of sampling; `learned` is on the CPU."""

    @final
    def run(self, host: Any, request: Request, *, data: Any, rng: torch.Generator, trace: Trace) -> Patch:
        learned = self.learn(host, request, data=data, rng=rng, trace=trace)
        return Patch(base="", hooks=(_hook(self, request, learned),))

    @classmethod
    @contextmanager
    def attach(cls, host: Denoiser, hook: Hook) -> Iterator[None]:
        """Makes `host.sample` use the hook's rule until the context ends."""
        method, request = _read(cls, hook)
        with guiding(host, hook, lambda: method.guide(host, request, hook.tensors)):
            yield


def _hook(method: Method, request: Request, tensors: Mapping[str, Tensor]) -> Hook:
    params = {"parameters": method.parameters(), "request": request.plain()}
    return Hook(id=method.id, params=params, tensors={k: t.detach().cpu() for k, t in tensors.items()})


class _Params(TypedDict):
    """What `_hook` writes."""

    parameters: dict[str, Any]
    request: Request


def _read(cls: type[M], hook: Hook) -> tuple[M, Request]:
    params = hook.read(_Params)
    return fitted(params["parameters"], cls, f"The patch's hook {hook.id}"), params["request"]


@contextmanager
def guiding(host: Denoiser, hook: Hook, make: Callable[[], Guide]) -> Iterator[None]:
    """Sampling follows the hook's rule until the context ends; one rule at a time."""
    if host.guide is not None:
        raise BadRequest(f"{hook.id} cannot be added: another sampling-time system already guides {host.name}.")
    host.guide = make
    try:
        yield
    finally:
        host.guide = None


def at_least(name: str, value: float, least: float, why: str = "") -> None:
    """Raises BadRequest where a parameter is too small; for `__post_init__` of systems."""
    if not value >= least:
        raise BadRequest(f"{name} is {value}; it must be at least {least}{': ' + why if why else ''}.")


@cache
def _choices(system: type[Method]) -> dict[str, tuple[Any, ...]]:
    """The fields whose type is a Literal, with its values."""
    hints = get_type_hints(system)
    return {f.name: get_args(hints[f.name]) for f in fields(system) if get_origin(hints[f.name]) is Literal}


@cache
def versions() -> dict[str, str]:
    """Of everything that a number may depend on."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for package in ("palimpsest", "torch", "diffusers", "transformers"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
