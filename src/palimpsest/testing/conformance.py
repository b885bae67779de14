"""The laws that every system, host and probe must hold, as functions that any package can call in its tests."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from palimpsest.core import catalog, stored
from palimpsest.core.card import Card
from palimpsest.core.change import Part
from palimpsest.core.combine import Combine
from palimpsest.core.concept import Request
from palimpsest.core.errors import Unsupported, WrongBase
from palimpsest.core.fingerprint import hook_count, tensors_of
from palimpsest.core.host import CAPABILITIES, Denoiser
from palimpsest.core.images import Edited, ImageEdit
from palimpsest.core.method import Method, ModelEdit
from palimpsest.core.patch import COSTS, Patch
from palimpsest.core.pictures import Pictures
from palimpsest.core.reading import Reading
from palimpsest.core.sampling import Sampling
from palimpsest.ops.text_states import last


class Incapable:
    """A host that can do nothing: what every system must refuse in words that help."""

    name = "an empty host"
    root = nn.Linear(2, 2)

    def parts(self, role: str) -> dict[str, nn.Module]:
        return {}

    def fingerprint(self) -> str:
        return ""


def quick(system: str) -> Any:
    """An installed system with as little work as shows its laws: its class's own `quick` settings."""
    cls = catalog.load(system)
    return cls(**cls.quick)


def check_method(method: ModelEdit, host: Any, request: Request, *, data: Any = None, seed: int = 0) -> Patch:
    """Every law of a ModelEdit on one host, with the data that it learns from; cost: two runs of the method.

    Deterministic under its seed; the host bit for bit untouched and free of hooks; its patch saves, loads, applies
    and reverts exactly, changes something, composes with nothing lost, knows its base and its provenance; hosts that
    lack the capability are refused by name.

    Raises:
        AssertionError: a law is broken; the message names it.
    """
    assert isinstance(method.card, Card), f"{type(method).__name__} has no card"
    _check_refusal(lambda bare: method(bare, request), method)
    before, hooks = host.fingerprint(), hook_count(host.root)
    patch, again = (method(host, request, data=data, seed=seed) for _ in range(2))
    assert host.fingerprint() == before, f"{method.id} changed its host"
    assert hook_count(host.root) == hooks, f"{method.id} left hooks on its host"
    assert patch.sha256() == again.sha256(), f"{method.id} is not deterministic under its seed"
    assert patch.base == before, f"{method.id} does not know its base"
    assert patch.deltas or patch.hooks or patch.words, f"{method.id} returned a patch that changes nothing"
    for key in ("method", "parameters", "request", "seed", "versions"):
        assert key in patch.provenance, f"{method.id}: provenance lacks {key}"
    assert set(patch.cost) == set(COSTS), f"{method.id} does not say what it cost"
    _check_files(method, patch)
    _check_use(method, host, patch, before, hooks)
    return patch


def check_combine(method: Combine, host: Any, parts: Sequence[Part], *, data: Any = None, seed: int = 0) -> Patch:
    """Every law of a Combine on one host and some changes of it; cost: four runs of the method.

    Deterministic under its seed; the host bit for bit untouched and free of hooks; the same patch whatever the size of
    the blocks that are read, and streamed to a file as held in memory; it saves, applies and reverts exactly, and says
    what it was made of; what is no change of this model is refused.

    Raises:
        AssertionError: a law is broken; the message names it.
    """
    assert isinstance(method.card, Card), f"{type(method).__name__} has no card"
    before, hooks = host.fingerprint(), hook_count(host.root)
    patch, again = (method(parts, host, data=data, seed=seed) for _ in range(2))
    assert host.fingerprint() == before, f"{method.id} changed its host"
    assert hook_count(host.root) == hooks, f"{method.id} left hooks on its host"
    assert patch.sha256() == again.sha256(), f"{method.id} is not deterministic under its seed"
    assert patch.deltas, f"{method.id} returned a patch that changes nothing"
    assert [p["sha256"] for p in patch.provenance["combined"]] == [p.sha256() for p in parts], (
        f"{method.id} does not say what it combined"
    )
    with tempfile.TemporaryDirectory() as folder:
        streamed = method(parts, host, data=data, seed=seed, out=Path(folder) / "patch.safetensors")
        assert streamed.sha256() == patch.sha256(), f"{method.id}: streamed to a file, the patch is another"
    with blocks_of(5):
        small = method(parts, host, data=data, seed=seed)
    shapes = {name: t.shape for name, t in tensors_of(host.root).items()}
    for name, delta in patch.deltas.items():
        one, other = (d.dense(shapes[name]) for d in (delta, small.deltas[name]))
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7, msg=f"{method.id}: {name} depends on block size")
    _check_use(method, host, patch, before, hooks)
    try:
        method([*parts, Patch(base="another model", deltas=patch.deltas)], host, data=data)
        raise AssertionError(f"{method.id} combined a change of another model")
    except WrongBase:
        pass
    return patch


