"""A pool as a tiny pipeline sees it: scaled latents and several captions a picture, made once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Generator, Tensor
from transformers import CLIPTokenizer

from palimpsest.tiny.phrases import reopen, reword
from palimpsest_models.pool import WORLDS, draw_pool, load_pool, save_pool
from palimpsest_models.precision import measured
from palimpsest_models.tokenizer import MAX_LENGTH
from palimpsest_models.train_autoencoder import encode

CAPTIONS = 4  # a picture
TRAIN_SEED = 10_000_000


@dataclass(frozen=True, kw_only=True)
class Latents:
    """Scaled latents (n, 16, 8, 8) bfloat16, and token ids (n, 4, 32) int16 of captions of each picture."""

    latents: Tensor
    ids: Tensor


def load_latents(world: str, n: int, shared: Path, work: Path, *, without: str | None = None) -> Latents:
    """The training set of a world: draw, encode and caption `n` pictures, or read them back where that was done.

    A run without a word uses the same pictures less those that show it, so nothing else differs.

    Args:
        shared: folder of tokenizer and vae.
        work: a run's folder; what is made is kept in its parent, for all runs.

    Cost: about 2.5 ms a picture on one core, once.
    """
    made = work.parent / "pools" / f"{world}-{n}-latents.safetensors"
    if not made.exists():
        _make(world, n, shared, work.parent / "pools" / f"{world}-train.safetensors", made)
    tensors = load_file(str(made))
    keep = torch.ones(len(tensors["latents"]), dtype=torch.bool)
    if without is not None:
        for key, words in WORLDS[world].vocabulary.items():
            if without in words:
                keep &= tensors[f"label/{key}"] != words.index(without)
    return Latents(latents=tensors["latents"][keep], ids=tensors["ids"][keep])


def _make(world: str, n: int, shared: Path, drawn: Path, made: Path) -> None:
    if not drawn.exists():
        save_pool(draw_pool(world, n, seed=TRAIN_SEED), drawn)
    pool = load_pool(drawn)
    vae = AutoencoderKL.from_pretrained(shared / "vae").to(measured().dtype).eval()
    tokenizer = CLIPTokenizer.from_pretrained(shared / "tokenizer")
    latents = encode(vae, pool.images).float() * vae.config["scaling_factor"]
    generator = Generator().manual_seed(TRAIN_SEED)
    ids = []
    for _ in range(CAPTIONS):
        captions = WORLDS[world].caption(pool.labels, generator=generator)
        dice = torch.rand(len(captions), generator=generator)
        for index in (dice < 0.15).nonzero().flatten().tolist():
            change = reopen if dice[index] < 0.1 else reword
            captions[index] = change(captions[index], generator)
        rows = tokenizer(
            captions, padding="max_length", max_length=MAX_LENGTH, truncation=True, return_tensors="pt"
        ).input_ids
        ids.append(rows.to(torch.int16))
    tensors = {"latents": latents.to(torch.bfloat16), "ids": torch.stack(ids, 1)}
    beside = made.with_name(made.name + ".part")
    save_file({**tensors, **{f"label/{key}": value for key, value in pool.labels.items()}}, str(beside))
    beside.replace(made)
