"""Rules of merging that look at data, at layers or at chance: each against its formula on whole tensors; all laws."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from palimpsest.cli import main
from palimpsest.core import catalog
from palimpsest.core.delta import Dense
from palimpsest.core.errors import BadRequest, Unsupported
from palimpsest.core.fingerprint import tensors_of
from palimpsest.core.patch import Patch
from palimpsest.core.pictures import Pictures
from palimpsest.core.stored import Memory
from palimpsest.hosts.classifiers import ClassifierHost
from palimpsest.merge.atlas import ATLAS
from palimpsest.merge.bcwi import BCWI
from palimpsest.merge.dare import DARE, _uniform
from palimpsest.merge.robust_weight_signatures import RobustWeightSignatures
from palimpsest.merge.task_arithmetic import TaskArithmetic
from palimpsest.run import load
from palimpsest.testing import check_combine
from palimpsest.train.classify import picked, stream

RULES = [n for n, e in catalog.entries().items() if n.startswith("merge/") and e.card.needs != "Denoiser"]


class Net(nn.Module):
    """Two convolutions, a norm and a head, in an order that is not that of their names."""

    def __init__(self) -> None:
        super().__init__()
        self.z = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.a = nn.Conv2d(4, 5, 3)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.a(torch.relu(self.norm(self.z(x))))).mean((2, 3)))


@pytest.fixture(scope="module")
def host() -> ClassifierHost:
    torch.manual_seed(0)
    return ClassifierHost(Net().eval(), name="net", labels=("a", "b", "c"), head="head")


def change_of(host: ClassifierHost, seed: int, size: float = 0.3) -> Patch:
    """A patch of everything that is no counter."""
    g, found = torch.Generator().manual_seed(seed), {}
    for name, t in tensors_of(host.root).items():
        if t.is_floating_point():
            moved = size * torch.randn(t.shape, generator=g)
            found[name] = Dense(value=moved.abs() if name.endswith("running_var") else moved)
    return Patch(base=host.fingerprint(), deltas=found, provenance={"method": f"t{seed}"})


def of(patch: Patch, host: ClassifierHost) -> dict[str, Tensor]:
    """A patch's changes, whole; zeros where it has none."""
    shapes = {n: t for n, t in tensors_of(host.root).items() if t.is_floating_point()}
    return {n: patch.deltas[n].dense(t.shape) if n in patch.deltas else torch.zeros(t.shape) for n, t in shapes.items()}


def some(n: int, seed: int = 0, *, labels: bool = True) -> Pictures:
    g = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (n, 3, 7, 7), generator=g, dtype=torch.uint8)
    known = torch.randint(3, (n,), generator=g) if labels else torch.empty(0, dtype=torch.int64)
    return Pictures(images=images, names=tuple(map(str, range(n))), labels=known)


def same(patch: Patch, host: ClassifierHost, wanted: dict[str, Tensor], close: float = 1e-6) -> None:
    found = of(patch, host)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=close, atol=close, msg=name)


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_obeys_the_laws(rule: str, host: ClassifierHost) -> None:
    cls = catalog.load(rule)
    parts = [change_of(host, i) for i in range(1 if rule == "merge/wise_ft" else 3)]
    known = {name.removesuffix("?"): some(6, labels=name == "few") for name in cls.card.reads}
    patch = check_combine(cls(**cls.quick), host, parts, data=known)
    assert catalog.load(rule).from_plain(patch.provenance["parameters"]) == cls(**cls.quick)


@pytest.mark.parametrize("rule", [r for r in RULES if r not in ("merge/wise_ft", "merge/robust_weight_signatures")])
def test_the_order_of_changes_does_not_matter(rule: str, host: ClassifierHost) -> None:
    cls = catalog.load(rule)
    parts = [change_of(host, i) for i in range(3)]
    known = {name.removesuffix("?"): some(6, labels=name == "few") for name in cls.card.reads}
    one, other = (cls(**cls.quick)(p, host, data=known) for p in (parts, [parts[2], parts[0], parts[1]]))
    same(one, host, of(other, host), 1e-5)


# -- BCWI --------------------------------------------------------------------------------------------------


