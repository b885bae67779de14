"""How pictures are drawn, as values: the settings of a run of sampling, and where it starts."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import Tensor

from palimpsest.core.errors import BadRequest


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Settings of a run of sampling. None leaves a choice to the model's own defaults.

    Args:
        steps: of the scheduler.
        guidance: scale of classifier-free guidance; 1 and below runs no unconditional branch in most families.
        size: side of the square pictures, in pixels.
        negative: the prompt that guidance leads away from.
    """

    steps: int | None = None
    guidance: float | None = None
    size: int | None = None
    negative: str = ""

    def over(self, defaults: Sampling) -> Sampling:
        """These settings, with those of `defaults` where they are None or empty."""
        return Sampling(
            steps=defaults.steps if self.steps is None else self.steps,
            guidance=defaults.guidance if self.guidance is None else self.guidance,
            size=defaults.size if self.size is None else self.size,
            negative=self.negative or defaults.negative,
        )

    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True, eq=False)
class Start:
    """Where a run of sampling starts, when it does not start from noise alone.

    Args:
        x0: (n, c, h, w) clean latents; the run's own noise is added up to the time where it starts (SDEdit).
        x: (n, c, h, w) latents that hold their noise already, `x = alpha x0 + sigma noise` at that time (inversion).
        share: of the schedule that is walked, in (0, 1]: the last `int(share * steps)` steps, at least one.

    Raises:
        BadRequest: both or neither of x0 and x, or a share outside (0, 1].
    """

    x0: Tensor | None = None
    x: Tensor | None = None
    share: float = 1.0

    def __post_init__(self) -> None:
        if (self.x0 is None) == (self.x is None):
            raise BadRequest("A start is either clean latents (x0) or noisy ones (x); give one of the two.")
        if not 0 < self.share <= 1:
            raise BadRequest(f"share is {self.share}; it must be above 0, at most 1.")

    def __getitem__(self, rows: slice) -> Start:
        """The chosen rows, as a Start."""
        return replace(self, x0=None if self.x0 is None else self.x0[rows], x=None if self.x is None else self.x[rows])

    @property
    def latents(self) -> Tensor:
        """Whichever latents were given."""
        return self.x0 if self.x0 is not None else self.x  # type: ignore[return-value]

    def skipped(self, steps: int) -> int:
        """How many of a schedule's first steps are left out."""
        return steps - max(1, int(self.share * steps))
