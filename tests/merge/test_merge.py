"""Merging: every rule against its formula on whole tensors, and the command from files to a verified receipt."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from palimpsest.cli import main
from palimpsest.core import stored as stored_tensors
from palimpsest.core.change import Change, diff
from palimpsest.core.combine import Combine
from palimpsest.core.delta import Delta, Dense, LowRank, Sparse
from palimpsest.core.errors import BadRequest
from palimpsest.core.fingerprint import fingerprint, tensors_of
from palimpsest.core.patch import Patch
from palimpsest.core.sealed import Deltas
from palimpsest.core.stored import Memory, bytes_of
from palimpsest.core.trace import Trace
from palimpsest.merge.diffusion_soup import DiffusionSoup
from palimpsest.merge.task_arithmetic import TaskArithmetic
from palimpsest.merge.ties import TIES
from palimpsest.merge.wise_ft import WiseFT
from palimpsest.ops.interference import interference, pairs
from palimpsest.ops.merging import changed, thresholds
from palimpsest.run import load, merge
from palimpsest.run.do import perform
from palimpsest.run.merging import BareMerge, ingredients


class Small:
    """A host of two layers."""

    name, knows, device = "small", None, torch.device("cpu")

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.root = nn.ModuleDict({"a": nn.Linear(6, 4), "b": nn.Conv2d(3, 5, 2)})

    def parts(self, role: str) -> dict[str, nn.Module]:
        return {}

    def fingerprint(self) -> str:
        return fingerprint(self.root)


def patch_of(host: Small, seed: int, *, low: bool = False) -> Patch:
    g = torch.Generator().manual_seed(seed)
    shape = torch.Size((4, 6))
    a: Delta = Dense(value=torch.randn(shape, generator=g))
    if low:
        a = LowRank(up=torch.randn(4, 1, generator=g), down=torch.randn(1, 6, generator=g))
    few = Sparse(index=torch.randperm(60, generator=g)[:7], value=torch.randn(7, generator=g))
    return Patch(base=host.fingerprint(), deltas={"a.weight": a, "b.weight": few}, provenance={"method": f"t{seed}"})


def whole(patch: Patch, host: Small) -> Tensor:
    """A patch's changes of the two weights, one after another."""
    shapes = {k: t.shape for k, t in tensors_of(host.root).items()}
    zero = {k: torch.zeros(shapes[k]) for k in ("a.weight", "b.weight")}
    return torch.cat([(patch.deltas[k].dense(shapes[k]) if k in patch.deltas else zero[k]).reshape(-1) for k in zero])


def naive_ties(changes: Sequence[Tensor], density: float, scale: float, elect: str) -> Tensor:
    """The paper's three steps on whole vectors, by sorting."""
    kept = []
    for d in changes:
        k = max(1, round(density * d.numel()))
        least = d.abs().sort(descending=True).values[k - 1]
        kept.append(torch.where(d.abs() >= least, d, 0.0))
    stacked = torch.stack(kept)
    sign = torch.sign((stacked if elect == "mass" else stacked.sign()).sum(0))
    merged = torch.zeros_like(stacked[0])
    for i in range(merged.numel()):
        agree = [float(x) for x in stacked[:, i] if x != 0 and torch.sign(x) == sign[i]]
        merged[i] = scale * sum(agree) / len(agree) if agree else 0.0
    return merged


@settings(max_examples=20, deadline=None)
@given(
    n=st.integers(1, 4), density=st.sampled_from([0.05, 0.2, 0.7, 1.0]), elect=st.sampled_from(["mass", "count"]),
    entries=st.sampled_from([1, 7, 10**6]),
)  # fmt: skip
def test_ties_is_the_papers_formula_whatever_the_blocks(n: int, density: float, elect: Any, entries: int) -> None:
    host = Small()
    parts = [patch_of(host, i) for i in range(n)]
    before = stored_tensors.ENTRIES
    with pytest.MonkeyPatch.context() as patching:
        patching.setattr(stored_tensors.blocks, "__defaults__", (entries,))
        merged = TIES(density=density, scale=0.5, elect=elect)(parts, host)
    assert before == stored_tensors.ENTRIES
    wanted = naive_ties([whole(p, host) for p in parts], density, 0.5, elect)
    torch.testing.assert_close(whole(merged, host), wanted, rtol=1e-6, atol=1e-6)
    again = TIES(density=density, scale=0.5, elect=elect)(parts[::-1], host)
    torch.testing.assert_close(whole(again, host), wanted, rtol=1e-6, atol=1e-6)