def test_bcwi_with_equal_weights_is_an_interpolation_towards_a_soup(host: ClassifierHost) -> None:
    a, b = change_of(host, 1), change_of(host, 2)
    one, other = of(a, host), of(b, host)
    same(BCWI(alpha=0.3)([a], host), host, {n: 0.3 * d for n, d in one.items()})
    same(BCWI(alpha=0.3)([a, b], host), host, {n: 0.3 * (d + other[n]) / 2 for n, d in one.items()})


def naive_fisher(net: nn.Module, pictures: Pictures, rng: torch.Generator) -> dict[str, Tensor]:
    """The definition, a picture at a time."""
    seen = picked(pictures, 500, rng)
    total = {n: torch.zeros_like(p) for n, p in net.named_parameters()}
    for k in range(len(seen)):
        at = float(torch.rand(1, generator=rng))
        net.zero_grad()
        p = net(seen.pixels(slice(k, k + 1))).softmax(1)[0]
        y = next(i for i in range(3) if at <= float(p[: i + 1].detach().sum()) or i == 2)
        p[y].log().backward()
        for n, q in net.named_parameters():
            assert q.grad is not None
            total[n] += q.grad**2 / len(seen)
    return total


def test_bcwi_with_fisher_is_the_papers_formula(host: ClassifierHost) -> None:
    part, old, new = change_of(host, 1), some(5, 1, labels=False), some(4, 2, labels=False)
    d = of(part, host)
    rng = torch.Generator().manual_seed(3)
    before = copy.deepcopy(host.root).requires_grad_(True)
    f_old = naive_fisher(before, old, rng)
    after = copy.deepcopy(host.root).requires_grad_(True)
    with torch.no_grad():
        for n, t in after.state_dict().items():
            t.add_(d.get(n, 0))
    f_new = naive_fisher(after, new, rng)
    alpha, wanted = 0.3, {n: 0.3 * t for n, t in d.items()}
    w = {n: p.detach() for n, p in host.root.named_parameters()}
    for n in f_old:
        a, b = (1 - alpha) * f_old[n].clamp(min=1e-6), alpha * f_new[n].clamp(min=1e-6)
        wanted[n] = (a * w[n] + b * (w[n] + d[n])) / (a + b) - w[n]
    assert not torch.allclose(wanted["a.weight"], 0.3 * d["a.weight"], atol=1e-2), "or Fisher changes nothing here"
    found = BCWI(alpha=alpha, importance="fisher")([part], host, data={"old": old, "new": new}, seed=3)
    same(found, host, wanted)
    with pytest.raises(BadRequest, match="old and new"):
        BCWI(importance="fisher")([part], host)
    with pytest.raises(BadRequest, match="old and new"):
        BCWI(importance="fisher")([part], Memory(tensors_of(host.root)), data={"old": old, "new": new})


# -- robust weight signatures -----------------------------------------------------------------------------


def naive_signatures(d: Sequence[dict[str, Tensor]], strength: float, first: Sequence[str]) -> dict[str, Tensor]:
    clean, robust = d[0], d[1:]
    wanted = dict(clean)
    for n in clean:
        if n in first:
            c = clean[n].flatten()
            flat = [r[n].flatten() for r in robust]
            signs = [(r - (r @ c) / (c @ c) * c).reshape(clean[n].shape) for r in flat]
            wanted[n] = clean[n] + strength * sum(signs, torch.zeros(1)) / len(robust)
        elif n.startswith("norm"):
            s = min(strength, 1.0)
            wanted[n] = (1 - s) * clean[n] + s * sum((r[n] for r in robust), torch.zeros(1)) / len(robust)
    return wanted