@contextmanager
def blocks_of(entries: int) -> Iterator[None]:
    """Inside, tensors are read and written by so many numbers at a time, or by a row that has more."""
    usual = stored.blocks.__defaults__
    stored.blocks.__defaults__ = (entries,)
    try:
        yield
    finally:
        stored.blocks.__defaults__ = usual


def check_edit(
    method: ImageEdit, host: Any, sources: Pictures, request: Request, *, data: Any = None, seed: int = 0
) -> Edited:
    """Every law of an ImageEdit on one host and two or more sources with masks, captions and the column "asked".

    Deterministic under its seed; the host bit for bit untouched and free of hooks; pictures of the same number and
    size, finite, in [0, 1]; the source bit for bit where the mask is 0; a picture's result is its own, whatever stands
    beside it; what asks for what is said, of no other picture than itself, moves nothing beyond the rebuilt picture;
    hosts that lack the capability are refused by name. Cost: four runs of the method.

    Raises:
        AssertionError: a law is broken; the message names it.
    """
    assert sources.masks is not None, "the laws are about masks too: give some"
    _check_refusal(lambda bare: method(bare, sources, request, data=data), method)
    before, hooks = host.fingerprint(), hook_count(host.root)
    edited, again = (method(host, sources, request, data=data, seed=seed) for _ in range(2))
    assert host.fingerprint() == before, f"{method.id} changed its host"
    assert hook_count(host.root) == hooks, f"{method.id} left hooks on its host"
    assert torch.equal(edited.images, again.images), f"{method.id} is not deterministic under its seed"
    for images in (edited.images, *([] if edited.rebuilt is None else [edited.rebuilt])):
        assert images.shape == sources.images.shape, f"{method.id} changed the number or the size of pictures"
        assert bool(images.isfinite().all()), f"{method.id} made numbers that are not finite"
        assert 0 <= float(images.min()) <= float(images.max()) <= 1, f"{method.id} left [0, 1]"
    source, outside = sources.pixels(), (sources.masks == 0).expand(-1, 3, -1, -1)
    assert torch.equal(edited.images[outside], source[outside]), f"{method.id} changed what was masked out"
    assert not torch.equal(edited.images, source), f"{method.id} changed nothing"
    alone = method(host, sources[[0]], request, data=data, seed=seed)
    apart = float((alone.images - edited.images[:1]).abs().max())
    assert apart < 1e-3, f"{method.id}: a picture's edit depends on its batch ({apart})"
    if edited.rebuilt is not None:
        same = replace(sources, columns={**sources.columns, "asked": sources.captions})
        of_itself = {**data, "references": same} if "references" in method.card.reads else data
        still_said = method(host, same, request, data=of_itself, seed=seed)
        assert still_said.rebuilt is not None
        moved = still_said.images - (still_said.rebuilt if getattr(method, "finish", "") == "whole" else source)
        assert float(moved.abs().max()) < 1e-4, f"{method.id} changes pictures that ask for what they show"
    for key in ("method", "parameters", "request", "seed", "versions"):
        assert key in edited.provenance, f"{method.id}: provenance lacks {key}"
    assert set(edited.cost) == set(COSTS), f"{method.id} does not say what it cost"
    return edited


def check_host(host: Any, prompts: Sequence[str] = ("a red star", "")) -> None:
    """Every law of a host; cost: a few forwards.

    Raises:
        AssertionError: a law is broken; the message names it.
    """
    assert host.fingerprint() == host.fingerprint(), "a fingerprint must not change by itself"
    named = dict(host.root.named_modules())
    for role in ("denoiser", "text_encoder", "cross_key", "cross_value", "backbone"):
        for name, module in host.parts(role).items():
            assert named.get(name) is module, f"parts({role!r}) names {name!r} unlike root.named_modules()"
    assert host.parts("no such role") == {}, "an unknown role gives no parts"
    assert not any(m.training for m in host.root.modules()), "a host is in evaluation mode"
    if isinstance(host, Denoiser):
        _check_denoiser(host, list(prompts))


