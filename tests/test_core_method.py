"""What the base of every system checks, verifies and stamps."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_origin, get_type_hints

import pytest
import torch
from torch import nn

from palimpsest.core import catalog
from palimpsest.core import fingerprint as fingerprints
from palimpsest.core.card import Card
from palimpsest.core.concept import Concept, Request
from palimpsest.core.delta import Dense
from palimpsest.core.errors import BadRequest, PalimpsestError, Touched, Unsupported
from palimpsest.core.files import write_beside, write_text
from palimpsest.core.fingerprint import digest, fingerprint, hook_count, quick_state
from palimpsest.core.method import ModelEdit
from palimpsest.core.patch import Patch
from palimpsest.core.trace import Trace

CARD = Card(name="T", title="T", year=2024, paper="p", family="f", needs="Encoder", claim="c")
STAR = Request(target=(Concept(name="star"),))


class Eye:
    """A host that embeds."""

    name = "eye"
    knows = None
    device = torch.device("cpu")

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.root = nn.ModuleDict({"net": nn.Linear(3, 2)})

    def parts(self, role: str) -> dict[str, nn.Module]:
        return {"net": self.root["net"]} if role == "backbone" else {}

    def fingerprint(self) -> str:
        return fingerprint(self.root)

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        return self.root["net"](images)


@dataclass(frozen=True, kw_only=True)
class Shift(ModelEdit):
    """Moves a bias; misbehaves on request."""

    card = CARD
    by: float = 1.0
    sin: str = ""

    def run(self, host: Any, request: Request, *, data: Any, rng: torch.Generator, trace: Trace) -> Patch:
        host.embed(torch.zeros(5, 3))
        if self.sin == "write":
            host.root["net"].bias.data.add_(1)
        if self.sin == "hook":
            host.root["net"].register_forward_hook(lambda *a: None)
        if self.sin == "raise":
            host.root["net"].bias.data.add_(1)
            raise RuntimeError("inside")
        return Patch(base="", deltas={"net.bias": Dense(value=self.by * torch.rand(2, generator=rng))})


def test_a_run_is_stamped_and_counted() -> None:
    host, trace = Eye(), Trace()
    patch = Shift()(host, STAR, seed=3, trace=trace)
    assert patch.base == host.fingerprint()
    assert trace.forwards == {"backbone": 5}
    assert trace.calls == {"backbone": 1}
    assert patch.provenance["parameters"] == {"by": 1.0, "sin": ""}
    assert patch.provenance["seed"] == 3
    assert patch.cost["seconds"] > 0
    assert Request.from_plain(patch.provenance["request"]) == STAR
    same, other = Shift()(host, STAR, seed=3), Shift()(host, STAR, seed=4)
    assert torch.equal(patch.deltas["net.bias"].value, same.deltas["net.bias"].value)
    assert not torch.equal(patch.deltas["net.bias"].value, other.deltas["net.bias"].value)


@pytest.mark.parametrize(
    ("sin", "words"), [("write", "changed the tensors"), ("hook", "left a hook"), ("raise", "changed")]
)
def test_what_a_system_leaves_behind_is_found(sin: str, words: str) -> None:
    with pytest.raises(Touched, match=words):
        Shift(sin=sin)(Eye(), STAR)


def test_an_incapable_host_is_refused_by_name() -> None:
    blind = type("Blind", (), {k: v for k, v in vars(Eye).items() if k != "embed"})()
    with pytest.raises(Unsupported, match="T needs a Encoder; eye is a"):
        Shift()(blind, STAR)


def test_quick_state_sees_writes_that_version_counters_miss() -> None:
    host = Eye()
    before = quick_state(host.root)
    host.root["net"].weight.data[0, 0] += 1e-6
    assert quick_state(host.root) != before


def test_what_stands_around_an_edit_is_two_passes_over_the_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    summed: list[int] = []
    count = fingerprints._wrapped_sum
    monkeypatch.setattr(fingerprints, "_wrapped_sum", lambda t: summed.append(1) or count(t))
    host = Eye()
    host.fingerprint = lambda: str(quick_state(host.root))  # type: ignore[method-assign]  # as hosts know their tensors
    Shift()(host, STAR)
    assert len(summed) == 2 * len(host.root.state_dict())
    quick_state(host.root)
    assert len(summed) == 3 * len(host.root.state_dict())  # nothing is remembered beyond the edit's start


def test_hooks_of_every_kind_are_counted() -> None:
    host = Eye()
    net = host.root["net"]
    assert hook_count(host.root) == 0
    net.register_forward_pre_hook(lambda *a: None)
    net.register_full_backward_hook(lambda *a: None)
    net.forward = lambda x: x  # type: ignore[method-assign]
    assert hook_count(host.root) == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool])
def test_digest_depends_on_name_shape_type_and_bytes(dtype: torch.dtype) -> None:
    t = torch.ones(4).to(dtype)
    seen = {digest({"a": t}), digest({"b": t}), digest({"a": t.reshape(2, 2)}), digest({"a": torch.zeros(4).to(dtype)})}
    assert len(seen) == 4
    assert digest({"a": t.clone()}) == digest({"a": t})
    assert digest({"a": torch.empty(0)}) == digest({"a": torch.empty(0)})


def test_files_are_whole_or_absent(tmp_path: Path) -> None:
    target = tmp_path / "new" / "a.txt"
    write_text(target, "é")
    assert target.read_text(encoding="utf-8") == "é"

    def half(tmp: Path) -> None:
        tmp.write_text("half")
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        write_beside(target, half)
    assert target.read_text(encoding="utf-8") == "é"
    assert [p.name for p in target.parent.iterdir()] == ["a.txt"]
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(PalimpsestError, match="Could not write"):
        write_text(blocked / "x.txt", "no")


@dataclass(frozen=True, kw_only=True)
class Choosy(Shift):
    """Has a field that takes two values."""

    way: Literal["up", "down"] = "up"


def test_a_field_holds_one_of_the_values_that_its_type_lists() -> None:
    assert Choosy(way="down").way == "down"
    with pytest.raises(BadRequest, match="way is 'left'; use one of up, down"):
        Choosy(way="left")  # type: ignore[arg-type]


def test_no_shipped_system_takes_a_value_that_its_type_does_not_list() -> None:
    tried = 0
    for system in catalog.entries():
        cls = catalog.load(system)
        hints = get_type_hints(cls)
        for field in fields(cls):
            if get_origin(hints[field.name]) is Literal:
                tried += 1
                with pytest.raises(BadRequest, match=f"{field.name} is 'no such'; use one of"):
                    cls(**{field.name: "no such"})
    assert tried > 20