def test_ties_within_each_tensor() -> None:
    host = Small()
    parts = [patch_of(host, i) for i in range(3)]
    merged = TIES(density=0.3, over="tensor")(parts, host)
    for name, size in (("a.weight", 24), ("b.weight", 60)):
        at = slice(0, 24) if name == "a.weight" else slice(24, 84)
        wanted = naive_ties([whole(p, host)[at] for p in parts], 0.3, 1.0, "mass")
        assert len(wanted) == size
        torch.testing.assert_close(whole(merged, host)[at], wanted, rtol=1e-6, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 100), density=st.floats(0.01, 1.0), equal=st.booleans())
def test_the_kth_largest_is_found_exactly(seed: int, density: float, equal: bool) -> None:
    g = torch.Generator().manual_seed(seed)
    values = torch.randn(13, 7, generator=g)
    values = values.round() if equal else values
    host = Memory({"w": torch.zeros(13, 7)})
    part = Patch(base="", deltas={"w": Dense(value=values)})
    k = max(1, round(density * 91))
    found = thresholds([part], host, ["w"], density)
    assert float(found[0]) == float(values.abs().reshape(-1).sort(descending=True).values[k - 1])


@pytest.mark.parametrize(
    ("rule", "factors"),
    [
        (TaskArithmetic(), (1.0, 1.0)),
        (TaskArithmetic(weights=(0.5, -2.0)), (0.5, -2.0)),
        (DiffusionSoup(), (0.5, 0.5)),
        (DiffusionSoup(weights=(3.0, 1.0)), (0.75, 0.25)),
    ],
)
@pytest.mark.parametrize("low", [True, False])
def test_weighted_sums(rule: Combine, factors: tuple[float, float], low: bool) -> None:
    host = Small()
    a, b = patch_of(host, 1, low=low), patch_of(host, 2, low=low)
    merged = rule([a, b], host)
    torch.testing.assert_close(whole(merged, host), factors[0] * whole(a, host) + factors[1] * whole(b, host))
    assert isinstance(merged.deltas["a.weight"], LowRank if low else Dense)
    assert isinstance(merged.deltas["b.weight"], Sparse)
    assert merged.provenance["combined"][0] == {"sha256": a.sha256(), "provenance": {"method": "t1"}}


def test_half_the_way_to_a_whole_model() -> None:
    host, tuned = Small(), Small(1)
    change = Change(before=Memory(tensors_of(host.root)), after=Memory(tensors_of(tuned.root)), name="tuned")
    with WiseFT(alpha=0.25)([change], host).applied(host):
        for name, t in tensors_of(host.root).items():
            was = tensors_of(Small().root)[name]
            torch.testing.assert_close(t, 0.75 * was + 0.25 * tensors_of(tuned.root)[name])
    with pytest.raises(BadRequest, match="2 were given"):
        WiseFT()([change, change], host)


def test_a_merge_streams_to_its_file(tmp_path: Path) -> None:
    host = Small()
    parts = [patch_of(host, 1), patch_of(host, 2, low=True)]
    for rule in (TIES(), TaskArithmetic()):
        held = rule(parts, host)
        streamed = rule(parts, Memory(tensors_of(host.root)), out=tmp_path / "m.safetensors")
        assert streamed.sha256() == held.sha256() == Patch.load(tmp_path / "m.safetensors").sha256()


class InBytes(Trace):
    """A byte counts as a megabyte."""

    def reading(self, what: str, nbytes: int) -> Callable[[int], None]:
        read = super().reading(what, nbytes * 10**6)
        return lambda more: read(more * 10**6)


