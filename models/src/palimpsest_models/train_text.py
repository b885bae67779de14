"""Train the text encoder that both tiny pipelines share and freeze: it learns to tell what a caption names."""

from __future__ import annotations

import re
import time
from pathlib import Path

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from palimpsest.tiny.phrases import OPENINGS, SYNONYMS, reopen, reword
from palimpsest_models.masters import Masters, knots, ramp
from palimpsest_models.pool import WORLDS
from palimpsest_models.precision import measured
from palimpsest_models.tokenizer import MAX_LENGTH, write_tokenizer

WIDTH, LAYERS = 128, 4


def world_words() -> set[str]:
    """Every word of both worlds' vocabularies and captions, in other words too, lower case."""
    texts = [word for world in WORLDS.values() for group in world.vocabulary.values() for word in group]
    for world in WORLDS.values():
        generator = Generator().manual_seed(0)
        texts += world.caption(world.sample(4000, generator=generator, held_out=True), generator=generator)
    texts += [*OPENINGS, *(word for group in SYNONYMS.values() for word in group)]
    return {word for text in texts for word in re.findall(r"[^\W\d_]+", text.lower())}


def make_text_encoder(tokens: int) -> CLIPTextModel:
    """A CLIP text model of 4 layers and width 128."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=tokens,
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            max_position_embeddings=MAX_LENGTH,
            projection_dim=WIDTH,
            bos_token_id=tokens - 2,
            eos_token_id=tokens - 1,
            pad_token_id=tokens - 1,
            attn_implementation="eager",  # on processors the fused kernel is slow backwards
        )
    )


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """(n, 32) token ids, padded and cut."""
    return tokenizer(
        captions, padding="max_length", max_length=MAX_LENGTH, truncation=True, return_tensors="pt"
    ).input_ids


def _targets(captions: list[str], world: str, keys: dict[str, dict[str, int]]) -> dict[str, Tensor]:
    """key -> (n,) index of the word that a caption names; the last index where it names none."""
    said = [WORLDS[world].read(caption) for caption in captions]
    return {
        key: torch.tensor([index[words[key]] if key in words else len(index) for words in said])
        for key, index in keys.items()
    }


def train(folder: Path, *, steps: int, seed: int, batch: int = 128, lr: float = 2e-3) -> CLIPTextModel:
    """Train on captions of both worlds, all words included; write `folder/tokenizer` and `folder/text_encoder`.

    The last token's state must tell each named word (and which keys are left open); a caption in other words,
    place by place, must give the states of the caption it rewords.

    Cost: about 0.1 s a step on one core.
    """
    write_tokenizer(folder / "tokenizer", world_words())
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    torch.manual_seed(seed)
    generator = Generator().manual_seed(seed)
    model = make_text_encoder(len(tokenizer))
    keys = {
        key: {word: index for index, word in enumerate(group)}
        for world in WORLDS.values()
        for key, group in world.vocabulary.items()
    }
    heads = nn.ModuleDict({key: nn.Linear(WIDTH, len(index) + 1) for key, index in keys.items()})
    both = nn.ModuleDict({"model": model, "heads": heads})
    masters = Masters(both, lr=lr, average=0.99, dtype=measured().dtype)
    start, mean = time.time(), 0.0
    for step in range(steps):
        captions, parts = [], []
        for name, world in WORLDS.items():
            drawn = world.sample(batch // 2, generator=generator, held_out=True)
            written = world.caption(drawn, generator=generator)
            parts.append(_targets(written, name, keys))
            captions += written
        targets = {key: torch.cat([part[key] for part in parts]) for key in keys}
        opened = torch.rand(batch, generator=generator) < 0.3
        captions = [reopen(c, generator) if o else c for c, o in zip(captions, opened, strict=True)]
        other = [reword(caption, generator) for caption in captions]
        states = model(tokenize(tokenizer, captions + other)).last_hidden_state
        last = tokenize(tokenizer, captions).eq(len(tokenizer) - 1).int().argmax(1)
        losses = []
        for half in states.chunk(2):
            pooled = half[torch.arange(batch), last]
            losses += [F.cross_entropy(head(pooled).float(), targets[key]) for key, head in heads.items()]
        plain, reworded = states.float().chunk(2)
        alignment = F.mse_loss(reworded, plain.detach())
        loss = torch.stack(losses).mean() + 0.3 * alignment
        loss.backward()
        masters.step(ramp(step, knots(steps)))
        mean += float(loss.detach())
        if (step + 1) % 100 == 0:
            print(
                f"text {step + 1}/{steps} loss {mean / 100:.4f} alignment {float(alignment.detach()):.4f} "
                f"{time.time() - start:.0f} s",
                flush=True,
            )
            mean = 0.0
    masters.show(masters.averages)
    model.half().save_pretrained(folder / "text_encoder")
    return model.float().eval().requires_grad_(False)
