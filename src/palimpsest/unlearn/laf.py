"""LAF: label-agnostic forgetting; features leave the distribution of what is forgotten, no label is read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from palimpsest.core.card import Card
from palimpsest.core.fields import Count, NonNegative, Positive, Size
from palimpsest.core.host import Classifier
from palimpsest.core.pictures import Material
from palimpsest.train.classify import Augment, ClassifierTune, all_seen, cross_entropy, picked, stream
from palimpsest.train.loop import TrainStep, minimise
from palimpsest.train.randomness import generator


@dataclass(frozen=True, kw_only=True)
class Vae:
    """A variational autoencoder of features (n, d): one hidden layer each way, weights by name.

    centre, scale (d,): features are standardised with them first.
    """

    weights: dict[str, Tensor]
    centre: Tensor
    scale: Tensor

    def __call__(self, features: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(n,) reconstruction error per feature, and (n,) divergence from the prior. No noise: the mean is decoded."""
        z = (features - self.centre.to(features.device)) / self.scale.to(features.device)
        w = {k: t.to(features.device) for k, t in self.weights.items()}
        hidden = functional.relu(functional.linear(z, w["in.weight"], w["in.bias"]))
        mean, log_var = functional.linear(hidden, w["code.weight"], w["code.bias"]).clamp(-20, 20).chunk(2, dim=1)
        code = mean if noise is None else mean + noise * (log_var / 2).exp()
        hidden = functional.relu(functional.linear(code, w["back.weight"], w["back.bias"]))
        again = functional.linear(hidden, w["out.weight"], w["out.bias"])
        divergence = (mean.square() + log_var.exp() - 1 - log_var).sum(1) / 2
        return (again - z).square().mean(1), divergence


@dataclass(frozen=True, kw_only=True)
class LAF(ClassifierTune):
    """Two autoencoders learn what features of kept and of forgotten data look like; then the extractor moves.

        e(z; V) = q / (q + 1),  q = mean over features of (V(z) - z)^2
        away  = mean e(h(x_r); V_kept) - mean e(h(x_f); V_forgotten)
        align = -mean cos(h(x_r) - m, h0(x_r) - m) / tau + log sum exp(cos(h(x_f) - m, h0(x_f) - m) / tau)
        loss  = away + align_weight align + repair CE(f(x_r), y_r)

    The head stays as it is.

    Args:
        align_weight: of the contrastive alignment. temperature: tau (1 in the code).
        repair: 0 reads no label at all (LAF); above, labels of retained data help (LAF+R).
        vae_steps, code: training steps and code size of the autoencoders. look: how many retained samples they see;
            0: all.
        epochs: over the forgotten data. steps, lr, batch, rank, augment: as in every fine-tuning of a classifier.

    Cost: one forward for each sample to forget and `look` retained ones, then 2 `batch` forwards a step with gradients
        and 2 `batch` without.
    Differs from the paper: cosines are taken about the mean m of the kept features: rectified features have cosines
        near 1 with each other, and aligning those would hold nothing. Both losses act in one step of one optimiser
        (the code takes turns with two); features are standardised, and errors are means over them.
    Fails when: kept and forgotten data look alike (samples of classes that stay): their autoencoders agree.
    Source: Shen et al., "Label-Agnostic Forgetting", ICLR 2024, arXiv 2404.00506.
    """

    epochs: Positive = 20.0
    lr: NonNegative = 1e-4
    batch: Count = 256
    rank: Size = 0
    augment: Augment = "none"
    align_weight: NonNegative = 1.0
    temperature: Positive = 1.0
    repair: NonNegative = 0.0
    vae_steps: Count = 300
    code: Count = 16
    look: Size = 5000

    over: ClassVar[str] = "forget"
    quick: ClassVar[Mapping[str, Any]] = {**ClassifierTune.quick, "vae_steps": 3, "look": 100}

    card = Card(
        name="LAF",
        title="Label-Agnostic Forgetting: A Supervision-Free Unlearning in Deep Models",
        year=2024,
        paper="https://arxiv.org/abs/2404.00506",
        family="feature space",
        needs="Classifier",
        reads=("forget", "retain"),
        claim="Without any label, comparable to the best methods that use all of them.",
    )

    def trains(self, host: Classifier) -> Sequence[str]:
        head = {f"{name}.{p}" for name, part in host.parts("head").items() for p, _ in part.named_parameters()}
        return [name for name in super().trains(host) if name not in head]

    def optimiser(self, leaves: Iterable[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.Adam(list(leaves), lr=self.lr)

    def ready(self, host: Classifier, data: Material, seed: int) -> tuple[Vae, Vae]:
        known = picked(data["retain"], self.look, generator(seed, "look"))
        kept, lost = (all_seen(host, samples, half=self.half)[0] for samples in (known, data["forget"]))
        centre, scale = kept.mean(0), kept.std(0).clamp_min(1e-3)
        return self._fit(kept, centre, scale, seed, "kept"), self._fit(lost, centre, scale, seed, "forgotten")

    def _fit(self, features: Tensor, centre: Tensor, scale: Tensor, seed: int, what: str) -> Vae:
        d, hidden = features.shape[1], 4 * self.code
        sizes = {"in": (hidden, d), "code": (2 * self.code, hidden), "back": (hidden, self.code), "out": (d, hidden)}
        draws, weights = generator(seed, "vae", what), {}
        for name, (rows, columns) in sizes.items():
            weights[f"{name}.weight"] = torch.randn(rows, columns, generator=draws) * columns**-0.5
            weights[f"{name}.bias"] = torch.zeros(rows)
        leaves = {name: w.requires_grad_(True) for name, w in weights.items()}
        vae = Vae(weights=weights, centre=centre, scale=scale)

        def loss(k: int) -> Tensor:
            rows = stream(len(features), min(self.batch, len(features)), seed, k, what)
            error, divergence = vae(features[rows], torch.randn(len(rows), self.code, generator=draws))
            return (error * d + 0.025 * divergence).mean()

        minimise(leaves, loss, steps=self.vae_steps, optimiser=torch.optim.Adam(leaves.values(), lr=1e-3))
        return Vae(weights={name: w.detach() for name, w in leaves.items()}, centre=centre, scale=scale)

    def loss(self, step: TrainStep) -> Tensor:
        forget = self.drawn(step, step.data["forget"], "forget")
        retain = self.drawn(step, step.data["retain"], "retain")
        images, n = torch.cat([forget.images, retain.images]), len(forget.rows)
        with step.teacher():
            old = self.seen(step, images)[0]
        new, logits = self.seen(step, images)
        kept, lost = step.context
        away = _bounded(kept(new[n:])[0]) - _bounded(lost(new[:n])[0])
        centre = kept.centre.to(new.device)
        alike = functional.cosine_similarity(new - centre, old - centre) / self.temperature
        total = away + self.align_weight * (alike[:n].logsumexp(0) - alike[n:].mean())
        return total + self.repair * cross_entropy(logits[n:], retain.targets) if self.repair else total


def _bounded(error: Tensor) -> Tensor:
    return (error / (error + 1)).mean()