@pytest.mark.parametrize("strength", [1.0, 0.5, 2.0])
def test_signatures_are_the_papers_formula(host: ClassifierHost, strength: float) -> None:
    parts = [change_of(host, i) for i in range(3)]
    d = [of(p, host) for p in parts]
    for layers, first in ((1, ["z.weight", "z.bias"]), (2, ["z.weight", "z.bias", "a.weight", "a.bias"])):
        wanted = naive_signatures(d, strength, first)
        made = RobustWeightSignatures(layers=layers, strength=strength)
        same(made(parts, host), host, wanted)
        same(made([parts[0], parts[2], parts[1]], host), host, wanted)
        alone = RobustWeightSignatures(layers=layers, strength=strength, alone=True)(parts, host)
        same(alone, host, {n: w - d[0][n] for n, w in wanted.items()})
        assert {n.split(".")[0] for n in alone.deltas} == {n.split(".")[0] for n in first} | {"norm"}


def test_what_no_signature_can_be_taken_from_is_refused(host: ClassifierHost) -> None:
    parts = [change_of(host, i) for i in range(2)]
    with pytest.raises(BadRequest, match="clean model's change first"):
        RobustWeightSignatures()(parts[:1], host)
    with pytest.raises(Unsupported, match="no --stream"):
        RobustWeightSignatures()(parts, Memory(tensors_of(host.root)))
    flat = ClassifierHost(nn.Sequential(nn.Linear(2, 2)), name="flat", labels=("a", "b"), head="0")
    nothing = Patch(base=flat.fingerprint(), deltas={"0.bias": Dense(value=torch.ones(2))})
    with pytest.raises(Unsupported, match="flat has none"):
        RobustWeightSignatures()([nothing, nothing], flat)


# -- DARE --------------------------------------------------------------------------------------------------


def test_dare_drops_a_share_of_entries_and_enlarges_the_rest(host: ClassifierHost) -> None:
    a, b = change_of(host, 1), change_of(host, 2)
    one, other = (DARE(drop=0.75)([p], host) for p in (a, b))
    d, kept = of(a, host), of(one, host)
    every, left = (torch.cat([t.flatten() for t in x.values()]) for x in (d, kept))
    torch.testing.assert_close(left, torch.where(left == 0, 0.0, 4 * every))
    assert 0.2 < float((left != 0).float().mean()) < 0.3, f"of {len(every)} entries"
    thin = torch.cat([t.flatten() for t in of(other, host).values()])
    both = float(((left != 0) & (thin != 0)).float().mean())
    assert 0.03 < both < 0.1, "each change has draws of its own"
    merged = of(DARE(drop=0.75, weights=(0.3, 2.0))([b, a], host), host)
    same(Patch(base="", deltas={n: Dense(value=v) for n, v in merged.items()}), host,
         {n: 0.3 * v + 2.0 * kept[n] for n, v in of(other, host).items()})  # fmt: skip
    same(DARE(drop=0.0)([a, b], host), host, {n: (v + of(b, host)[n]) / 2 for n, v in d.items()})
    assert DARE(drop=0.75)([a], host, seed=1).sha256() != one.sha256()
    with pytest.raises(BadRequest, match="leaves nothing"):
        DARE(drop=1.0)([a], host)


def test_draws_are_one_row_of_numbers_wherever_it_is_read() -> None:
    row = _uniform("a", 0, torch.Size((5, 7))).reshape(-1)
    for at in range(30):
        assert torch.equal(_uniform("a", at, torch.Size((3,))), row[at : at + 3])
    many = _uniform("b", 0, torch.Size((100_000,)))
    assert abs(float(many.mean()) - 0.5) < 0.005
    assert not torch.equal(many[:35], row)


# -- aTLAS -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", [True, False])
def test_atlas_learns_as_a_plain_loop_does(host: ClassifierHost, labels: bool) -> None:
    parts, few = [change_of(host, i) for i in range(2)], some(9, labels=labels)
    d = [of(p, host) for p in parts]
    state = {n: t.detach() for n, t in host.root.state_dict().items()}
    names = [n for n, _ in sorted(host.root.named_parameters())]
    c = torch.zeros(len(names), 2, requires_grad=True)
    optimiser = torch.optim.AdamW([c], lr=0.1, weight_decay=0.1)
    for k in range(6):
        rows = stream(9, 4, 5, k, "few")
        moved = {n: state[n] + c[j, 0] * d[0][n] + c[j, 1] * d[1][n] for j, n in enumerate(names)}
        logits = functional_call(host.root, {**state, **moved}, (few.pixels(rows),))
        p = logits.softmax(1)
        loss = nn.functional.cross_entropy(logits, few.labels[rows]) if labels else -(p * p.log()).sum(1).mean()
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_([c], 1.0)
        optimiser.param_groups[0]["lr"] = 0.1 * 0.5 * (1 + math.cos(math.pi * k / 6))
        optimiser.step()
    wanted = {n: c[j, 0].detach() * d[0][n] + c[j, 1].detach() * d[1][n] for j, n in enumerate(names)}
    wanted |= {n: torch.zeros_like(t) for n, t in d[0].items() if n not in names}
    found = ATLAS(steps=6, batch=4)(parts, host, data={"few": few}, seed=5)
    assert float(c.detach().abs().min()) > 0
    same(found, host, wanted, 1e-5)


