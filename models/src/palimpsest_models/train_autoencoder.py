"""Train the autoencoder that both tiny pipelines share: 64 px pictures of both worlds to 8x8 latents."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Generator, Tensor

from palimpsest_models.masters import Masters, knots, ramp
from palimpsest_models.pool import to_float
from palimpsest_models.precision import measured

LATENT_CHANNELS = 16
KL_WEIGHT = 2e-4  # of the mean divergence a latent number; keeps latents smooth without blurring pictures
EDGE_WEIGHT = 0.5


def make_autoencoder() -> AutoencoderKL:
    """A thin f = 8 autoencoder: most of its work is at 8x8 and 16x16, so that decoding is cheap on a processor."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 128),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=64,
        mid_block_add_attention=False,
    )


def picture_loss(drawn: Tensor, shown: Tensor) -> Tensor:
    """Absolute and squared difference of pixels and of neighbouring pixels' steps (edges), which blur raises.

    The squared part keeps thin hatching and dots: their median is bare paper, and the absolute part asks for it.
    """
    away = drawn - shown
    loss = 0.3 * away.abs().mean() + 3 * away.square().mean()
    for axis in (2, 3):
        step = away.diff(dim=axis)
        loss = loss + EDGE_WEIGHT * (0.3 * step.abs().mean() + 3 * step.square().mean())
    return loss


def train(
    images: Tensor,
    *,
    steps: int,
    seed: int,
    batch: int = 24,
    lr: float = 2e-3,
    start_from: dict[str, Tensor] | None = None,
) -> AutoencoderKL:
    """Train on (n, 3, 64, 64) uint8 pictures; sets `scaling_factor` so that latents have unit variance.

    Args:
        start_from: weights of another autoencoder; those of another shape are left out.

    Cost: about 0.4 s a step on one core.
    """
    torch.manual_seed(seed)
    generator = Generator().manual_seed(seed)
    model = make_autoencoder()
    if start_from is not None:
        mine = model.state_dict()
        model.load_state_dict({k: start_from[k] if start_from[k].shape == v.shape else v for k, v in mine.items()})
    dtype = measured().dtype
    masters = Masters(model, lr=lr, average=0.99, dtype=dtype)
    start, mean = time.time(), 0.0
    for step in range(steps):
        rows = torch.randint(len(images), (batch,), generator=generator)
        shown = to_float(images[rows], dtype) * 2 - 1
        posterior = model.encode(shown).latent_dist
        latents = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=generator, dtype=dtype)
        drawn = model.decode(latents).sample
        divergence = 0.5 * (posterior.mean.float() ** 2 + posterior.var.float() - 1 - posterior.logvar.float()).mean()
        loss = picture_loss(drawn.float(), shown.float()) + KL_WEIGHT * divergence
        loss.backward()
        masters.step(ramp(step, knots(steps)))
        mean += float(loss.detach())
        if (step + 1) % 50 == 0:
            print(
                f"autoencoder {step + 1}/{steps} loss {mean / 50:.4f} divergence {float(divergence.detach()):.2f} "
                f"{time.time() - start:.0f} s",
                flush=True,
            )
            mean = 0.0
    masters.show(masters.averages)
    model = model.float().eval().requires_grad_(False)
    rows = torch.randint(len(images), (2000,), generator=generator)
    latents = encode(model, images[rows])
    model.register_to_config(scaling_factor=float(1 / latents.std()))
    return model


@torch.no_grad()
def encode(model: AutoencoderKL, images: Tensor, *, batch: int = 100) -> Tensor:
    """(n, 3, 64, 64) uint8 -> (n, channels, 8, 8) posterior means, unscaled, in the model's precision."""
    dtype = next(model.parameters()).dtype
    parts = [
        model.encode(to_float(images[begin : begin + batch], dtype) * 2 - 1).latent_dist.mean
        for begin in range(0, len(images), batch)
    ]
    return torch.cat(parts)


@torch.no_grad()
def reconstruct(model: AutoencoderKL, images: Tensor, *, batch: int = 100) -> Tensor:
    """(n, 3, 64, 64) uint8 -> (n, 3, 64, 64) float32 in [0, 1], through the latents' means."""
    dtype = next(model.parameters()).dtype
    parts = []
    for begin in range(0, len(images), batch):
        latents = encode(model, images[begin : begin + batch])
        parts.append((model.decode(latents.to(dtype)).sample.float() / 2 + 0.5).clamp(0, 1))
    return torch.cat(parts)


def save_autoencoder(model: AutoencoderKL, folder: Path) -> None:
    """Write a diffusers folder in float16."""
    half = make_autoencoder()
    half.load_state_dict(model.state_dict())
    half.register_to_config(scaling_factor=model.config["scaling_factor"])
    half.half().save_pretrained(folder)
