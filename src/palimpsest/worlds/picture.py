"""What a world draws: pictures and everything that is true about them."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """A batch of drawn pictures and everything that is true about them.

    Args:
        images: (n, 3, 64, 64) float32 in [0, 1].
        masks: (n, k, 64, 64) float32 in [0, 1], coverage of each drawn subject; Glyphs k = 2 (first,
            second, all zero where there is no second), Faces k = 1 (the person).
        labels: label key -> (n,) int64 index into the world's `vocabulary[key]`, -1 where absent.
        captions: one per picture.
        identity: (n, d) the identity vectors drawn, Faces only.
        parts: by name (hair, skin, eyes, brows, nose, mouth, ...): (n, 1, 64, 64) how much of a pixel shows it, what
            lies in front left out; together they are the person. Faces only, where they were asked for.
    """

    images: Tensor
    masks: Tensor
    labels: dict[str, Tensor]
    captions: list[str]
    identity: Tensor | None = None
    parts: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        """The number of pictures."""
        return len(self.images)
