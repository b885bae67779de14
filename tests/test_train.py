"""The loop: student and teacher in one model, stateless randomness, checkpoints, resuming, divergence."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from palimpsest.core.card import Card
from palimpsest.core.concept import Concept, Request
from palimpsest.core.delta import Delta, Dense, LowRank
from palimpsest.core.errors import BadRequest, Damaged, Diverged, PalimpsestError
from palimpsest.core.files import read_tensors
from palimpsest.core.fingerprint import fingerprint, quick_state
from palimpsest.core.method import ModelEdit
from palimpsest.core.patch import Hook, Patch
from palimpsest.core.pictures import Material
from palimpsest.core.trace import Trace
from palimpsest.train import checkpoint, loop
from palimpsest.train.factored import Factored
from palimpsest.train.finetune import FineTune
from palimpsest.train.gradients import gradients_of
from palimpsest.train.loop import TrainStep
from palimpsest.train.randomness import generator
from palimpsest.train.trained import Trained
from palimpsest.train.training import Training

CARD = Card(name="Fit", title="T", year=2024, paper="p", family="f", needs="Encoder", claim="c")
REQUEST = Request(target=(Concept(name="star"),))
W = "net.0.weight"


class Eye:
    """A host that embeds; its tensors want gradients, as freshly built modules do."""

    name = "eye"
    knows = None
    device = torch.device("cpu")

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        torch.manual_seed(0)
        self.root = nn.ModuleDict({"net": nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3))}).to(dtype).eval()

    def parts(self, role: str) -> dict[str, nn.Module]:
        return {"net": self.root["net"]} if role == "backbone" else {}

    def fingerprint(self) -> str:
        return fingerprint(self.root)

    def embed(self, images: Tensor) -> Tensor:
        return self.root["net"](images.to(self.root["net"][0].weight.dtype))


@dataclass(frozen=True, kw_only=True)
class Fit(FineTune):
    """Moves the student away from the teacher; stops or breaks on request."""

    card = CARD
    steps: int = 6
    lr: float = 0.05
    batch: int = 4
    rank: int = 0
    names: tuple[str, ...] = (W, "net.2.bias")
    stop: ClassVar[int] = -1
    error: ClassVar[type[BaseException]] = KeyboardInterrupt
    factor: ClassVar[float] = 1.0

    def trains(self, host: Any) -> Sequence[str]:
        return self.names

    def loss(self, step: TrainStep) -> Tensor:
        x = torch.randn(step.batch, 6, generator=step.generator())
        with step.teacher():
            goal = step.host.embed(x)
        if step.index == self.stop:
            raise self.error()
        step.log("size", float(x.norm()))
        return (step.host.embed(x).float() * self.factor + goal.float()).square().mean()


def same(a: Any, b: Any) -> bool:
    return set(a.deltas) == set(b.deltas) and all(
        torch.equal(t, b.deltas[n].tensors()[k]) for n, d in a.deltas.items() for k, t in d.tensors().items()
    )


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "EVERY", 2)


@pytest.mark.parametrize("rank", [0, 2])
def test_the_loop_is_plain_adam_on_the_loss(rank: int) -> None:
    patch = Fit(rank=rank, names=(W,))(Eye(), REQUEST, seed=3)
    host = Eye()
    old = host.root["net"][0].weight.detach().clone()
    if rank:
        up, down = torch.zeros(4, 2, requires_grad=True), torch.randn(2, 6, generator=generator(3, "down", W))
        down = (down / 6**0.5).requires_grad_(True)
        leaves = [up, down]
    else:
        leaves = [old.clone().requires_grad_(True)]
    adam = torch.optim.Adam(leaves, lr=0.05)
    for k in range(6):
        x = torch.randn(4, 6, generator=generator(3, "step", k))
        weight = old + leaves[0] @ leaves[1] if rank else leaves[0]
        first, last = host.root["net"][0], host.root["net"][2]
        out = torch.tanh(x @ weight.T + first.bias.detach()) @ last.weight.detach().T + last.bias.detach()
        adam.zero_grad()
        (out + host.embed(x).detach()).square().mean().backward()
        adam.step()
    expected = leaves[0] @ leaves[1] if rank else leaves[0] - old
    assert torch.allclose(patch.deltas[W].dense(old.shape), expected, atol=1e-5)
    assert isinstance(patch.deltas[W], LowRank) == bool(rank)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("stop", [1, 3, 4])
def test_stopped_and_resumed_equals_unbroken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int, rank: int
) -> None:
    whole = Trace()
    unbroken = Fit(rank=rank)(Eye(), REQUEST, seed=1, trace=whole)
    host = Eye()
    before = quick_state(host.root)
    monkeypatch.setattr(Fit, "stop", stop)
    with pytest.raises(KeyboardInterrupt):
        Fit(rank=rank)(host, REQUEST, seed=1, trace=Trace(folder=tmp_path))
    assert quick_state(host.root) == before
    monkeypatch.setattr(Fit, "stop", -1)
    again = Trace(folder=tmp_path, resume=True)
    assert same(Fit(rank=rank)(host, REQUEST, seed=1, trace=again), unbroken)
    assert again.log == whole.log
    assert again.forwards == {"backbone": 2 * 4 * (6 - stop)}  # none of the done steps is done again


def test_a_crash_resumes_from_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unbroken = Fit()(Eye(), REQUEST, seed=1)
    monkeypatch.setattr(Fit, "stop", 5)
    monkeypatch.setattr(Fit, "error", RuntimeError)
    with pytest.raises(RuntimeError):
        Fit()(Eye(), REQUEST, seed=1, trace=Trace(folder=tmp_path))
    monkeypatch.setattr(Fit, "stop", -1)
    again = Trace(folder=tmp_path, resume=True)
    assert same(Fit()(Eye(), REQUEST, seed=1, trace=again), unbroken)
    assert again.forwards == {"backbone": 2 * 4 * 2}  # the checkpoint was written after step 4


def test_a_killed_process_resumes(tmp_path: Path) -> None:
    code = (
        f"import os, sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "import test_train as t\n"
        "t.loop.EVERY = 2\n"
        "def die(*a): os.kill(os.getpid(), 9)\n"
        "t.Fit.stop, t.Fit.error = 5, die\n"
        f"t.Fit()(t.Eye(), t.REQUEST, seed=1, trace=t.Trace(folder=t.Path({str(tmp_path)!r})))\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    again = Fit()(Eye(), REQUEST, seed=1, trace=Trace(folder=tmp_path, resume=True))
    assert same(again, Fit()(Eye(), REQUEST, seed=1))


def test_a_finished_run_resumes_to_its_result(tmp_path: Path) -> None:
    first = Fit()(Eye(), REQUEST, trace=Trace(folder=tmp_path))
    again = Trace(folder=tmp_path, resume=True)
    assert same(Fit()(Eye(), REQUEST, trace=again), first)
    assert again.forwards == {}


def test_without_resume_a_run_starts_anew(tmp_path: Path) -> None:
    Fit()(Eye(), REQUEST, trace=Trace(folder=tmp_path))
    trace = Trace(folder=tmp_path)
    Fit()(Eye(), REQUEST, trace=trace)
    assert len([1 for _, name, _ in trace.log if name == "loss"]) == 6


@pytest.mark.parametrize(
    ("method", "request_", "seed", "word"),
    [
        (Fit(lr=0.1), REQUEST, 0, "parameters"),
        (Fit(), Request(target=(Concept(name="moon"),)), 0, "request"),
        (Fit(), REQUEST, 1, "seed"),
    ],
)
def test_checkpoints_of_other_runs_are_refused(
    tmp_path: Path, method: Fit, request_: Request, seed: int, word: str
) -> None:
    Fit()(Eye(), REQUEST, trace=Trace(folder=tmp_path))
    with pytest.raises(BadRequest, match=f"another run: its {word}"):
        method(Eye(), request_, seed=seed, trace=Trace(folder=tmp_path, resume=True))


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    Fit()(Eye(), REQUEST, trace=Trace(folder=tmp_path))
    other = Eye()
    with torch.no_grad():
        other.root["net"][0].bias.add_(1)
    with pytest.raises(BadRequest, match="its base"):
        Fit()(other, REQUEST, trace=Trace(folder=tmp_path, resume=True))


@pytest.mark.parametrize("damage", ["cut", "pickle", "empty"])
def test_damaged_checkpoints_are_refused(tmp_path: Path, damage: str) -> None:
    Fit()(Eye(), REQUEST, trace=Trace(folder=tmp_path))
    path = tmp_path / checkpoint.NAME
    whole = path.read_bytes()
    path.write_bytes({"cut": whole[: len(whole) // 2], "pickle": b"\x80\x04" + whole, "empty": b""}[damage])
    with pytest.raises(Damaged):
        Fit()(Eye(), REQUEST, trace=Trace(folder=tmp_path, resume=True))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"step": -1}, "'step' is -1"),
        ({"step": "4"}, "'step' is '4'"),
        ({"format": 2}, "'format' is 2"),
        ({"more": 1}, "'more' is not known"),
        ({"log": [[0, "loss"]]}, "a list of 3"),
        ({"run": []}, "'run' is a list"),
        ({"leaf|net.0.weight": None}, "is missing"),
        ({"leaf|net.0.weight": torch.ones(1)}, "has the shape"),
        ({"leaf|net.0.weight": torch.full((4, 6), float("nan"))}, "not finite"),
        ({"optimiser|net.0.weight|exp_avg": torch.ones(1)}, "has the shape"),
        ({"other": torch.ones(1)}, "no checkpoint does"),
    ],
)
def test_hostile_checkpoints_are_refused(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    """Before, a tensor of one entry was broadcast over the whole leaf without a word."""
    Fit()(Eye(), REQUEST, trace=Trace(folder=tmp_path))
    path = tmp_path / checkpoint.NAME
    meta, tensors = read_tensors(path, "a checkpoint")
    header = json.loads(meta[checkpoint.KEY]) | {k: v for k, v in change.items() if "|" not in k and k != "other"}
    tensors = {k: t for k, t in (tensors | change).items() if isinstance(t, Tensor)}
    save_file(tensors, str(path), metadata={checkpoint.KEY: json.dumps(header)})
    with pytest.raises(Damaged, match=says):
        Fit()(Eye(), REQUEST, trace=Trace(folder=tmp_path, resume=True))


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        if tmp_path.joinpath(checkpoint.NAME).exists():
            raise OSError(28, "No space left on device")
        real(*args, **kwargs)

    real = checkpoint.save_file
    monkeypatch.setattr(checkpoint, "save_file", full)
    host = Eye()
    before = quick_state(host.root)
    with pytest.raises(PalimpsestError, match="Free some space"):
        Fit()(host, REQUEST, trace=Trace(folder=tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == [checkpoint.NAME]
    assert quick_state(host.root) == before
    monkeypatch.setattr(checkpoint, "save_file", real)
    assert same(Fit()(host, REQUEST, trace=Trace(folder=tmp_path, resume=True)), Fit()(Eye(), REQUEST))


def test_divergence_is_an_error_that_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Eye()
    before = quick_state(host.root)
    monkeypatch.setattr(Fit, "factor", float("nan"))
    with pytest.raises(Diverged, match=r"loss became nan at step 1 of 6.*lower lr"):
        Fit()(host, REQUEST)
    assert quick_state(host.root) == before


def test_student_and_teacher_share_what_is_not_trained() -> None:
    host = Eye()
    trained = Trained(host.root, [W])
    first, last = host.root["net"][0], host.root["net"][2]
    mine, theirs, shared = trained.leaves[W], first.weight, last.weight
    with trained.student():
        assert first.weight.data_ptr() == mine.data_ptr()
        assert last.weight is shared
        with trained.teacher():
            assert first.weight is theirs
            assert not torch.is_grad_enabled()
        assert first.weight.data_ptr() == mine.data_ptr()
        with pytest.raises(RuntimeError), trained.teacher():
            raise RuntimeError
        assert first.weight.data_ptr() == mine.data_ptr()
    assert first.weight is theirs
    assert list(dict(host.root.named_parameters())) == list(dict(Eye().root.named_parameters()))


def test_the_host_gets_its_gradient_flags_back_and_no_gradients() -> None:
    host = Eye()
    host.root["net"][0].bias.requires_grad_(False)
    flags = {n: p.requires_grad for n, p in host.root.named_parameters()}
    Fit()(host, REQUEST)
    assert {n: p.requires_grad for n, p in host.root.named_parameters()} == flags
    assert all(p.grad is None for p in host.root.parameters())


def test_shared_tensors_are_trained_once_and_change_everywhere() -> None:
    host = Eye()
    host.root["copy"] = nn.Linear(6, 4)
    host.root["copy"].weight = host.root["net"][0].weight
    trained = Trained(host.root, [W, "copy.weight"])
    assert list(trained.leaves) == [W]
    with trained.student():
        assert host.root["copy"].weight is host.root["net"][0].weight
        assert host.root["copy"].weight.data_ptr() == trained.leaves[W].data_ptr()


def test_half_precision_models_are_trained_in_float32() -> None:
    host = Eye(torch.bfloat16)
    patch = Fit(lr=1e-4)(host, REQUEST)
    assert patch.deltas[W].tensors()["value"].dtype == torch.float32
    assert patch.deltas[W].tensors()["value"].abs().max() < 1e-3  # steps that bfloat16 itself could not hold
    assert host.root["net"][0].weight.dtype == torch.bfloat16


def test_clipping_limits_all_gradients_together(monkeypatch: pytest.MonkeyPatch) -> None:
    norms = []

    class Watched(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            grads = [p.grad for group in self.param_groups for p in group["params"]]
            norms.append(float(torch.cat([g.flatten() for g in grads]).norm()))
            return super().step(closure)

    monkeypatch.setattr(Fit, "clip", 1e-3)
    monkeypatch.setattr(Fit, "optimiser", lambda self, leaves: Watched(list(leaves), lr=self.lr))
    Fit()(Eye(), REQUEST)
    assert norms == pytest.approx([1e-3] * 6, rel=1e-2)


def test_draws_depend_on_their_purpose_only() -> None:
    def draw(*what: object) -> Tensor:
        return torch.randn(4, generator=generator(0, *what))

    assert torch.equal(draw("step", 3), draw("step", 3))
    assert not torch.equal(draw("step", 3), draw("step", 4))
    assert not torch.equal(draw("step", 31), draw("step", 3, 1))


def test_bad_parameters_are_refused() -> None:
    for bad, word in (({"steps": 0}, "steps"), ({"batch": 0}, "batch"), ({"lr": -1.0}, "lr"), ({"rank": -1}, "rank")):
        with pytest.raises(BadRequest, match=word):
            Fit(**bad)  # type: ignore[arg-type]
    with pytest.raises(BadRequest, match="no parameter 'none'"):
        Fit(names=("none",))(Eye(), REQUEST)
    with pytest.raises(BadRequest, match="found no parameter"):
        Fit(names=("net.2.bias",), rank=2)(Eye(), REQUEST)


class Twofold(Fit):
    """Two losses, and a tensor trained beside that no patch holds."""

    def loss(self, step: TrainStep) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        first = super().loss(step)
        return first, (step.host.embed(torch.ones(1, 6)) - step.free["goal"]).square().sum()

    def free(self, context: Any, seed: int) -> dict[str, Tensor]:
        return {"goal": torch.full((3,), 0.5)}

    def free_options(self) -> dict[str, Any]:
        return {"lr": 0.01}


class Yielding(Twofold):
    def loss(self, step: TrainStep) -> Any:
        yield from super().loss(step)


class Summed(Twofold):
    def loss(self, step: TrainStep) -> Tensor:  # type: ignore[override]
        first, second = super().loss(step)
        return first + second


def test_several_losses_add_up() -> None:
    one, two = Summed(names=(W,))(Eye(), REQUEST), Twofold(names=(W,))(Eye(), REQUEST)
    assert set(two.deltas) == {W}
    assert same(two, Yielding(names=(W,))(Eye(), REQUEST))
    shape = torch.Size([4, 6])
    assert torch.allclose(one.deltas[W].dense(shape), two.deltas[W].dense(shape), atol=1e-5)


def test_what_is_trained_beside_comes_back_when_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unbroken = Twofold()(Eye(), REQUEST, seed=1)
    assert not same(unbroken, Fit()(Eye(), REQUEST, seed=1))
    monkeypatch.setattr(Fit, "stop", 3)
    with pytest.raises(KeyboardInterrupt):
        Twofold()(Eye(), REQUEST, seed=1, trace=Trace(folder=tmp_path))
    monkeypatch.setattr(Fit, "stop", -1)
    again = Trace(folder=tmp_path, resume=True)
    assert same(Twofold()(Eye(), REQUEST, seed=1, trace=again), unbroken)


class Averaged(Fit):
    """Moves towards its own averaged weights, which steps write by themselves."""

    def kept(self, context: Any, seed: int) -> dict[str, Tensor]:
        return {"mean": torch.ones(4, 6), "count": torch.zeros(1, dtype=torch.int64)}

    def loss(self, step: TrainStep) -> Tensor:
        return super().loss(step) + (step.trained.leaves[W] - step.kept["mean"]).square().sum()

    def after(self, step: TrainStep) -> None:
        assert not torch.is_grad_enabled()
        assert step.host.root["net"][0].weight is step.trained.old[W]
        with step.student():
            assert step.host.root["net"][0].weight.data_ptr() == step.trained.leaves[W].data_ptr()
        step.kept["mean"].lerp_(step.trained.leaves[W], 0.5)
        step.kept["count"] += 1


def test_kept_tensors_are_written_by_steps_and_come_back_when_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = []
    monkeypatch.setattr(Averaged, "settled", lambda self, step: counts.append(int(step.kept["count"])) or {})
    unbroken = Averaged()(Eye(), REQUEST, seed=1)
    monkeypatch.setattr(Fit, "stop", 3)
    with pytest.raises(KeyboardInterrupt):
        Averaged()(Eye(), REQUEST, seed=1, trace=Trace(folder=tmp_path))
    monkeypatch.setattr(Fit, "stop", -1)
    again = Trace(folder=tmp_path, resume=True)
    assert same(Averaged()(Eye(), REQUEST, seed=1, trace=again), unbroken)
    assert counts == [6, 6]
    assert again.forwards == {"backbone": 2 * 4 * 3}


def test_the_schedule_is_a_factor_of_every_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = []

    class Watched(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            rates.extend(group["lr"] for group in self.param_groups)
            return super().step(closure)

    monkeypatch.setattr(Fit, "optimiser", lambda self, leaves: Watched(list(leaves), lr=self.lr))
    monkeypatch.setattr(Twofold, "schedule", lambda self, k, total: k / total)
    Twofold(names=(W,), steps=4)(Eye(), REQUEST)
    assert rates == pytest.approx([rate * k / 4 for k in range(4) for rate in (0.05, 0.01)])


def test_what_settles_at_the_end_is_part_of_the_patch(monkeypatch: pytest.MonkeyPatch) -> None:
    def settled(self: Fit, step: TrainStep) -> dict[str, Delta]:
        assert step.index == step.total == 6
        with step.student():
            return {"net.0.bias": Dense(value=step.host.root["net"][0].weight.detach().sum(1))}

    plain = Fit()(Eye(), REQUEST)
    monkeypatch.setattr(Fit, "settled", settled)
    patch = Fit()(Eye(), REQUEST)
    student = Eye().root["net"][0].weight + patch.deltas[W].tensors()["value"]
    assert torch.allclose(patch.deltas["net.0.bias"].tensors()["value"], student.sum(1), atol=1e-6)
    assert set(patch.deltas) == {*plain.deltas, "net.0.bias"}


def test_hooks_get_what_was_trained_beside(monkeypatch: pytest.MonkeyPatch) -> None:
    hook = lambda self, request, data, fitted: (Hook(id="erase/esd", params={}, tensors=fitted.free),)  # noqa: E731
    monkeypatch.setattr(Twofold, "hooks", hook)
    (found,) = Twofold(names=(W,))(Eye(), REQUEST).hooks
    assert found.tensors["goal"].shape == (3,)
    assert not bool((found.tensors["goal"] == 0.5).any())
    assert not found.tensors["goal"].requires_grad


def test_a_third_network_holds_other_tensors_and_passes_gradients_on() -> None:
    host = Eye()
    trained = Trained(host.root, [W])
    other = torch.full((4, 6), 0.1, requires_grad=True)
    x = torch.randn(2, 6, generator=generator(0), requires_grad=True)
    first, last = host.root["net"][0], host.root["net"][2]
    with trained.frozen(), trained.student():
        with trained.holding({W: other}):
            found = host.embed(x)
        assert first.weight.data_ptr() == trained.leaves[W].data_ptr()
        with trained.holding({}):
            original = host.embed(x)
    expected = torch.tanh(x @ other.T + first.bias) @ last.weight.T + last.bias
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(original, host.embed(x))
    one = torch.autograd.grad(found.sum(), [other, x])
    torch.testing.assert_close(one, torch.autograd.grad(expected.sum(), [other, x]))
    assert bool(torch.autograd.grad(original.sum(), x)[0].any())
    with pytest.raises(BadRequest, match=r"'net\.2\.bias' is not among"), trained.holding({"net.2.bias": other}):
        pass


@dataclass(frozen=True, kw_only=True)
class Pull(Training):
    """Pulls some tensors to 0: a training without a card."""

    steps: int = 2
    lr: float = 0.05
    batch: int = 4
    names: tuple[str, ...] = (W,)

    def trains(self, host: Any) -> Sequence[str]:
        return self.names

    def loss(self, step: TrainStep) -> Tensor:
        return torch.stack([leaf.square().sum() for leaf in step.trained.leaves.values()]).sum()


@dataclass(frozen=True, kw_only=True)
class Twice(ModelEdit):
    """A system that holds two trainings."""

    card = CARD
    first: Pull = Pull()
    second: Pull = Pull(steps=3, names=("net.0.bias",))

    def run(self, host: Any, request: Request, *, data: Any, rng: torch.Generator, trace: Trace) -> Patch:
        one, two = (t.fit(host, request, data=data, seed=1, trace=trace) for t in (self.first, self.second))
        return Patch(base="", deltas={**one.deltas, **two.deltas})


def test_a_system_may_hold_trainings() -> None:
    patch = Twice()(Eye(), REQUEST)
    assert same(patch, Twice()(Eye(), REQUEST))
    assert set(patch.deltas) == {W, "net.0.bias"}
    one = Pull().fit(Eye(), REQUEST, data=Material(), seed=1, trace=Trace())
    assert torch.equal(one.deltas[W].tensors()["value"], patch.deltas[W].tensors()["value"])
    assert [(k, name) for k, name, _ in one.log] == [(0, "loss"), (1, "loss")]
    other = Twice(second=Pull(steps=5))
    assert Twice.from_plain(json.loads(json.dumps(other.parameters()))) == other
    assert Twice.from_plain({"second": {"lr": 0.5}}).second == Pull(lr=0.5)
    for bad in ({"steps": 0}, {"batch": 0}, {"lr": -1.0}):
        with pytest.raises(BadRequest, match=f"{next(iter(bad))} is"):
            Pull(**bad)


# -- the loop without a model ------------------------------------------------------------------------------


def descend(trace: Trace, stop: int = -1, steps: int = 6, called: str = "loss") -> Tensor:
    """A tensor moved towards drawn points, by draws that go on from step to step."""
    x, draws = torch.zeros(3, requires_grad=True), torch.Generator().manual_seed(0)

    def loss(k: int) -> Tensor:
        if k == stop:
            raise KeyboardInterrupt
        return (x - torch.randn(3, generator=draws)).square().sum()

    adam = torch.optim.Adam([x], lr=0.1)
    loop.minimise({"x": x}, loss, steps=steps, optimiser=adam, trace=trace, run={"a": 1}, draws=draws, called=called)
    return x.detach()


def test_any_tensors_can_be_minimised_over_and_resumed(tmp_path: Path) -> None:
    unbroken, trace = descend(Trace()), Trace()
    x, draws = torch.zeros(3, requires_grad=True), torch.Generator().manual_seed(0)
    adam = torch.optim.Adam([x], lr=0.1)
    for _ in range(6):
        adam.zero_grad()
        (x - torch.randn(3, generator=draws)).square().sum().backward()
        adam.step()
    assert torch.equal(unbroken, x.detach())
    with pytest.raises(KeyboardInterrupt):
        descend(Trace(folder=tmp_path), stop=3)
    assert torch.equal(descend(Trace(folder=tmp_path, resume=True)), unbroken)
    descend(trace, called="error")
    assert [(k, name) for k, name, _ in trace.log] == [(k, "error") for k in range(6)]


def test_a_loss_that_is_no_number_stops_any_loop() -> None:
    x = torch.zeros(2, requires_grad=True)
    for value, word in ((torch.nan, "loss became nan at step 1 of 3"), (torch.inf, "loss became inf")):
        adam = torch.optim.Adam([x])
        with pytest.raises(Diverged, match=word):
            loop.minimise({"x": x}, lambda k, v=value: (x * 0 + v).sum(), steps=3, optimiser=adam)
    with pytest.raises(Diverged, match="gradient became"):
        loop.minimise({"x": x}, lambda k: x.sqrt().sum(), steps=3, optimiser=torch.optim.Adam([x]))
    assert bool((x == 0).all())


def test_gradients_are_combined_by_the_method_and_what_it_leaves_out_stays() -> None:
    mask = torch.arange(24).reshape(4, 6) % 3 == 0

    class Masked(Twofold):
        apart = True

        def gradient(self, step: TrainStep, parts: Any) -> Any:
            assert set(parts[0]) == {W, "net.2.bias"}
            assert set(parts[1]) == {W, "net.2.bias", "goal"}
            return {W: parts[0][W] * mask}

    patch = Masked()(Eye(), REQUEST)
    assert set(patch.deltas) == {W}
    assert torch.equal(patch.deltas[W].dense(mask.shape) != 0, mask)


def test_leaves_that_share_a_gradient_tensor_are_kept_apart() -> None:
    class Shift(Fit):
        def loss(self, step: TrainStep) -> Tensor:
            named = dict(step.host.root.named_parameters())
            return (named["net.0.bias"] + named["extra"]).sum()

        def gradient(self, step: TrainStep, parts: Any) -> Any:
            parts[0]["extra"].zero_()
            return parts[0]

    host = Eye()
    host.root.register_parameter("extra", nn.Parameter(torch.zeros(4)))
    patch = Shift(names=("net.0.bias", "extra"), steps=1)(host, REQUEST)
    assert set(patch.deltas) == {"net.0.bias"}


def test_gradients_of_the_model_where_it_stands() -> None:
    host = Eye()
    host.root.requires_grad_(False)
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    before = quick_state(host.root)
    losses = [lambda rows=rows: host.embed(x[rows]).square().sum() for rows in (slice(0, 2), slice(2, 5))]
    found = gradients_of(host.root, [W, "net.2.bias"], losses)
    assert quick_state(host.root) == before
    assert not any(p.requires_grad for p in host.root.parameters())
    with torch.enable_grad():
        weight = host.root["net"][0].weight.detach().clone().requires_grad_(True)
        first, last = host.root["net"][0], host.root["net"][2]
        out = torch.tanh(x @ weight.T + first.bias) @ last.weight.T + last.bias
        (expected,) = torch.autograd.grad(out.square().sum(), weight)
    assert torch.allclose(found[W], expected, atol=1e-5)
    with pytest.raises(BadRequest, match="'none'"):
        gradients_of(host.root, ["none"], losses)


# -- factored weights ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(6, 5), (2, 3, 6)),
        (nn.Linear(6, 5, bias=False), (4, 6)),
        (nn.Conv2d(4, 6, 3, stride=2, padding=1), (2, 4, 8, 8)),
        (nn.Conv2d(4, 6, 1), (2, 4, 8, 8)),
        (nn.Conv2d(4, 6, 3, groups=2, padding=1), (2, 4, 8, 8)),  # by the sum
        (nn.Embedding(7, 5), None),
        (nn.Conv1d(4, 6, 3), (2, 4, 8)),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else "",
)
def test_factored_weights_answer_and_learn_as_their_sum(layer: nn.Module, shape: tuple[int, ...] | None) -> None:
    layer = layer.double().requires_grad_(False)
    whole: Tensor = layer.get_parameter("weight")
    draws = torch.Generator().manual_seed(0)
    x = torch.arange(7) if shape is None else torch.randn(shape, generator=draws, dtype=torch.float64)
    up = torch.randn(len(whole), 2, generator=draws, dtype=torch.float64, requires_grad=True)
    down = torch.randn(2, whole[0].numel(), generator=draws, dtype=torch.float64, requires_grad=True)
    asked = Factored(whole.data, up, down)
    expected = torch.func.functional_call(layer, {"weight": whole.data + (up @ down).view(whole.shape)}, (x,))
    layer._parameters["weight"] = asked  # type: ignore[assignment]
    found = layer(x)
    tight = not isinstance(layer, (nn.Embedding, nn.Conv1d)) and getattr(layer, "groups", 1) == 1
    torch.testing.assert_close(found, expected, rtol=1e-12 if tight else 1e-6, atol=1e-12 if tight else 1e-6)
    weigh = torch.randn(found.shape, generator=draws, dtype=torch.float64)
    wanted = torch.autograd.grad((expected * weigh).sum(), (up, down))
    for one, other in zip(torch.autograd.grad((found * weigh).sum(), (up, down)), wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_factored_weights_look_like_what_they_stand_for() -> None:
    whole = torch.randn(5, 6).half()
    weight = Factored(whole, torch.randn(5, 2), torch.randn(2, 6))
    assert (weight.shape, weight.dtype, weight.device, weight.ndim) == (whole.shape, whole.dtype, whole.device, 2)
    assert torch.equal(weight.float(), weight.sum().float())
    assert torch.equal(torch.mm(weight, torch.eye(6).half()), weight.sum())  # type: ignore[arg-type]


def test_a_low_rank_student_writes_no_whole_weight() -> None:
    """No tensor of a trained weight's size is kept for the backward pass, but the weights themselves."""
    eye = Eye()
    names = ["net.0.weight", "net.2.weight"]
    trained = Trained(eye.root, names, rank=1)
    own = {p.data_ptr() for p in eye.root.parameters()}
    kept: list[Tensor] = []

    def note(t: Tensor) -> Tensor:
        kept.append(t)
        return t

    with trained.frozen(), trained.student(), torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        eye.embed(torch.randn(5, 6)).square().mean().backward()
    sizes = {p.numel() for p in trained.old.values()}
    assert kept
    assert not [t.shape for t in kept if t.numel() in sizes and t.data_ptr() not in own]
    assert all(trained.leaves[n + "|up"].grad is not None for n in names)


