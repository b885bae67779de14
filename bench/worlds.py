"""How many pictures a second each world draws on one core.

Run as `taskset -c 1 python bench/worlds.py`. Processor time is what counts, so that a busy machine does not
change the answer; the target is 1,000 pictures a second for each world.
"""

from __future__ import annotations

import importlib
import json
import time

import torch

WORLDS = {"glyphs": ("palimpsest.worlds.glyphs", "GLYPHS"), "faces": ("palimpsest.worlds.faces", "FACES")}
BATCH, ROUNDS, TARGET = 256, 8, 1000


def rate(world: str) -> dict[str, float | int | str]:
    """Sample labels, write captions and draw `ROUNDS` batches; answers pictures a processor second."""
    module, name = WORLDS[world]
    drawn = getattr(importlib.import_module(module), name)
    generator = torch.Generator().manual_seed(0)
    drawn.draw(drawn.sample(BATCH, generator=generator), generator=generator)  # fills the caches
    start = time.process_time()
    for _ in range(ROUNDS):
        drawn.draw(drawn.sample(BATCH, generator=generator), generator=generator)
    seconds = time.process_time() - start
    return {"world": world, "pictures": BATCH * ROUNDS, "per_second": round(BATCH * ROUNDS / seconds), "target": TARGET}


def main() -> None:
    """Print one JSON line a world."""
    torch.set_num_threads(1)
    for world in WORLDS:
        print(json.dumps(rate(world)))


if __name__ == "__main__":
    main()
