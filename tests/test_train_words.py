"""Words that are trained: the student speaks them, the teacher does not, and the patch brings them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from hosts_fixtures import host_of
from palimpsest.core.card import Card
from palimpsest.core.concept import Concept, Request
from palimpsest.core.errors import BadRequest
from palimpsest.core.fingerprint import hook_count
from palimpsest.core.patch import Patch
from palimpsest.core.pictures import Material
from palimpsest.core.trace import Trace
from palimpsest.core.words import Word
from palimpsest.train import loop
from palimpsest.train.finetune import FineTune
from palimpsest.train.loop import TrainStep
from words_fixture import word_for

REQUEST = Request(target=(Concept(name="<a>"),))
PROMPTS = ["an <a>", "q <a> <a>"]


@dataclass(frozen=True, kw_only=True)
class Learn(FineTune):
    """Draws what the teacher makes of a known word where the new one stands."""

    card = Card(name="Learn", title="T", year=2024, paper="p", family="f", needs="Denoiser", claim="c")
    steps: int = 4
    lr: float = 0.01
    batch: int = 2
    rank: int = 0
    word_lr: float = 0.1
    names: tuple[str, ...] = ()
    stop: ClassVar[int] = -1

    def trains(self, host: Any) -> Sequence[str]:
        return self.names

    def new_words(self, host: Any, request: Request, data: Material) -> Mapping[str, Word]:
        return {"<a>": word_for(host, 2, reads_as="star")}

    def loss(self, step: TrainStep) -> Tensor:
        if step.index == self.stop:
            raise KeyboardInterrupt
        host, x = step.host, torch.randn(step.batch, 4, 8, 8, generator=step.generator())
        t = torch.full((step.batch,), 500)
        with step.teacher():
            assert not host.speech.words
            goal = host.denoise(x, t, host.encode(["an star", "q star star"]))
        assert set(host.speech.words) == {"<a>"}
        return (host.denoise(x, t, host.encode(PROMPTS)) - goal).square().mean()


def projection() -> str:
    return f"{next(iter(host_of('sd').parts('cross_key')))}.weight"


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "EVERY", 2)


def test_a_word_alone_is_trained_by_adam_at_its_own_rate() -> None:
    host = host_of("sd")
    base, hooks = host.fingerprint(), hook_count(host.root)
    trace = Trace()
    patch = Learn(steps=1)(host, REQUEST, trace=trace)
    assert (host.fingerprint(), hook_count(host.root)) == (base, hooks)
    assert not host.speech.words
    assert not patch.deltas
    start = word_for(host, 2)
    (table,) = start.vectors
    v = start.vectors[table].clone().requires_grad_(True)
    x = torch.randn(2, 4, 8, 8, generator=loop.generator(0, "step", 0))
    t = torch.full((2,), 500)
    with torch.no_grad():
        goal = host.denoise(x, t, host.encode(["an star", "q star star"]))
    with host.speaking({"<a>": Word(vectors={table: v})}):
        loss = (host.denoise(x, t, host.encode(PROMPTS)) - goal).square().mean()
    (g,) = torch.autograd.grad(loss, v)
    learnt = patch.words["<a>"]
    assert learnt.reads_as == "star"
    torch.testing.assert_close(learnt.vectors[table], v.detach() - 0.1 * g / (g.abs() + 1e-8), atol=1e-4, rtol=1e-4)
    assert trace.log[0][2] == pytest.approx(float(loss.detach()), rel=1e-4)


@pytest.mark.parametrize("rank", [0, 2])
def test_words_and_weights_are_trained_together_and_resumed_to_the_bit(
    rank: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = host_of("sd")
    tables = [f"{name}.weight" for name in host.parts("token_embedding")]  # a table, too, is a layer like others
    names = (projection(), *tables)
    method = Learn(rank=rank, names=names)
    whole = method(host, REQUEST)
    assert set(whole.deltas) == set(names)
    monkeypatch.setattr(Learn, "stop", 3)
    with pytest.raises(KeyboardInterrupt):
        method(host, REQUEST, trace=Trace(folder=tmp_path))
    monkeypatch.setattr(Learn, "stop", -1)
    resumed = method(host, REQUEST, trace=Trace(folder=tmp_path, resume=True))
    assert resumed.sha256() == whole.sha256()
    alone = Learn()(host, REQUEST)
    assert not alone.words["<a>"].same(whole.words["<a>"])
    still = Learn(word_lr=0.0, names=names)(host, REQUEST)
    assert still.words["<a>"].same(word_for(host, 2, reads_as="star"))
    again = Patch.load(whole.save(tmp_path / "p"))
    with again.applied(host):
        assert not torch.equal(host.encode(PROMPTS).states, _silent(host))


def _silent(host: Any) -> Tensor:
    with torch.no_grad(), host.speaking({}):
        return host.encode([p.replace("<a>", "") for p in PROMPTS]).states


def test_training_lowers_the_loss() -> None:
    trace = Trace()
    Learn(steps=12)(host_of("sd"), REQUEST, trace=trace)
    values = [value for _, name, value in trace.log if name == "loss"]
    assert sum(values[-4:]) < 0.7 * sum(values[:4])


def test_what_is_no_word_is_refused_before_the_first_step() -> None:
    odd = type("Learn", (Learn,), {"new_words": lambda *a: {"a b": word_for(a[1])}})()
    with pytest.raises(BadRequest, match="no spaces"):
        odd(host_of("sd"), REQUEST)
    with pytest.raises(BadRequest, match="word_lr"):
        Learn(word_lr=-1.0)
    nothing = type("Learn", (Learn,), {"new_words": lambda *a: {}})()
    with pytest.raises(BadRequest, match="no parameter to train"):
        nothing(host_of("sd"), REQUEST)