def test_long_reading_tells_how_far_it_is(tmp_path: Path) -> None:
    """Every byte is told of: as many as were announced, whichever form a change has."""
    host, told = Small(), {}
    before, after = (Memory(tensors_of(h.root)) for h in (host, Small(1)))
    few = dict(tensors_of(Small(1).root))
    few["a.weight"] = tensors_of(host.root)["a.weight"].clone()
    few["a.weight"][0, 0] += 1
    trace = InBytes(progress=lambda what, done, total: told.setdefault(what, []).append((done, total)))

    def last(what: str) -> tuple[int, int]:
        return told[what][-1]

    for edited in (after, Memory(few)):
        told.clear()
        diff(before, edited, out=tmp_path / "p.safetensors", trace=trace)
        assert all(done == total for done, total in (last("comparing, MB"), last("writing, MB read")))
        assert last("comparing, MB")[1] == 2 * bytes_of(before)
        assert [done for done, _ in told["comparing, MB"]] == sorted({done for done, _ in told["comparing, MB"]})
    told.clear()
    TIES()([patch_of(host, 1), Change(before=before, after=after)], host, trace=trace)
    almost = told["merging, MB of changes"][-2]  # the last is told in any case
    assert almost[0] == almost[1] > 0


def test_a_bare_merge_is_written_while_it_is_computed(tmp_path: Path) -> None:
    host = Small()
    case = BareMerge(host=host, ingredients=ingredients(host, [patch_of(host, 1), patch_of(host, 2)]))
    done = perform("merge", case, out=tmp_path)
    assert isinstance(done.patch.deltas, Deltas), "still in its file"
    assert Patch.load(tmp_path / "patch.safetensors").sha256() == done.patch.sha256()
    held = Patch.load(tmp_path / "patch.safetensors")
    assert done.patch.nbytes() == held.nbytes() > 0


def test_numbers_that_are_not_finite_are_refused_while_a_merge_streams(tmp_path: Path) -> None:
    before = {"a": torch.zeros(3, 4)}
    for odd in (float("nan"), float("inf"), -float("inf")):
        after = {"a": torch.zeros(3, 4).index_fill_(0, torch.tensor([1]), odd)}
        base = Memory(before)
        with pytest.raises(BadRequest, match="'a' holds numbers that are not finite"):
            TaskArithmetic()([Change(before=base, after=Memory(after))], base, out=tmp_path / "out.safetensors")
        assert not list(tmp_path.iterdir())


def test_weights_that_make_no_sense() -> None:
    host = Small()
    parts = [patch_of(host, 1), patch_of(host, 2)]
    with pytest.raises(BadRequest, match="3 weights for 2 changes"):
        TaskArithmetic(weights=(1.0, 1.0, 1.0))(parts, host)
    with pytest.raises(BadRequest, match="is to be a number"):
        TaskArithmetic(weights=(1.0, float("nan")))(parts, host)
    with pytest.raises(BadRequest, match="at least 0"):
        DiffusionSoup(weights=(1.0, -1.0))(parts, host)
    with pytest.raises(BadRequest, match="density"):
        TIES(density=0.0)


def test_interference_of_known_changes() -> None:
    host = Small()
    base = Memory(tensors_of(host.root))
    value = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    a = Patch(base="", deltas={"a.weight": Dense(value=value)})
    b = Patch(base="", deltas={"b.weight": Sparse(index=torch.arange(5), value=torch.ones(5))})
    found = dict(zip(pairs(3), interference([a, a.scaled(-2.0), b], base), strict=True))
    assert found[0, 1].cosine == pytest.approx(-1.0, abs=1e-6)
    assert (found[0, 1].opposed, found[0, 1].shared) == (1.0, 1.0)
    assert found[0, 2] == found[1, 2] == (0.0, 0.0, 0.0)
    assert changed([a, b]) == ["a.weight", "b.weight"]


# -- as a user -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def edits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from palimpsest.core import catalog
    from palimpsest.run import request

    folder, host = tmp_path_factory.mktemp("edits"), load("tiny/sd")
    for word in ("star", "moon"):
        catalog.load("erase/uce")()(host, request(host, word)).save(folder / f"no-{word}" / "patch.safetensors")
    return folder


