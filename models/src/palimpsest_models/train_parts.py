"""Train what pipelines stand on: `python -m palimpsest_models.train_parts text|autoencoder|oracle --world glyphs`."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import AutoencoderKL

from palimpsest.tiny import path
from palimpsest_models import train_autoencoder, train_oracle, train_text
from palimpsest_models.measure import PIPELINES
from palimpsest_models.pool import WORLDS, Pool, draw_pool
from palimpsest_models.precision import measured

READ_SEED, FRESH_SEED, PICTURE_SEED = 1_000_000, 2_000_000, 3_000_000
STRANGERS = 400  # unnamed people of whom the identity embedding sees many pictures each
STEPS = {"text": 600, "autoencoder": 2500, "oracle": 5000}
RECONSTRUCTED = 0.2  # of the pictures that an oracle learns from are the autoencoder's, as a generator's will be


def reading_pool(world: str, n: int, *, seed: int) -> Pool:
    """Pictures with every word but the held-out people, whom the identity embedding must never have seen.

    Of Glyphs, about a quarter show two subjects (15 % in the world's own mixture), for the second's sake.
    """
    people = WORLDS[world].held_out.get("identity", frozenset())
    pool = draw_pool(world, n, seed=seed, held_out=True, without=people, strangers=STRANGERS)
    if world != "glyphs":
        return pool
    more = draw_pool(world, n, seed=seed + 500_000, held_out=True)
    two = more.labels["relation"] >= 0
    labels = {key: torch.cat([value, more.labels[key][two]]) for key, value in pool.labels.items()}
    return Pool(images=torch.cat([pool.images, more.images[two]]), labels=labels, identity=None)


def through(pool: Pool, vae: Path, *, share: float, seed: int) -> Pool:
    """The pool with a share of its pictures replaced by what the autoencoder in folder `vae` makes of them."""
    model = AutoencoderKL.from_pretrained(vae, local_files_only=True).to(measured().dtype).eval()
    some = torch.rand(len(pool.images), generator=torch.Generator().manual_seed(seed)) < share
    images = pool.images.clone()
    images[some] = (train_autoencoder.reconstruct(model, images[some]) * 255).round().to(torch.uint8)
    return replace(pool, images=images)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=sorted(STEPS))
    parser.add_argument("--world", choices=sorted(WORLDS), default="glyphs", help="text learns both worlds at once")
    parser.add_argument("--steps", type=int, help="instead of the recipe's")
    parser.add_argument("--out", type=Path, default=Path("runs/parts"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(measured())
    steps, world = given.steps or STEPS[given.part], given.world
    if given.part == "text":
        train_text.train(given.out, steps=steps, seed=0)
    elif given.part == "autoencoder":
        images = draw_pool(world, 40_000, seed=PICTURE_SEED, held_out=True).images
        model = train_autoencoder.train(images, steps=steps, seed=0)
        train_autoencoder.save_autoencoder(model, given.out / world / "vae")
    else:
        trained = given.out / world / "vae"
        vae = trained if trained.is_dir() else path(PIPELINES[world]) / "vae"
        pool = through(reading_pool(world, 60_000, seed=READ_SEED), vae, share=RECONSTRUCTED, seed=READ_SEED)
        reader = train_oracle.train(world, pool, steps=steps, seed=0)
        reader.gallery = train_oracle.gallery(reader) if world == "faces" else reader.gallery
        fresh = draw_pool(world, 4000, seed=FRESH_SEED, held_out=True)
        for rough in (False, True):
            print("rough" if rough else "fresh", json.dumps(train_oracle.accuracy(reader, fresh, rough=rough)))
        if world == "faces":
            print("held-out people verified, AUC", train_oracle.verification_auc(reader))
        train_oracle.save_oracle(reader, given.out / f"oracle-{world}.safetensors")


if __name__ == "__main__":
    main()