def test_atlas_explains_its_pictures_better_than_any_one_coefficient(host: ClassifierHost) -> None:
    parts, few = [change_of(host, i) for i in (1, 2)], some(64)

    def loss(patch: Patch) -> float:
        with torch.no_grad(), patch.applied(host):
            return float(nn.functional.cross_entropy(host.logits(few.pixels()), few.labels))

    one = min(loss(TaskArithmetic(weights=(c, c))(parts, host)) for c in (-1.0, -0.5, 0.0, 0.25, 0.5, 1.0))
    assert loss(ATLAS(steps=40)(parts, host, data={"few": few})) < one - 1e-3


def test_what_cannot_be_learnt_is_refused(host: ClassifierHost) -> None:
    part = change_of(host, 1)
    with pytest.raises(BadRequest, match="needs data called 'few'"):
        ATLAS()([part], host)
    with pytest.raises(BadRequest, match="one of both is empty"):
        ATLAS()([part], host, data={"few": some(3)[:0]})
    with pytest.raises(BadRequest, match="no --stream"):
        ATLAS()([part], Memory(tensors_of(host.root)), data={"few": some(3)})


# -- as a user ---------------------------------------------------------------------------------------------


def test_the_command_takes_data_and_matches_their_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    digits = load("tiny/digits")
    g = torch.Generator().manual_seed(0)
    for name in ("one", "two"):
        moved = 0.05 * torch.randn(tensors_of(digits.root)["head.weight"].shape, generator=g)
        Patch(base=digits.fingerprint(), deltas={"head.weight": Dense(value=moved)}).save(
            tmp_path / f"{name}.safetensors"
        )
    images = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
    named: dict[str, Any] = {"images": images, "labels": np.array([0, 1, 0, 1, 1, 0])}
    np.savez(tmp_path / "few.npz", **named, classes=np.array(["7", "3"]))
    command = ["merge", str(tmp_path / "one.safetensors"), str(tmp_path / "two.safetensors"), "--model", "tiny/digits"]
    few = ["--method", "atlas", "--steps", "3", "--data", f"few={tmp_path / 'few.npz'}"]
    assert main([*command, *few, "--out", str(tmp_path / "out")]) == 0, capsys.readouterr().err
    merged = Patch.load(tmp_path / "out" / "patch.safetensors")
    parts = [Patch.load(tmp_path / f"{name}.safetensors") for name in ("one", "two")]
    right = Pictures(
        images=torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(),
        names=tuple(map(str, range(6))),
        labels=torch.tensor([7, 3, 7, 3, 3, 7]),
    )
    wanted = ATLAS(steps=3)(parts, digits, data={"few": right})
    shape = tensors_of(digits.root)["head.weight"].shape
    torch.testing.assert_close(merged.deltas["head.weight"].dense(shape), wanted.deltas["head.weight"].dense(shape))
    assert main([*command, "--method", "atlas", "--out", str(tmp_path / "no")]) == 2
    assert "needs data called 'few'" in capsys.readouterr().err
    np.savez(tmp_path / "odd.npz", **named, classes=np.array(["7", "cat"]))
    assert (
        main([*command, "--method", "atlas", "--data", f"few={tmp_path / 'odd.npz'}", "--out", str(tmp_path / "n")])
        == 2
    )
    assert "cat" in capsys.readouterr().err
