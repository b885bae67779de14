"""The base of every system: it checks, seeds, runs, verifies that nothing was left behind, and stamps provenance."""

from __future__ import annotations

import platform
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, ClassVar, TypedDict, final

import torch
from torch import Tensor

from palimpsest import __version__
from palimpsest.core import catalog
from palimpsest.core.card import Card
from palimpsest.core.concept import Request
from palimpsest.core.declared import fitted
from palimpsest.core.errors import BadRequest, Damaged, Touched, Unsupported
from palimpsest.core.fields import checked, types_of
from palimpsest.core.fingerprint import hook_count, quick_state, still
from palimpsest.core.host import CAPABILITIES, Denoiser, Guide, Host, capabilities
from palimpsest.core.patch import Hook, Patch
from palimpsest.core.pictures import Material, Pictures
from palimpsest.core.trace import Trace

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True, kw_only=True)
class Method:
    """A published system. Its dataclass fields are its parameters; its card says where it comes from."""

    card: ClassVar[Card]
    quick: ClassVar[Mapping[str, Any]] = {}
    """Parameters with which it does as little as shows its laws, for tests."""

    def __post_init__(self) -> None:
        """Raises BadRequest where a field holds a value that its type does not: a Literal, bounds (`core.fields`)."""
        for name, hint in types_of(type(self)).items():
            checked(name, getattr(self, name), hint)

    @property
    def id(self) -> str:
        """The system's id in the catalog: "erase/esd"."""
        return catalog.id_of(type(self).__module__)

    def parameters(self) -> dict[str, Any]:
        """Plain JSON of the fields; a field that is a system is {"method": its id, "parameters": its own}, one that is
        a training its parameters."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {k: _plain(v) for k, v in values.items()}

    def named(self) -> dict[str, Any]:
        """The system with its parameters, as plain JSON."""
        return {"method": self.id, "parameters": self.parameters()}

    @classmethod
    def from_plain(cls, parameters: Mapping[str, Any]) -> Self:
        """The system with these parameters, from plain JSON; those that are left out keep their defaults.

        Raises:
            Damaged: a parameter that the system does not have, or a value of another type or out of its bounds.
        """
        return fitted(dict(parameters), cls, cls.__name__)

    @staticmethod
    def from_named(plain: Mapping[str, Any]) -> Method:
        """The system that `named` gave."""
        return catalog.load(plain["method"]).from_plain(plain["parameters"])

    def check(self, host: object, data: Material) -> None:
        """Refuses what the card says cannot be worked with.

        Raises:
            Unsupported: the host, or a model beside it, lacks the capability.
            BadRequest: data or a model beside the host are missing, or have names that the system does not know.
        """
        card = self.card
        _able(card.name, host, card.needs)
        for kind, given, names in (("data", data, card.reads), ("a model", data.models, tuple(card.beside))):
            known = [name.removesuffix("?") for name in names]
            if missing := [name for name in names if not name.endswith("?") and name not in given]:
                raise BadRequest(f"{card.name} needs {kind} called {missing[0]!r}; it was given {_listed(given)}.")
            if odd := [name for name in given if name not in known]:
                raise BadRequest(f"{card.name} takes no {kind} called {odd[0]!r}; it knows {_listed(known)}.")
        for role, model in data.models.items():
            _able(f"{card.name}, as its {role},", model, card.beside.get(role) or card.beside[f"{role}?"])

    @contextmanager
    def guarded(self, host: Any, data: Material, *, seed: int, trace: Trace) -> Iterator[torch.Generator]:
        """Inside, the system works: what it costs is counted, and afterwards every model is as it was, also after an
        error. Gives the generator that every random draw comes from.

        Raises:
            Touched: the system changed a model or left a hook (a bug in the system).
        """
        self.check(host, data)
        models = [host, *data.models.values()]
        before = [(quick_state(m.root), hook_count(m.root)) for m in models]
        try:
            with trace.watching(host):
                yield torch.Generator().manual_seed(seed)
        finally:
            for model, (tensors, hooks) in zip(models, before, strict=True):
                if quick_state(model.root) != tensors:
                    raise Touched(f"{self.id} changed the tensors of {model.name}; a system must return its result.")
                if hook_count(model.root) != hooks:
                    raise Touched(f"{self.id} left a hook on {model.name}.")

    def provenance(self, request: Request, seed: int) -> dict[str, Any]:
        """Who made a result, and from what."""
        return {
            "method": self.id,
            "name": self.card.name,
            "parameters": self.parameters(),
            "request": request.plain(),
            "seed": seed,
            "versions": versions(),
        }


@dataclass(frozen=True, kw_only=True)
class Work:
    """How much a run is.

    Args:
        steps: of the optimiser.
        samples: how many go through the model in them, most with gradients.
    """

    steps: int
    samples: int


@dataclass(frozen=True, kw_only=True)
class ModelEdit(Method, ABC):
    """A system that changes a model. It never writes into the host: it returns a Patch."""

    @abstractmethod
    def run(self, host: Any, request: Request, *, data: Material, rng: torch.Generator, trace: Trace) -> Patch:
        """The algorithm. `rng` is seeded; every random draw comes from it. `Patch.base` may be left empty."""

    def planned(self, data: Material) -> Work | None:
        """How much a run on this data is; None where nothing is trained."""
        return None

    @final
    def __call__(
        self,
        host: Any,
        request: Request,
        *,
        data: Mapping[str, Pictures] | None = None,
        beside: Mapping[str, Host] | None = None,
        seed: int = 0,
        trace: Trace | None = None,
    ) -> Patch:
        """Runs the system on a host.

        Args:
            host: the model; it is unchanged afterwards, also after an error.
            request: what to change.
            data: what the system learns from, by the names that its card reads.
            beside: further models, by the roles that its card names.
            seed: of every random draw.
            trace: takes the cost and the log; give one to resume, to see progress or to read the log.

        Raises:
            Unsupported: the host cannot do what the system needs.
            BadRequest: the request, the data or a parameter makes no sense for this system.
            Touched: the system changed a model or left a hook (a bug in the system).
        """
        trace = trace or Trace()
        material = data if isinstance(data, Material) else Material(data or {}, beside or {})
        self.check(host, material)
        with ExitStack() as stack:
            with still(host.root):
                rng = stack.enter_context(self.guarded(host, material, seed=seed, trace=trace))
                base = host.fingerprint()
            patch = self.run(host, request, data=material, rng=rng, trace=trace)
        cost = {"seconds": trace.seconds, "forwards": dict(trace.forwards), "peak_bytes": trace.peak_bytes}
        return replace(patch, base=base, provenance=self.provenance(request, seed), cost=cost)


class _Params(TypedDict):
    """What the hook of a sampling-time system says."""

    parameters: dict[str, Any]
    request: Request


@dataclass(frozen=True, kw_only=True)
class SamplingEdit(ModelEdit, ABC):
    """A system that changes no weight: its patch is a hook that replaces classifier-free guidance while sampling."""

    def learn(
        self, host: Any, request: Request, *, data: Material, rng: torch.Generator, trace: Trace
    ) -> Mapping[str, Tensor]:
        """Tensors that the rule needs, found once on the untouched model; they travel in the hook. Here, none."""
        return {}

    @abstractmethod
    def guide(self, host: Denoiser, request: Request, learned: Mapping[str, Tensor]) -> Guide:
        """A fresh rule for one run of sampling; whatever it remembers from step to step lives in its closure.

        `learned` is what `learn` gave, on the CPU.
        """

    @final
    def run(self, host: Any, request: Request, *, data: Material, rng: torch.Generator, trace: Trace) -> Patch:
        learned = self.learn(host, request, data=data, rng=rng, trace=trace)
        params = {"parameters": self.parameters(), "request": request.plain()}
        hook = Hook(id=self.id, params=params, tensors={k: t.detach().cpu() for k, t in learned.items()})
        return Patch(base="", hooks=(hook,))

    @classmethod
    @contextmanager
    def attach(cls, host: Denoiser, hook: Hook) -> Iterator[None]:
        """Makes `host.sample` use the hook's rule until the context ends."""
        params = hook.read(_Params)
        method, request = cls.from_plain(params["parameters"]), params["request"]
        if hook.tensors and cls.learn is SamplingEdit.learn:
            raise Damaged(f"The patch's hook {hook.id} holds tensors, but its system learns none.")
        with guiding(host, hook, lambda: method.guide(host, request, hook.tensors)):
            yield


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


def _plain(value: Any) -> Any:
    if isinstance(value, Method):
        return value.named()
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


def _able(who: str, host: object, needs: str) -> None:
    if not isinstance(host, CAPABILITIES[needs]):
        able = " and ".join(capabilities(host)) or type(host).__name__
        raise Unsupported(f"{who} needs a {needs}; {getattr(host, 'name', 'this')} is a {able}.")


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names)) or "none"


@cache
def versions() -> dict[str, str]:
    """Of everything that a number may depend on."""
    numbers = {"python": platform.python_version(), "machine": platform.machine(), "palimpsest": __version__}
    for package in ("torch", "diffusers", "transformers"):
        try:
            numbers[package] = version(package)
        except PackageNotFoundError:
            numbers[package] = "not installed"
    return numbers
