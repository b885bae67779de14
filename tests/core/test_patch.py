"""The patch: algebra, exact revert, files."""

from __future__ import annotations

import hashlib
import json
import pickle
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from palimpsest.core.change import diff
from palimpsest.core.concept import Concept, Request
from palimpsest.core.delta import Dense, LowRank, Rows, Sparse
from palimpsest.core.errors import BadRequest, Damaged, PalimpsestError, Unsupported, WrongBase
from palimpsest.core.fingerprint import fingerprint
from palimpsest.core.patch import Hook, Patch, compose, refuse_pickle


class Small:
    """The least host: two layers and a table."""

    name = "small"
    knows = None
    device = torch.device("cpu")

    def __init__(self, seed: int = 0, dtype: torch.dtype = torch.float32) -> None:
        torch.manual_seed(seed)
        self.root = nn.ModuleDict({"a": nn.Linear(6, 4), "b": nn.Conv2d(3, 5, 3), "e": nn.Embedding(10, 4)}).to(dtype)

    def parts(self, role: str) -> dict[str, nn.Module]:
        return {}

    def fingerprint(self) -> str:
        return fingerprint(self.root)


def make(host: Small, seed: int = 0, names: tuple[str, ...] = ("a", "b", "e", "s")) -> Patch:
    g = torch.Generator().manual_seed(seed)
    r = lambda *s: torch.randn(*s, generator=g)  # noqa: E731
    deltas = {
        "a.weight": LowRank(up=r(4, 2), down=r(2, 6)),
        "b.weight": Dense(value=r(5, 3, 3, 3)),
        "e.weight": Rows(index=torch.tensor([3, 7]), value=r(2, 4)),
        "a.bias": Sparse(index=torch.tensor([1]), value=r(1)),
    }
    keys = dict(zip("abes", deltas, strict=True))
    return Patch(base=host.fingerprint(), deltas={keys[n]: deltas[keys[n]] for n in names}, provenance={"by": "test"})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_apply_changes_and_revert_is_exact(dtype: torch.dtype) -> None:
    host = Small(dtype=dtype)
    before, patch = host.fingerprint(), make(host)
    weight = host.root["a"].weight.detach().clone()
    with patch.applied(host):
        assert host.fingerprint() != before
        expect = (weight.float() + patch.deltas["a.weight"].dense(weight.shape)).to(dtype)
        assert torch.equal(host.root["a"].weight, expect)
    assert host.fingerprint() == before


def test_revert_after_an_exception() -> None:
    host = Small()
    before = host.fingerprint()
    with pytest.raises(RuntimeError, match="inside"), make(host).applied(host):
        raise RuntimeError("inside")
    assert host.fingerprint() == before


def test_wrong_base_is_refused_and_force_applies() -> None:
    host, other = Small(0), Small(1)
    patch = make(host)
    with pytest.raises(WrongBase, match="made for the model"), patch.applied(other):
        pass
    with patch.applied(other, force=True):
        assert other.fingerprint() != Small(1).fingerprint()


def test_a_delta_that_does_not_fit_changes_nothing() -> None:
    host = Small()
    before = host.fingerprint()
    bad = Patch(base=before, deltas={"a.bias": Dense(value=torch.ones(4)), "a.weight": Dense(value=torch.ones(7))})
    with pytest.raises(Damaged, match="does not fit"), bad.applied(host):
        pass
    assert host.fingerprint() == before


def test_unknown_tensor_is_named() -> None:
    host = Small()
    bad = Patch(base=host.fingerprint(), deltas={"zz.weight": Dense(value=torch.ones(1))})
    with pytest.raises(WrongBase, match=r"zz\.weight"), bad.applied(host):
        pass


@settings(max_examples=25, deadline=None)
@given(factor=st.floats(-3, 3, allow_nan=False), seed=st.integers(0, 1000))
def test_scaling_and_sums(factor: float, seed: int) -> None:
    host = Small()
    a, b = make(host, seed), make(host, seed + 1)
    shapes = {k: v.shape for k, v in host.root.state_dict().items()}
    both = compose(a.scaled(factor), b, overlap="sum")
    for name, d in both.deltas.items():
        expect = factor * a.deltas[name].dense(shapes[name]) + b.deltas[name].dense(shapes[name])
        torch.testing.assert_close(d.dense(shapes[name]), expect, atol=1e-4, rtol=1e-4)


