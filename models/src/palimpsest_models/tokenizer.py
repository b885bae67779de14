"""Build the tiny pipelines' tokenizer: byte-pair merges learnt until every word of the worlds is one token."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
MAX_LENGTH = 32  # the longest caption has 20 words, its commas and the two ends; the U-Net attends to all states

# Plain English around the worlds' own words, so that paraphrased prompts reach whole tokens too.
ENGLISH = """
a an the of in on at by with without and or no not to from for near next beside over under above below behind
between left right top bottom centre center middle side upper lower corner up down front back facing looking
picture image photo photograph drawing painting portrait sketch print poster icon sign symbol logo illustration
artwork art style styled like look looks looking scene view close closeup render rendering cartoon
person people man woman boy girl face faces head human someone somebody child lady guy friend hair eyes eye
nose mouth lips brow brows ear ears beard moustache skin chin cheek smile smiling happy sad angry surprised
shocked calm frowning wearing wears has have is are being shown showing shows there this that it its his her their
big small large little tiny huge simple plain single one two three pair both each other another same different
bright dark light lit pale deep shiny glowing soft bold thin thick round flat sharp hollow solid filled empty
colour color coloured colored colourful background backdrop ground sky setting surface wall canvas paper
sphere disc disk ball circle oval box block cube rectangle triangle pyramid cone polygon shape figure object thing
crimson scarlet ruby blood navy azure cobalt teal lime emerald olive golden gold amber lemon violet lilac magenta
tangerine rust ivory snow ebony coal silver grey gray brown beige tan pink peach cream mint
sun planet crescent lunar night day heavenly celestial five pointed points sparkle shooting love romance valentine
band loop jewel wedding plus crossed christian church plant leaf leaves wood forest pine oak home building hut
cottage roof door animal pet bird flying sea swim swimming ocean fin fungus toadstool cap flower petals blossom
rose garden arrow pointing key lock boat sail ship anchor cup mug tea coffee bell ringing lamp bulb cloud rain
umbrella lightning bolt flash drop water apple fruit pear cherry diamond gem crystal crown king queen
hat beanie glasses sunglasses spectacles shades eyewear bare headed helmet scarf hood
drawn painted sketched printed made done using ink pencil pen charcoal brush chalk crayon neon watercolour
watercolor pixel pixelated halftone dots comic mosaic tiles tiled blueprint stained glass retro vintage modern
nude violence blood weapon naked nudity illegal hate
cat dog horse car train plane bike chair table book phone clock bread pizza mountain river beach city street
"""


def _byte_alphabet() -> list[str]:
    """The 256 printable characters that byte-level tokenizers write bytes with, in byte order."""
    kept = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters, moved = [], 0
    for byte in range(256):
        letters.append(chr(byte) if byte in kept else chr(256 + moved))
        moved += byte not in kept
    return letters


def learn_merges(words: Iterable[str]) -> list[tuple[str, str]]:
    """Byte-pair merges, most frequent pair first, until each word is one token.

    Encoding applies the merges in the order in which they were learnt, so a word of the training list always
    ends as one token. Ties go to the pair that sorts first: the result depends on the set of words alone.
    """
    alphabet = _byte_alphabet()
    spelled = []
    for word in sorted(set(words)):
        letters = [alphabet[byte] for byte in word.lower().encode()]
        spelled.append([*letters[:-1], letters[-1] + "</w>"])
    merges: list[tuple[str, str]] = []
    while True:
        pairs = Counter(pair for word in spelled for pair in pairwise(word))
        if not pairs:
            return merges
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        for word in spelled:
            position = 0
            while position < len(word) - 1:
                if (word[position], word[position + 1]) == best:
                    word[position : position + 2] = ["".join(best)]
                position += 1


def write_tokenizer(folder: Path, words: Iterable[str], *, length: int = MAX_LENGTH) -> None:
    """Write a CLIP tokenizer folder (`vocab.json`, `merges.txt`, configuration) in which each word is one token.

    Any other string falls back to shorter pieces and at last to bytes, so everything encodes.
    """
    merges = learn_merges([*words, *ENGLISH.split(), *"0123456789,.!?;:'\"-()"])
    alphabet = _byte_alphabet()
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet), *("".join(pair) for pair in merges)]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    vocabulary[BOS] = len(vocabulary)
    vocabulary[EOS] = len(vocabulary)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    special = {"bos_token": BOS, "eos_token": EOS, "unk_token": EOS, "pad_token": EOS}
    settings = {
        **special,
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": length,
        "do_lower_case": True,
        "clean_up_tokenization_spaces": True,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n")