def half(steps: int, *, gain: float = 1.0, folder: Path | None = None, resume: bool = False) -> tuple[Tensor, Trace]:
    """A leaf in float32 that acts through a float16 layer; `gain`: of the loss."""
    through = nn.Linear(4, 4, bias=False).half()
    leaf = torch.ones(4, requires_grad=True)
    trace = Trace(folder=folder, resume=resume)
    sgd = torch.optim.SGD([leaf], lr=1e6 / gain)

    def loss(k: int) -> Tensor:
        return gain * 1e-9 * leaf.half().sum().float()

    loop.minimise({"x": leaf}, loss, steps=steps, optimiser=sgd, trace=trace, run={}, through=through)
    return leaf.detach(), trace


def test_gradients_too_small_for_float16_arrive() -> None:
    assert torch.tensor(1e-9).half() == 0
    moved, _ = half(1)
    assert torch.allclose(1 - moved, torch.full((4,), 1e-3), rtol=1e-2)
    plain = torch.ones(4, requires_grad=True)
    sgd = torch.optim.SGD([plain], lr=1e6)
    loop.minimise({"x": plain}, lambda k: 1e-9 * plain.half().sum().float(), steps=1, optimiser=sgd)
    assert torch.equal(plain.detach(), torch.ones(4))  # without: nothing arrives


def test_a_step_that_overflows_is_left_out_and_the_next_one_taken() -> None:
    moved, trace = half(1, gain=1e11)  # 100 x 4096 is more than float16 holds
    assert torch.equal(moved, torch.ones(4))
    assert len(trace.log) == 1
    moved, _ = half(4, gain=1e11)
    assert torch.allclose(1 - moved, torch.full((4,), 1e-3), rtol=1e-2)  # 4096, 2048 and 1024 were too much
    with pytest.raises(Diverged, match="gradient"):
        half(30, gain=1e16)  # no factor helps


def test_the_factor_is_resumed(tmp_path: Path) -> None:
    half(3, gain=1e11, folder=tmp_path)
    moved, _ = half(4, gain=1e11, folder=tmp_path, resume=True)
    assert torch.equal(moved, half(4, gain=1e11)[0])
    assert not torch.equal(moved, torch.ones(4))