def test_the_command_merges_measures_and_is_verified(
    edits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    both = ["merge", str(edits / "no-star"), str(edits / "no-moon" / "patch.safetensors"), "--model", "tiny/sd"]
    few = ["--prompts", "1", "--seeds", "1", "--sample-steps", "2", "--workers", "1"]
    assert main([*both, *few, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "no-star: star." in said
    receipt = json.loads((out / "receipt.json").read_text())
    assert (receipt["subject"], receipt["method"]["method"]) == ("merged", "merge/task_arithmetic")
    assert [m["about"] for m in receipt["plan"]["merged"]] == [["star"], ["moon"]]
    kept = {r["concept"]: r for r in receipt["readings"] if r["name"] == "with the others"}
    assert set(kept) == {"star", "moon"}
    assert [r["detail"]["parts"] for r in receipt["readings"] if r["name"] == "cosine of two changes"]
    assert main(["verify", str(out / "receipt.json")]) in (0, 3), capsys.readouterr().out
    assert "Kept and lost" in (out / "receipt.html").read_text()
    assert Patch.load(out / "patch.safetensors").base == load("tiny/sd").fingerprint()


def test_without_a_word_of_what_it_is_about_nothing_is_drawn(edits: Path, tmp_path: Path) -> None:
    host = load("tiny/sd")
    bare = [Patch(base=p.base, deltas=p.deltas) for p in (Patch.load(f) for f in sorted(edits.rglob("*.safetensors")))]
    done = merge(host, bare, method="ties", out=tmp_path)
    assert done.receipt is None
    assert Patch.load(tmp_path / "patch.safetensors").sha256() == done.patch.sha256()
    (first, second) = ingredients(host, bare, about=["star", "-"])
    assert ([c.name for c in first.about], second.about) == (["star"], ())
    with pytest.raises(BadRequest, match="1 times"):
        ingredients(host, bare, about=["star"])


def test_files_are_merged_without_loading_the_model(
    edits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = ["merge", str(edits / "no-star"), str(edits / "no-moon"), "--model", "tiny/sd", "--method", "ties"]
    assert main([*both, "--stream", "--out", str(tmp_path / "s")]) == 0
    assert "the changes are read 3 times" in capsys.readouterr().out
    assert not (tmp_path / "s" / "receipt.json").exists()
    host = load("tiny/sd")
    parts = [Patch.load(edits / f"no-{word}" / "patch.safetensors") for word in ("star", "moon")]
    held, streamed = TIES()(parts, host), Patch.load(tmp_path / "s" / "patch.safetensors")
    streamed.fits(host)
    assert all(torch.equal(streamed.deltas[k].tensors()["value"], d.tensors()["value"]) for k, d in held.deltas.items())


def test_the_merged_model_is_written_as_its_files_are(edits: Path, tmp_path: Path) -> None:
    both = ["merge", str(edits / "no-star"), "--model", "tiny/sd", "--stream", "--out", str(tmp_path / "s")]
    assert main([*both, "--write", str(tmp_path / "model")]) == 0
    host, edited = load("tiny/sd"), load(tmp_path / "model")
    half = torch.float16  # of the files
    with Patch.load(edits / "no-star" / "patch.safetensors").applied(host):
        for name, t in tensors_of(host.root).items():
            assert torch.equal(t.to(half).float(), tensors_of(edited.root)[name].float()), name
    assert main([*both, "--overwrite", "--write", str(tmp_path / "model")]) == 2
    assert main([*both, "--overwrite", "--write", str(tmp_path / "one.safetensors")]) == 2


def test_a_difference_is_written_without_loading_either(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", "tiny/sd", "tiny/sd-without-star", "--out", str(tmp_path / "c"), "--dry-run"]) == 0
    assert "GB are read" in capsys.readouterr().out
    assert not (tmp_path / "c").exists()
    assert main(["diff", "tiny/sd", "tiny/sd-without-star", "--out", str(tmp_path / "c")]) == 0
    assert "tensors changed" in capsys.readouterr().out
    patch, host, other = Patch.open(tmp_path / "c" / "patch.safetensors"), load("tiny/sd"), load("tiny/sd-without-star")
    assert patch.provenance["edited"] == "tiny/sd-without-star"
    assert patch.base != host.fingerprint()  # the files are of half precision, and one base with the loaded model
    with patch.applied(host):
        assert host.fingerprint() == other.fingerprint()
    assert main(["diff", "tiny/sd", "tiny/cifar", "--out", str(tmp_path / "no")]) == 2
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "no change to merge"),
        (["nowhere.safetensors"], "There is no"),
        (["tiny/cifar"], "no edit of"),
    ],
)
def test_what_cannot_be_merged_is_said(args: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["merge", *args, "--model", "tiny/sd", "--dry-run"]) == 2
    assert message in capsys.readouterr().err
