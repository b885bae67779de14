"""What an attempt to bring a concept back may spend."""

from __future__ import annotations

from dataclasses import dataclass

from palimpsest.core.errors import BadRequest
from palimpsest.core.fields import Count, checked, types_of
from palimpsest.train.benign import Train


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What whoever brings a concept back may spend, and how closely it is looked at.

    Args:
        pictures: to fine-tune on. steps: of the optimiser after which presence is measured; 0 is the edit as it is.
        batch, lr, rank, train: of fine-tuning, as in `train.benign.Benign`.
        words, attack_steps, attack_batch: of token inversion, as in `train.attacks.attacked`.
        shown: pictures of each target that are judged at each point.
        sample_steps, guidance: of sampling; None is the model's own default.
        seed: of every random draw.
    """

    pictures: Count = 16
    steps: tuple[int, ...] = (0, 20, 40, 80)
    batch: Count = 4
    lr: float = 1e-4
    rank: int = 0
    train: Train = "full"
    words: Count = 3
    attack_steps: Count = 60
    attack_batch: Count = 8
    shown: Count = 20
    sample_steps: int | None = None
    guidance: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, hint in types_of(type(self)).items():
            checked(name, getattr(self, name), hint)
        if not self.steps or list(self.steps) != sorted({*self.steps}) or self.steps[0] < 0 or self.steps[-1] < 1:
            raise BadRequest(f"steps are {self.steps}; give numbers of steps that rise, from 0 on, to at least 1.")

    def drawn(self, *, targets: int = 1, oracle: bool = False) -> int:
        """Pictures of `resurfacing`: what is learnt from, every point, the attack, and each model as it is."""
        models = 2 if oracle else 1
        points = models * (2 + 2 * sum(step > 0 for step in self.steps)) + 1
        return points * targets * self.shown + 2 * self.pictures

    def trained(self, *, targets: int = 1, oracle: bool = False) -> int:
        """Rows that go forward and backward through the denoiser."""
        models = 2 if oracle else 1
        return models * (2 * self.steps[-1] * self.batch + targets * self.attack_steps * self.attack_batch)

    def describe(self, *, targets: int = 1, oracle: bool = False) -> str:
        """What `resurfacing` draws and trains, in plain words; `probes.forecast` adds the minutes."""
        models = 2 if oracle else 1
        return (
            f"Resurfacing: {2 * models} fine-tunings of {self.steps[-1]} steps x {self.batch} on {self.pictures} "
            f"pictures, {models * targets} attacks of {self.attack_steps} steps x {self.attack_batch}, "
            f"{self.drawn(targets=targets, oracle=oracle)} pictures."
        )
