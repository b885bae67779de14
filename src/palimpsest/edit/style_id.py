"""StyleID: a picture drawn again with the queries of its own and the keys and values of a picture of the style."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from palimpsest.core.card import Card
from palimpsest.core.errors import BadRequest, Unsupported
from palimpsest.core.fields import Part, Positive, Share
from palimpsest.core.host import Cond, Denoiser
from palimpsest.ops.editing import DiffusionEdit, EditStep, Inverted, Scene
from palimpsest.ops.inversion import denoised, inverted

REFERENCES = "references"


@dataclass(frozen=True, kw_only=True)
class StyleID(DiffusionEdit):
    """Puts the keys and values of a style's picture into the self-attention of the decoder, and keeps its own queries.

        out = softmax(temperature q k_style^T / sqrt(d)) v_style,   q = keep q_content + (1 - keep) q_edit

    in the decoder's last `layers`, at every step, on inverted latents of both pictures. The edit starts from the noise
    of the content, each channel with the mean and the deviation of the style's (AdaIN). No prompt is read: the walk is
    unconditional, and `guidance` means nothing. The rebuilt picture is the one that takes its own style.

    Args:
        depth: the share of the schedule that is walked; the paper walks all of it.
        keep: the weight of the content's queries.
        temperature: of the scores; above 1 attention to the style is sharper.
        layers: the share of the decoder's self-attention layers, the last ones.

    Cost: a forward for each step upwards of both pictures; one of three rows for each step down, twice.
    Differs from the paper: keys, values and queries are read at the level that a step is at, not kept from the
        inversion, whose forwards stand one level nearer to the clean picture; the finish is a difference.
    Fails when: the style's picture has other colours than shall be taken: colour comes along with style.
    Source: Chung, Hyun & Heo, "Style Injection in Diffusion: A Training-free Approach for Adapting Large-scale
        Diffusion Models for Style Transfer", CVPR 2024, arXiv 2312.09008.
    """

    card = Card(
        name="StyleID",
        title="Style Injection in Diffusion: A Training-free Approach for Adapting Large-scale Diffusion Models for "
        "Style Transfer",
        year=2024,
        paper="https://arxiv.org/abs/2312.09008",
        family="style",
        needs="Denoiser",
        claim="Takes a picture's style without training, keeps content, and beats earlier style transfer in ArtFID.",
        reads=("references",),
    )
    quick: ClassVar = {"steps": 3}

    depth: Part = 1.0
    keep: Share = 0.75
    temperature: Positive = 1.5
    layers: Part = 0.6

    def invert(self, scene: Scene) -> Inverted:
        references, n = scene.data[REFERENCES], len(scene.x0)
        if len(references) not in (1, n):
            raise BadRequest(f"{len(references)} references for {n} pictures; give one for all, or one for each.")
        if references.images.shape[1:] != (3, scene.size, scene.size):
            shape = tuple(references.images.shape[2:])
            raise BadRequest(f"References are {shape}; expected {(scene.size, scene.size)}, as large as the pictures.")
        self._chosen(scene.host)  # refuses before anything is walked
        path = inverted(scene.host, scene.x0, scene.null, scene.levels)
        of_style = scene.host.latents(references.pixels()).expand_as(scene.x0)
        style = inverted(scene.host, of_style, scene.null, scene.levels)
        return Inverted(path=path, start=restyled(path[0], style[0]), kept=style)

    def step(self, at: EditStep) -> Tensor:
        n = len(at.x)
        style = at.source if at.asked is at.said else at.found.kept[at.index]
        x = torch.cat([style, at.source, at.x])
        with self._injecting(at.scene.host, n):
            return denoised(at.scene.host, x, at.here, Cond.cat([at.null] * 3))[2 * n :]

    def _chosen(self, host: Denoiser) -> list[Mapping[str, nn.Module]]:
        """Projections to queries, keys and values of the layers that the style goes into."""
        decoder = tuple(f"{name}." for name in host.parts("decoder_block"))
        found = []
        for role in ("self_query", "self_key", "self_value"):
            parts = {name: part for name, part in host.parts(role).items() if decoder and name.startswith(decoder)}
            found.append(dict(list(parts.items())[-max(1, round(self.layers * len(parts))) :]))
        if not found[0]:
            raise Unsupported(f"{host.name} has no decoder in which the picture alone reads itself.")
        return found

    @contextmanager
    def _injecting(self, host: Denoiser, n: int) -> Iterator[None]:
        """Inside, of 3 n rows (style, content, edit) the last n read the style's keys and values."""

        def query(module: Any, args: Any, q: Tensor) -> Tensor:
            mixed = self.keep * q[n : 2 * n] + (1 - self.keep) * q[2 * n :]
            return torch.cat([q[: 2 * n], self.temperature * mixed])

        def taken(module: Any, args: Any, of_all: Tensor) -> Tensor:
            return torch.cat([of_all[: 2 * n], of_all[:n]])

        with ExitStack() as stack:
            for parts, rule in zip(self._chosen(host), (query, taken, taken), strict=True):
                for part in parts.values():
                    stack.callback(part.register_forward_hook(rule).remove)
            yield


def restyled(x: Tensor, style: Tensor) -> Tensor:
    """x (n, c, h, w) with the mean and the standard deviation of each of the style's channels (AdaIN)."""
    mean, deviation = x.mean((2, 3), keepdim=True), x.std((2, 3), keepdim=True)
    of_style = style.std((2, 3), keepdim=True)
    return (x - mean) / deviation.clamp(min=1e-4) * of_style + style.mean((2, 3), keepdim=True)