def test_overlap_is_refused_without_a_rule_and_resolved_with_one() -> None:
    host = Small()
    a, b = make(host, 0), make(host, 1)
    with pytest.raises(BadRequest, match="overlap"):
        _ = a | b
    assert compose(a, b, overlap="first").deltas["a.weight"] is a.deltas["a.weight"]
    assert compose(a, b, overlap="last").deltas["a.weight"] is b.deltas["a.weight"]
    disjoint = make(host, 0, ("a",)) | make(host, 1, ("b",))
    assert set(disjoint.deltas) == {"a.weight", "b.weight"}
    with pytest.raises(WrongBase):
        compose(a, make(Small(3), 0))


def test_mixed_forms_sum() -> None:
    host = Small()
    low = Patch(base=host.fingerprint(), deltas={"a.weight": LowRank(up=torch.ones(4, 1), down=torch.ones(1, 6))})
    full = Patch(base=host.fingerprint(), deltas={"a.weight": Dense(value=torch.ones(4, 6))})
    assert torch.equal(
        compose(low, full, overlap="sum").deltas["a.weight"].dense(torch.Size((4, 6))), torch.full((4, 6), 2.0)
    )


def test_save_and_load_are_exact(tmp_path: Path) -> None:
    host = Small()
    hook = Hook(id="erase/none", params={"x": [1, "é"]}, tensors={"a|b": torch.arange(3)})
    patch = Patch(base=host.fingerprint(), deltas=make(host).deltas, hooks=(hook,), provenance={"text": "\"<&'"})
    again = Patch.load(patch.save(tmp_path / "p.safetensors"))
    assert again.sha256() == patch.sha256()
    assert again.provenance == patch.provenance
    assert again.hooks[0].id == hook.id
    assert torch.equal(again.hooks[0].tensors["a|b"], torch.arange(3))
    assert [p.name for p in tmp_path.iterdir()] == ["p.safetensors"]


def test_equal_patches_are_equal_files_whatever_they_cost(tmp_path: Path) -> None:
    a = replace(make(Small()), provenance={"method": "m", "seed": 1}, cost={"seconds": 1.0, "peak_bytes": 5})
    b = replace(
        a, deltas=dict(reversed(a.deltas.items())), provenance={"seed": 1, "method": "m"}, cost={"seconds": 2.0}
    )
    files = {p.save(tmp_path / f"{i}").read_bytes() for i, p in enumerate((a, a, b, a, b, a))}
    assert len(files) == 1
    assert Patch.load(tmp_path / "0").cost == {}


def test_format_1_is_read_verified_and_keeps_its_identity(tmp_path: Path) -> None:
    """As it was written: two texts in the header, cost in the provenance, header hashed before the tensors."""
    host = Small()
    told = {"method": "erase/uce", "seconds": 1.5, "forwards": {"denoiser": 3}, "peak_bytes": None, "seed": 0}
    header = {"format": 1, "base": host.fingerprint(), "deltas": {"a.bias": "dense"}, "hooks": [], "provenance": told}
    value = torch.arange(4.0)
    h = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    h.update(b"delta|a.bias|value|(4,)|torch.float32|" + value.numpy().tobytes())
    meta = {"palimpsest": json.dumps(header, sort_keys=True), "palimpsest_sha256": h.hexdigest()}
    save_file({"delta|a.bias|value": value}, str(tmp_path / "old"), metadata=meta)
    patch = Patch.load(tmp_path / "old")
    assert patch.sha256() == h.hexdigest()
    assert patch.cost == {"seconds": 1.5, "forwards": {"denoiser": 3}, "peak_bytes": None}
    assert Patch.load(patch.save(tmp_path / "again")).sha256() == h.hexdigest()
    save_file({"delta|a.bias|value": value + 1}, str(tmp_path / "other"), metadata=meta)
    with pytest.raises(Damaged, match="changed or damaged"):
        Patch.load(tmp_path / "other")


def tied() -> Small:
    host = Small()
    host.root["again"] = nn.Linear(6, 4)
    host.root["again"].weight = host.root["a"].weight
    return host


def test_a_tensor_with_two_names_is_changed_once() -> None:
    host, edited = tied(), tied()
    with torch.no_grad():
        edited.root["a"].weight += 1
    before, patch = host.fingerprint(), diff(host, edited)
    assert set(patch.deltas) == {"a.weight", "again.weight"}
    with patch.applied(host):
        assert host.fingerprint() == edited.fingerprint()
    assert host.fingerprint() == before
    patch.fuse(host)
    assert host.fingerprint() == edited.fingerprint()


