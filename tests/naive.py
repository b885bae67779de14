"""An independent trainer: the paper's loop once more, written naively, for tests of what a system's loss says.

A student that trains for several steps differs from its teacher, so that no term of a loss is zero by accident.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from palimpsest.train.randomness import generator

T = TypeVar("T")


class Naive:
    """A student beside a host's model, trained by plain Adam on gradients that a test computes.

    Args:
        names: which of the host's parameters it trains.
        rank: 0 trains them as they are; r > 0 adds up @ down to each, which starts as a system's with this seed does.
        clip: largest norm of all gradients together.
    """

    def __init__(
        self, host: Any, names: Sequence[str], lr: float, *, rank: int = 0, seed: int = 0, clip: float | None = None
    ) -> None:
        named = dict(host.root.named_parameters())
        self.host, self.rank = host, rank
        self.start = {n: named[n].detach().clone() for n in names if rank == 0 or named[n].ndim > 1}
        self.trained: dict[str, Tensor] = {}
        for n, w in self.start.items():
            if not rank:
                self.trained[n] = w.clone().requires_grad_(True)
                continue
            r, inner = min(rank, len(w), w[0].numel()), w[0].numel()
            down = torch.randn(r, inner, generator=generator(seed, "down", n)) / inner**0.5
            self.trained[n + "|up"] = torch.zeros(len(w), r).requires_grad_(True)
            self.trained[n + "|down"] = down.requires_grad_(True)
        self.adam, self.clip = torch.optim.Adam(self.trained.values(), lr=lr), clip

    def weights(self) -> dict[str, Tensor]:
        """The student's tensors, as functions of what is trained."""
        if not self.rank:
            return dict(self.trained)
        change = {n: self.trained[n + "|up"] @ self.trained[n + "|down"] for n in self.start}
        return {n: w + change[n].view_as(w) for n, w in self.start.items()}

    def by(self, work: Callable[[], T]) -> T:
        """What some work with the host gives while the student's tensors stand in it; differentiable."""

        class Stand(nn.Module):
            def __init__(self, root: nn.Module) -> None:
                super().__init__()
                self.root = root

            def forward(self) -> Any:
                return work()

        return functional_call(Stand(self.host.root), {f"root.{n}": w for n, w in self.weights().items()}, ())

    def net(self, x: Tensor, t: Tensor, **kwargs: Any) -> Any:
        """The student's network, called as diffusers' is."""
        return self.by(lambda: self.host.pipeline.unet(x, t, **kwargs))

    def gradients(self, loss: Tensor) -> dict[str, Tensor]:
        found = torch.autograd.grad(loss, list(self.trained.values()), allow_unused=True)
        zeros = {n: torch.zeros_like(p) for n, p in self.trained.items()}
        return {n: zeros[n] if g is None else g for n, g in zip(self.trained, found, strict=True)}

    def step(self, gradients: Mapping[str, Tensor] | Tensor) -> None:
        """One step of Adam on these gradients, or on those of this loss."""
        found = self.gradients(gradients) if isinstance(gradients, Tensor) else gradients
        for n, p in self.trained.items():
            p.grad = found[n].clone()
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self.trained.values(), self.clip)
        self.adam.step()

    def changes(self) -> dict[str, Tensor]:
        return {n: (w - self.start[n]).detach() for n, w in self.weights().items()}

    def agrees(self, deltas: Mapping[str, Any], ties: int = 0) -> None:
        """With up to `ties` weights left out that only one of the two trained: rounding decides at a mask's edge."""
        mine, zeros = self.changes(), {n: torch.zeros_like(w) for n, w in self.start.items()}
        theirs = {n: deltas[n].dense(w.shape) if n in deltas else zeros[n] for n, w in self.start.items()}
        assert set(deltas) <= set(self.start)
        a, b = (torch.cat([side[n].flatten() for n in self.start]) for side in (mine, theirs))
        both = (a == 0) == (b == 0)
        assert int((~both).sum()) <= ties or not ties
        a, b = (a[both], b[both]) if ties else (a, b)
        assert float(a.norm()) > 0
        assert float((a - b).norm()) < 0.02 * float(a.norm())


def own(host: Any, net: Any, x: Tensor, t: Tensor, prompts: Sequence[str]) -> Tensor:
    """What a network itself predicts, noise or velocity: losses are errors of that."""
    return net(x, t, encoder_hidden_states=host.encode(prompts).states).sample


def old(host: Any, x: Tensor, t: Tensor, prompts: Sequence[str]) -> Tensor:
    """What the untouched model predicts."""
    with torch.no_grad():
        return own(host, host.pipeline.unet, x, t, prompts)


def learnt(host: Any, at: Any) -> Tensor:
    """What a network is trained to predict at a noisy picture."""
    alpha, sigma = host.noise(at.t)
    noise = (at.x - alpha * at.x0) / sigma
    return noise if host.prediction == "epsilon" else alpha * noise - sigma * at.x0


def of(prompts: Sequence[str], at: Any) -> list[str]:
    return [prompts[int(i)] for i in at.row]


def losses(trace: Any) -> list[float]:
    return [value for _, name, value in trace.log if name == "loss"]


def recorded(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> list[tuple[tuple[Any, ...], Any]]:
    """Every call of a function while it goes on working: its arguments and what it returned."""
    real: Callable[..., Any] = getattr(owner, name)
    calls: list[tuple[tuple[Any, ...], Any]] = []

    def watched(*args: Any, **more: Any) -> Any:
        calls.append((args, real(*args, **more)))
        return calls[-1][1]

    monkeypatch.setattr(owner, name, watched)
    return calls
