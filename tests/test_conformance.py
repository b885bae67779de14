"""Every system on every small host that it fits: the laws of `palimpsest.testing`, with no network."""

from __future__ import annotations

import socket
from functools import cache, partial
from typing import Any

import pytest
import torch

from erase_fixtures import pictures
from hosts_fixtures import folder_of, host_of
from palimpsest.core import catalog
from palimpsest.core.concept import Concept, Request
from palimpsest.core.errors import PalimpsestError, Unsupported
from palimpsest.core.method import ModelEdit
from palimpsest.core.patch import Patch, compose
from palimpsest.core.pictures import Pictures
from palimpsest.core.sampling import Sampling
from palimpsest.hosts.load import load
from palimpsest.ops.newcomers import TARGET
from palimpsest.testing import check_host, check_method, quick
from support_fixture import supported

STAR, MOON, RING = Concept(name="star"), Concept(name="moon", kind="style"), Concept(name="ring")
REQUEST = Request(target=(STAR,), keep=(Concept(name="moon"), RING), toward=(Concept(name="square"),))
SYSTEMS = [
    i
    for i, e in catalog.entries().items()
    if e.module.startswith("palimpsest.")
    and e.card.needs == "Denoiser"
    and catalog.verbs()[i.split("/")[0]].makes == "ModelEdit"
]
FAMILIES = ("sd", "sd_v", "sdxl", "sd3", "flux")
SUPPORT = {**supported("erase/"), **supported("insert/")}
RUNS = [(s, f) for s in SYSTEMS for f in FAMILIES if SUPPORT.get(s, {}).get(f, "runs") == "runs"]
REFUSES = [(s, f) for s in SYSTEMS for f in FAMILIES if (s, f) not in RUNS]


def asked(system: str, *targets: Concept) -> tuple[Request, dict[str, Pictures]]:
    """A request about these targets, and what a system of its kind learns from."""
    if "references" not in catalog.find(system).card.reads:
        return Request(target=targets, keep=(RING,)), {}
    said = {"captions": tuple(f"a red {c.name}" for c in targets), "columns": {TARGET: tuple(c.name for c in targets)}}
    return Request(target=targets, toward=(Concept(name="square"),)), {"references": pictures(len(targets), **said)}


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a test opened a socket")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.parametrize("family", FAMILIES)
def test_hosts(family: str) -> None:
    check_host(host_of(family))


def test_the_table_of_support_names_every_system_on_every_family() -> None:
    assert set(SUPPORT) == set(SYSTEMS)
    assert all(set(row) == set(FAMILIES) for row in SUPPORT.values())


@pytest.mark.parametrize(("system", "family"), RUNS)
def test_systems(system: str, family: str) -> None:
    """All laws on one family; on the others, where the same lines run, that it works there and changes its target."""
    host, (request, data) = host_of(family), asked(system, STAR)
    request = request if data else REQUEST
    if family == "sd":
        patch = check_method(quick(system), host, request, data=data)
        assert catalog.load(system).from_plain(patch.provenance["parameters"]) == quick(system)
    else:
        patch = quick(system)(host, request, data=data)
    star = partial(host.sample, ["a star"], [0], Sampling(steps=2))
    with torch.no_grad():
        with patch.applied(host):
            after = star()
        assert not torch.equal(untouched(family), after), f"{system} changes no picture of its target"
        if family != "sd":
            assert torch.equal(untouched(family), star()), f"{system}: reverting is not exact"


@cache
def untouched(family: str) -> torch.Tensor:
    """The picture of a star that a host draws as it is."""
    with torch.no_grad():
        return host_of(family).sample(["a star"], [0], Sampling(steps=2))


@pytest.mark.parametrize(("system", "family"), REFUSES)
def test_what_a_system_cannot_work_on_it_refuses_in_these_words(system: str, family: str) -> None:
    host = host_of(family)
    request, data = asked(system, STAR)
    with pytest.raises(Unsupported) as refusal:
        quick(system)(host, request if data else REQUEST, data=data)
    assert str(refusal.value).replace(host.name, "{host}") == SUPPORT[system][family]


@pytest.mark.parametrize("system", SYSTEMS)
def test_each_of_several_targets_is_in_the_patch(system: str) -> None:
    method, host = quick(system), host_of("sd")
    both, first, second = (
        method(host, request, data=data)
        for request, data in (asked(system, *targets) for targets in ((STAR, MOON), (STAR,), (MOON,)))
    )
    for alone, other in ((first, "moon"), (second, "star")):
        assert _pictured(host, both) != _pictured(host, alone), f"{other} is not in {system}'s patch for both"


def _pictured(host: Any, patch: Patch) -> list[float]:
    with torch.no_grad(), patch.applied(host):
        return host.sample(["a star", "a moon"], [0, 1], Sampling(steps=2)).flatten().tolist()


def test_two_patches_act_together() -> None:
    host = host_of("sd")
    other = Request(target=(RING,))
    first, second = quick("erase/uce")(host, REQUEST), quick("erase/uce")(host, other)
    both = compose(first, second, overlap="sum")
    with both.applied(host):
        together = {n: p.detach().clone() for n, p in host.root.named_parameters() if n in both.deltas}
    tensors = dict(host.root.named_parameters())
    for name, value in together.items():
        shape = value.shape
        expect = tensors[name] + first.deltas[name].dense(shape) + second.deltas[name].dense(shape)
        torch.testing.assert_close(value, expect, atol=1e-5, rtol=1e-4)
    guided = quick("erase/sld")(host, REQUEST)
    with (first | guided).applied(host):
        assert host.guide is not None
    assert host.guide is None


def test_a_seeded_change_of_any_kind_is_deterministic_across_loads() -> None:
    one, two = load(folder_of("sd")), load(folder_of("sd"))
    assert one.fingerprint() == two.fingerprint()
    a, b = quick("erase/esd")(one, REQUEST, seed=5), quick("erase/esd")(two, REQUEST, seed=5)
    for name, delta in a.deltas.items():
        for key, value in delta.tensors().items():
            assert torch.equal(value, b.deltas[name].tensors()[key]), name


def test_zero_steps_and_unknown_names_are_refused_in_words() -> None:
    with pytest.raises(PalimpsestError, match="at least 1"):
        catalog.load("erase/esd")(steps=0)
    with pytest.raises(PalimpsestError, match="Did you mean"):
        catalog.load("erase/rec")


def test_quick_settings_are_the_systems_own() -> None:
    for system in SYSTEMS:
        method = quick(system)
        assert isinstance(method, ModelEdit)
        for name, value in type(method).quick.items():
            assert getattr(method, name) == value, f"{system} does not know {name}, which its quick settings name"