def test_applying_holds_one_dense_form_at_a_time() -> None:
    """A patch of many low-rank changes must not be blown up at once."""
    dense: list[weakref.ref[torch.Tensor]] = []

    class Watched(LowRank):
        def _dense(self, shape: torch.Size) -> torch.Tensor:
            assert not any(one() is not None for one in dense), "another dense form is still held"
            value = super()._dense(shape)
            dense.append(weakref.ref(value))
            return value

    host = Small()
    g = {"a.weight": (4, 6), "b.weight": (5, 27), "e.weight": (10, 4)}
    deltas = {n: Watched(up=torch.ones(out, 1), down=torch.ones(1, into)) for n, (out, into) in g.items()}
    patch = Patch(base=host.fingerprint(), deltas=deltas)
    with patch.applied(host):
        assert len(dense) == 3
    patch.fuse(host)
    assert len(dense) == 6


def test_every_flipped_byte_is_noticed(tmp_path: Path) -> None:
    host = Small()
    path = make(host).save(tmp_path / "p.safetensors")
    data = path.read_bytes()
    for at in range(8, len(data), max(1, len(data) // 60)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
        with pytest.raises(Damaged):
            Patch.load(path)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_truncated_files_are_refused(tmp_path: Path, keep: int) -> None:
    path = make(Small()).save(tmp_path / "p.safetensors")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(Damaged):
        Patch.load(path)


def test_pickles_are_refused_unopened(tmp_path: Path) -> None:
    path = tmp_path / "p.pt"
    torch.save({"a": torch.ones(1)}, path)
    with pytest.raises(Damaged, match="pickle"):
        Patch.load(path)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_bare_pickles_are_refused_unopened(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "p.safetensors"
    path.write_bytes(pickle.dumps({"a": list(range(100))}, protocol=protocol))
    with pytest.raises(Damaged, match="pickle"):
        refuse_pickle(path)


@pytest.mark.parametrize("length", [0x0280, 0x0380, 0x0480, 0x0580])
def test_a_header_whose_length_reads_like_a_pickle_is_none(tmp_path: Path, length: int) -> None:
    path = tmp_path / "p.safetensors"
    for pad in range(length):
        save_file({"a": torch.ones(1)}, str(path), metadata={"pad": "x" * pad})
        if int.from_bytes(path.read_bytes()[:8], "little") == length:
            break
    assert path.read_bytes()[:2] == length.to_bytes(2, "little")
    refuse_pickle(path)


def test_missing_file() -> None:
    with pytest.raises(Damaged, match="no patch"):
        Patch.load("nowhere.safetensors")


def test_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make(Small()).save(tmp_path / "p.safetensors")
    old = path.read_bytes()

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("palimpsest.core.streams._fill", full)
    with pytest.raises(PalimpsestError, match="Free some space"):
        make(Small(), 1).save(path)
    assert path.read_bytes() == old
    assert len(list(tmp_path.iterdir())) == 1


def test_hooks_cannot_be_fused_or_scaled() -> None:
    patch = Patch(base="x", hooks=(Hook(id="erase/none"),))
    with pytest.raises(Unsupported):
        patch.fuse(Small(), force=True)
    with pytest.raises(Unsupported):
        patch.scaled(0.5)


def test_diff_finds_any_edit() -> None:
    host, edited = Small(), Small()
    with torch.no_grad():
        edited.root["a"].weight[0, 0] += 1
        edited.root["b"].weight *= 1.5
    patch = diff(host, edited)
    assert set(patch.deltas) == {"a.weight", "b.weight"}
    assert patch.deltas["a.weight"].kind == "sparse"
    with patch.applied(host):
        for name, t in edited.root.state_dict().items():
            torch.testing.assert_close(host.root.state_dict()[name], t)


class TestRequests:
    def test_errors_say_what_to_do(self) -> None:
        star, moon = Concept(name="star"), Concept(name="moon")
        for wrong, words in [
            ({"target": ()}, "no target"),
            ({"target": (star, Concept(name="Star "))}, "twice"),
            ({"target": (star,), "keep": (star,)}, "both a target and kept"),
            ({"target": (star,), "toward": (star,)}, "by itself"),
            ({"target": (star,), "toward": (moon, moon)}, "replacements"),
        ]:
            with pytest.raises(BadRequest, match=words):
                Request(**wrong)  # type: ignore[arg-type]
        with pytest.raises(BadRequest, match="not empty"):
            Concept(name=" ")

    def test_plain_round_trip(self) -> None:
        request = Request(target=(Concept(name="a", prompts=("an a",)),), keep=(Concept(name="b", kind="style"),))
        assert Request.from_plain(request.plain()) == request
