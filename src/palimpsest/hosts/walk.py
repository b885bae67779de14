"""One run of sampling, step by step, through a pipeline's own scheduler."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from palimpsest.core.errors import BadRequest
from palimpsest.core.host import Cond, Guide, Step
from palimpsest.core.sampling import Start
from palimpsest.hosts.parametrisation import from_x0, to_x0

if TYPE_CHECKING:
    from palimpsest.hosts.diffusion import DiffusionHost


class Walk(Iterator[Step]):
    """Yields each step before the scheduler moves x; once exhausted, `x` holds the clean latents.

    Asking for the next step moves x. Stopping early costs no further forward. Gradients are off inside only.

    Args:
        host: the model.
        scheduler: a fresh copy of the pipeline's scheduler, with its timesteps set.
        noise: (n, c, h, w) standard normal; what sampling starts from, and what is added to a start's clean latents.
        start: where to start otherwise than from noise alone.
        cond, null: the prompts and their unconditional partner, n rows each.
        prompts, negative: the same as text.
        guidance: the scale of classifier-free guidance.
        guided: whether the unconditional branch runs at all.
        generators: one for each row, for schedulers that draw noise.
        guide: decides the guided x0 in place of classifier-free guidance.
    """

    def __init__(
        self,
        host: DiffusionHost,
        scheduler: Any,
        noise: Tensor,
        *,
        start: Start | None,
        cond: Cond,
        null: Cond,
        prompts: Sequence[str],
        negative: str,
        guidance: float,
        guided: bool,
        generators: Sequence[torch.Generator],
        guide: Guide | None,
    ) -> None:
        self.total = len(scheduler.timesteps)
        self._index = 0
        self._host, self._scheduler, self._guide, self._guidance = host, scheduler, guide, guidance
        self._cond, self._null, self._prompts, self._negative = cond, null, tuple(prompts), negative
        self._both = Cond.cat([null, cond]) if guided and guide is None else None
        accepted = inspect.signature(scheduler.step).parameters
        self._draws: dict[str, Any] = {"generator": list(generators)} if "generator" in accepted else {}
        if "eta" in accepted:
            self._draws["eta"] = 0.0  # as pipelines call it, whatever the scheduler's own default
        self._output: Tensor | None = None
        if start is None:
            self.x = noise * getattr(scheduler, "init_noise_sigma", 1.0)
        else:
            self._index = start.skipped(self.total)
            self._index -= self._index % getattr(scheduler, "order", 1)  # never between the halves of one step
            self.x = self._started(start, noise)
        self._first = self._index

    def __len__(self) -> int:
        return self.total - self._first

    def _started(self, start: Start, noise: Tensor) -> Tensor:
        """The start's latents at the first step's time, in the scheduler's scaling."""
        t = self._scheduler.timesteps[self._index]
        latents = start.latents.to(noise)
        if latents.shape != noise.shape:
            shape = tuple(latents.shape)
            raise BadRequest(f"The start's latents are {shape}; expected {tuple(noise.shape)}, as sampling has them.")
        if hasattr(self._scheduler, "set_begin_index"):
            self._scheduler.set_begin_index(self._index)
        alpha, sigma = (part.to(noise) for part in self._host.noise(t.expand(len(noise))))
        x = latents if start.x0 is None else alpha * latents + sigma * noise
        if not hasattr(self._scheduler, "scale_model_input"):
            return x
        # Schedulers that keep x in another scaling divide by a factor of the time alone: undo it.
        return x / self._scheduler.scale_model_input(torch.ones_like(x[:1, :1, :1, :1]), t)

    @torch.no_grad()
    def __next__(self) -> Step:
        if self._output is not None:
            t = self._scheduler.timesteps[self._index - 1]
            self.x = self._scheduler.step(self._output, t, self.x, **self._draws, return_dict=False)[0]
            self._output = None
        if self._index == self.total:
            raise StopIteration
        t = self._scheduler.timesteps[self._index]
        x = self.x  # what the network reads: the scheduler's latents in the model's own scaling
        if hasattr(self._scheduler, "scale_model_input"):
            x = self._scheduler.scale_model_input(x, t)
        step = Step(
            host=self._host,
            index=self._index,
            total=self.total,
            x=x,
            t=t.expand(len(x)),
            cond=self._cond,
            null=self._null,
            guidance=self._guidance,
            prompts=self._prompts,
            negative=self._negative,
        )
        self._index += 1
        return self._by_guide(step) if self._guide is not None else self._natively(step)

    def _by_guide(self, step: Step) -> Step:
        assert self._guide is not None
        alpha, sigma = self._host.noise(step.t)
        output = from_x0(self._host.prediction, self._guide(step), step.x, alpha, sigma)
        self._output = output.to(self._host.dtype)
        return step

    def _natively(self, step: Step) -> Step:
        """Classifier-free guidance on the network's own outputs, as the pipeline itself does it."""
        host, n = self._host, len(step.x)
        alpha, sigma = host.noise(step.t)
        if self._both is None:
            self._output = host.predict(step.x, step.t, step.cond)
            return replace(step, x0_cond=to_x0(host.prediction, self._output, step.x, alpha, sigma))
        out = host.predict(torch.cat([step.x, step.x]), step.t.repeat(2), self._both)
        null, cond = out[:n], out[n:]
        self._output = null + self._guidance * (cond - null)
        return replace(
            step,
            x0_cond=to_x0(host.prediction, cond, step.x, alpha, sigma),
            x0_null=to_x0(host.prediction, null, step.x, alpha, sigma),
        )
