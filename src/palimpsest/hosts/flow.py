"""What rectified-flow transformers share: a straight line between data and noise, and shifted times."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from palimpsest.core.sampling import Sampling
from palimpsest.hosts.diffusion import DiffusionHost


class FlowHost(DiffusionHost):
    """`x = (1 - s) * x0 + s * noise` with time t = 1000 s; the network predicts noise - x0."""

    network = "transformer"
    token_side = 2
    family_defaults = Sampling(steps=28, guidance=7.5)

    def noise(self, t: Tensor) -> tuple[Tensor, Tensor]:
        sigma = (t.float() / self._train_times).view(-1, 1, 1, 1).to(self.device)
        return 1 - sigma, sigma

    def times(self, n: int, generator: torch.Generator) -> Tensor:
        """Logit-normal s, moved by the scheduler's fixed shift: s' = k s / (1 + (k - 1) s). float32.

        Source: Esser et al., Scaling Rectified Flow Transformers for High-Resolution Image Synthesis, 2024, sections
        3.1 and 5.3.2.
        """
        s = torch.randn(n, generator=generator).sigmoid()
        config = self.pipeline.scheduler.config
        k = 1.0 if config.get("use_dynamic_shifting") else config.get("shift", 1.0)
        return (self._train_times * k * s / (1 + (k - 1) * s)).to(self.device)

    @property
    def _train_times(self) -> int:
        return self.pipeline.scheduler.config.num_train_timesteps

    def _prediction(self) -> str:
        # Flow schedulers don't name what the network predicts; those of other kinds do.
        return self.pipeline.scheduler.config.get("prediction_type", "flow").replace("flow_prediction", "flow")

    def _shift_of_size(self, height: int, width: int, longest: float) -> float:
        """The exponent of the time shift, linear in the number of image tokens; `longest` is its value at the top."""
        config: Any = self.pipeline.scheduler.config
        low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
        base, top = config.get("base_shift", 0.5), config.get("max_shift", longest)
        tokens = (height // self.token_side) * (width // self.token_side)
        return base + (top - base) / (high - low) * (tokens - low)