def check_probe(probe: Any, evidence: Any) -> list[Reading]:
    """A probe's laws: the same evidence gives the same readings, each with a finite value inside its interval."""
    readings, again = probe.run(evidence), probe.run(evidence)
    assert readings == again, f"{type(probe).__name__} is not deterministic"
    assert readings, f"{type(probe).__name__} read nothing"
    for r in readings:
        assert r.value == r.value, f"{r.name} of {r.concept!r} is not a number"
        if r.low == r.low:
            assert r.low <= r.value <= r.high, f"{r.name} of {r.concept!r}: {r.value} outside {r.low}..{r.high}"
    return readings


def _check_refusal(run: Callable[[Incapable], object], method: Method) -> None:
    try:
        run(Incapable())
        refusal = ""
    except Unsupported as e:
        refusal = str(e)
    assert refusal, f"{method.id} accepted a host that can do nothing"
    assert method.card.needs in refusal, f"{method.id}: the refusal does not say what is needed: {refusal}"
    assert method.card.needs in CAPABILITIES, f"{method.id} needs an unknown capability {method.card.needs!r}"


def _check_files(method: ModelEdit, patch: Patch) -> None:
    with tempfile.TemporaryDirectory() as folder:
        loaded = Patch.load(patch.save(Path(folder) / "patch.safetensors"))
    assert loaded.sha256() == patch.sha256(), f"{method.id}: its patch is not the same after saving and loading"


def _check_use(method: Method, host: Any, patch: Patch, before: str, hooks: int) -> None:
    with patch.applied(host):
        if patch.deltas:
            assert host.fingerprint() != before, f"{method.id}: the applied patch changes no tensor"
    assert host.fingerprint() == before, f"{method.id}: reverting is not exact"
    assert hook_count(host.root) == hooks, f"{method.id}: the applied patch leaves hooks"
    if not patch.hooks:
        with patch.scaled(0.0).applied(host):
            assert host.fingerprint() == before, f"{method.id}: scaled to zero, the patch still changes something"
    stranger = Patch(base="another model", deltas=patch.deltas, hooks=patch.hooks, words=patch.words)
    try:
        with stranger.applied(host):
            raise AssertionError(f"{method.id}: a patch for another base was applied")
    except WrongBase:
        pass


def _check_denoiser(host: Denoiser, prompts: list[str]) -> None:
    full, cut = host.encode(prompts), host.tokens(prompts)
    assert full.states.shape[0] == len(prompts)
    assert cut.states.shape[1] <= full.states.shape[1], "tokens() gives more than encode()"
    torch.testing.assert_close(last(cut), last(full), atol=1e-4, rtol=1e-3, msg="tokens() and encode() disagree")
    picture = host.sample(prompts, list(range(len(prompts))), Sampling(steps=2))
    assert picture.dtype == torch.float32
    assert picture.shape[:2] == (len(prompts), 3)
    assert 0 <= float(picture.min()) <= float(picture.max()) <= 1
    alone = host.sample(prompts[:1], [0], Sampling(steps=2))
    torch.testing.assert_close(alone, picture[:1], atol=2e-4, rtol=0, msg="a row depends on its batch")
    latents = host.latents(picture)
    assert host.pixels(latents).shape == picture.shape
    generator = torch.Generator().manual_seed(0)
    t = host.times(64, generator)
    alpha, sigma = host.noise(t)
    assert bool((alpha >= 0).all())
    assert bool((sigma >= 0).all())
    assert not torch.allclose(sigma, sigma[:1].expand_as(sigma)), "times() draws one time only"


def changed_tensors(host: Any, patch: Patch) -> dict[str, float]:
    """Relative change of each tensor that a patch touches, for tests that say where a system may write."""
    shapes = tensors_of(host.root)
    return {
        name: float(d.dense(shapes[name].shape).norm() / shapes[name].detach().float().norm())
        for name, d in patch.deltas.items()
    }
