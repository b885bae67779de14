"""Oracles: small convolutional readers that tell what a drawn picture shows."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from palimpsest.core.errors import Unsupported


def _block(inside: int, outside: int, *, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inside, outside, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outside), nn.ReLU()
    )


class Oracle(nn.Module):
    """Reads every label of a world from its pictures, and a person's identity as a unit vector.

    Args:
        vocabulary: label key -> words; a key has one output a word, and one more, "absent", where `optional`.
        optional: keys that a picture may lack (a second subject, say).
        identity: width of the identity embedding; 0 for worlds without people.
        width: channels of the first stage.

    Cost: about 0.1 GFLOP a picture.
    """

    gallery: Tensor  # (people, d) unit vectors of the named people

    def __init__(
        self,
        vocabulary: dict[str, tuple[str, ...]],
        *,
        optional: frozenset[str] = frozenset(),
        identity: int = 0,
        width: int = 32,
    ) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.optional = optional
        self.trunk = nn.Sequential(
            _block(3, width, kernel=5, stride=2),  # (n, w, 32, 32)
            _block(width, 2 * width, stride=2),  # (n, 2w, 16, 16)
            _block(2 * width, 2 * width),
            _block(2 * width, 4 * width, stride=2),  # (n, 4w, 8, 8)
            _block(4 * width, 4 * width),
            _block(4 * width, 6 * width, stride=2),  # (n, 6w, 4, 4)
            nn.Flatten(),
            nn.Linear(6 * width * 16, 256, bias=False),
            nn.BatchNorm1d(256),
            nn.ReLU(),
        )
        self.heads = nn.ModuleDict(
            {
                key: nn.Linear(256, len(words) + (key in optional))
                for key, words in vocabulary.items()
                if key != "identity"
            }
        )
        self.embedding = nn.Linear(256, identity) if identity else None
        self.register_buffer("gallery", torch.zeros(0, identity))

    def features(self, images: Tensor) -> Tensor:
        """(n, 3, 64, 64) in [0, 1] -> (n, 256) activations before the heads; Unsupported for other sizes."""
        if images.shape[2:] != (64, 64):
            raise Unsupported(
                f"The oracles of drawn worlds read pictures of 64 x 64 px, not {tuple(images.shape[2:])}. The model's "
                "world.json may be another model's; otherwise name a judge."
            )
        return self.trunk(images.to(self.dtype) * 2 - 1)

    def logits(self, features: Tensor) -> dict[str, Tensor]:
        """Head activations, key -> (n, words), with "absent" last for optional keys."""
        return {key: head(features) for key, head in self.heads.items()}

    @torch.no_grad()
    def read(self, images: Tensor) -> dict[str, Tensor]:
        """Probabilities of each word.

        Args:
            images: (n, 3, 64, 64) in [0, 1].

        Returns:
            key -> (n, words) float32. The rows of an optional key sum to the probability that it is there at all;
            those of the others sum to 1. With a gallery, "identity" is read through the embedding: a softmax over
            cosines with each named person, so a stranger reads as the nearest name.
        """
        features = self.features(images)
        out = {
            key: value.float().softmax(1)[:, : len(self.vocabulary[key])]
            for key, value in self.logits(features).items()
        }
        if len(self.gallery):
            out["identity"] = (30 * self._unit(features) @ self.gallery.T.float()).softmax(1)
        return out

    @torch.no_grad()
    def identity(self, images: Tensor) -> Tensor:
        """(n, 3, 64, 64) in [0, 1] -> (n, d) float32 unit vectors; the cosine tells whether two are one person.

        Raises:
            ValueError: this world has no people.
        """
        return self._unit(self.features(images))

    @property
    def dtype(self) -> torch.dtype:
        """What the oracle computes in."""
        return next(self.trunk.parameters()).dtype

    def _unit(self, features: Tensor) -> Tensor:
        if self.embedding is None:
            raise ValueError("this oracle reads a world without people; use the oracle of faces for identities")
        return F.normalize(self.embedding(features).float(), dim=1)


def load_oracle(path: Path) -> Oracle:
    """Read a shipped oracle (float16 weights, vocabulary in the file's header) into a float32 module."""
    with safe_open(str(path), framework="pt") as stored:
        header = json.loads(stored.metadata()["oracle"])
        tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118
    oracle = Oracle(
        {key: tuple(words) for key, words in header["vocabulary"].items()},
        optional=frozenset(header["optional"]),
        identity=header["identity"],
        width=header["width"],
    )
    oracle.gallery = torch.zeros_like(tensors["gallery"], dtype=torch.float32)
    oracle.load_state_dict(
        {key: value.float() if value.is_floating_point() else value for key, value in tensors.items()}
    )
    return oracle.eval().requires_grad_(False)
