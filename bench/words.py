"""Reading a model's own words once: seconds on the text encoder of Stable Diffusion 1.x, with random weights.

The tokenizer is made up, with as many entries (49,408) and whole words (36,800) as CLIP's: consonants and vowels in
turn. Listed names are spelt in it with more tokens than CLIP needs, so that this takes rather longer than a real one.

    OMP_NUM_THREADS=2 python bench/words.py            a thousand words, three ways side by side, and what all take
    OMP_NUM_THREADS=2 python bench/words.py --full     all of them, and how long the kept file takes afterwards
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from palimpsest.hosts.text import read_clip
from palimpsest.hosts.words import WordReader
from palimpsest.probes import lexicon
from palimpsest.probes.lexicon import Lexicon

CONSONANTS, VOWELS = "bcdfghjklmnpqrstvwxz", "aeiou"
SHARE, PADDED = 40, 400  # one text of so many is read; of so many with padding, which takes longer


def tokenizer(folder: Path) -> CLIPTokenizer:
    """A byte-pair tokenizer whose vocabulary has the size and the shape of CLIP's."""
    draws = random.Random(0)
    pairs = [(c, v) for c in CONSONANTS for v in VOWELS]
    threes = [(c + v, d) for c, v in pairs for d in CONSONANTS]
    fours = [(p + q, v) for p, q in threes for v in VOWELS]
    ends = [(p + q, c + "</w>") for p, q in fours for c in CONSONANTS]
    ends = draws.sample(ends, 48_894 - len(pairs) - len(threes) - len(fours))
    merges = [*pairs, *threes, *fours, *ends]
    kept = [chr(b) for b in (*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 324))]
    tokens = [*kept, *(k + "</w>" for k in kept), *(a + b for a, b in merges), "<|startoftext|>", "<|endoftext|>"]
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    settings = {**special, "unk_token": "<|endoftext|>", "model_max_length": 77, "tokenizer_class": "CLIPTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return CLIPTokenizer.from_pretrained(folder)


def host(folder: Path) -> Any:
    spelling: Any = tokenizer(folder)
    config = CLIPTextConfig(
        vocab_size=len(spelling), hidden_size=768, intermediate_size=3072, num_hidden_layers=12,
        num_attention_heads=12, eos_token_id=spelling.eos_token_id, bos_token_id=spelling.bos_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    pipeline = SimpleNamespace(tokenizer=spelling, text_encoder=CLIPTextModel(config).eval())
    return SimpleNamespace(name="ViT-L", reader=WordReader(pipeline, ("tokenizer",), None), pipeline=pipeline)


def seconds(work: Callable[[], object]) -> float:
    """Of the processor, all threads together: other work beside does not count."""
    start = time.process_time()
    with torch.no_grad():
        work()
    return time.process_time() - start


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--full", action="store_true", help="read all words")
    chosen = options.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory() as place:
        os.environ["PALIMPSEST_CACHE"] = place
        model = host(Path(place))
        words, pipe = Lexicon(model), model.pipeline
        all_of_them = words._texts
        console.print(
            f"{len(pipe.tokenizer):,} tokens, {len(model.reader.words):,} whole words; {len(all_of_them):,} texts to "
            f"read; {torch.get_num_threads()} threads."
        )
        few, fewer = all_of_them[::SHARE], all_of_them[::PADDED]
        model.reader.read(fewer)  # warm
        ways = {
            "no padding, equal lengths together": seconds(lambda: model.reader.read(few)) / len(few),
            "cut at the longest": seconds(lambda: read_clip(pipe.tokenizer, pipe.text_encoder, fewer, cut=True)),
            "77 tokens, as prompts": seconds(lambda: read_clip(pipe.tokenizer, pipe.text_encoder, fewer, cut=False)),
        }
        ways = {way: each if way.startswith("no") else each / len(fewer) for way, each in ways.items()}
        table = Table("way", "ms a text", "times the first", "all texts, seconds of one core")
        for way, each in ways.items():
            ratio = each / next(iter(ways.values()))
            table.add_row(way, f"{1000 * each:.1f}", f"{ratio:.1f}", f"{each * len(all_of_them):.0f}")
        console.print(table)
        if chosen.full:
            start = time.perf_counter()
            read = seconds(words.read)
            wall = time.perf_counter() - start
            lexicon._read.clear()
            size = words._file.stat().st_size / 2**20
            again = seconds(Lexicon(model).read)
            near = seconds(lambda: words.nearest(None, words.concept("dog"), avoid=frozenset()))
            console.print(
                f"All read: {read:.0f} s of the processor, {wall:.0f} s by the clock. From the kept file ({size:.0f} "
                f"MB): {again:.2f} s; neighbours of one target: {near:.2f} s."
            )


if __name__ == "__main__":
    main()
