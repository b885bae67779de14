"""A model card: what a patch changed, what a receipt measured of that, how to load it and how to repeat it.

Whatever others wrote (concepts, words, names, commands) is escaped: on the hub a card is a page.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from palimpsest.core import catalog
from palimpsest.core.errors import BadRequest
from palimpsest.core.patch import Patch
from palimpsest.core.printable import printable
from palimpsest.export import Exported
from palimpsest.receipt.make import HTML_FILE, JSON_FILE, PATCH_FILE
from palimpsest.receipt.view import number

MOST_ROWS = 40
HERE = "this/folder"
"""What stands in examples for where the folder was fetched to."""
SIGNS = re.compile(r"([\\`*_{}\[\]()#+!|~$<>&:@^=-])")


@dataclass(frozen=True, kw_only=True)
class Told:
    """What a card is about.

    Args:
        name: of the folder. base: the base model on the hub; "": unknown. local: as it was called here.
        licence: as the hub spells it; "": none is said.
        draws: whether the model is a text-to-image pipeline.
        lora: the LoRA beside the card, and `why_not` where there is none.
        words: each with the calls by which diffusers reads it.
        receipt: the content of receipt.json beside the card.
    """

    name: str
    base: str
    local: str
    licence: str
    draws: bool
    patch: Patch
    lora: Exported | None
    why_not: str
    words: Sequence[tuple[str, Sequence[str]]]
    receipt: Mapping[str, Any] | None


def card(told: Told) -> str:
    """The text of README.md, with the metadata that the hub reads."""
    from huggingface_hub import ModelCard, ModelCardData

    data = ModelCardData(
        base_model=told.base or None,
        library_name="diffusers" if told.lora is not None else "palimpsest",
        license=told.licence or None,
        pipeline_tag="text-to-image" if told.draws else "image-classification",
        tags=[*(["lora"] if told.lora else []), *(["textual_inversion"] if told.words else []), "palimpsest"],
    )
    body = "\n\n".join(part for part in _body(told) if part)
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}\n"))


def escaped(text: str) -> str:
    """Text as a page shows it, letter by letter: no markup, no links, on one line."""
    return SIGNS.sub(lambda m: html.escape(m[1]) if m[1] in "<>&" else f"\\{m[1]}", printable(text))


def fenced(text: str, language: str) -> str:
    """Text as a block of code, whose fence is longer than any in it."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{printable(text, keep=chr(10))}\n{fence}"


def _body(told: Told) -> Iterator[str]:
    yield f"# {escaped(told.name)}"
    yield _changed(told)
    yield _measured(told)
    yield "## Use"
    yield from _use(told)
    yield "## Repeat"
    yield from _repeat(told)


def _changed(told: Told) -> str:
    made = told.patch.provenance
    of = f"[{told.base}](https://huggingface.co/{told.base})" if told.base else f"the model {escaped(told.local)}"
    lines = [f"A change of {of} as data: a few deltas of its weights, no copy of it."]
    asked = [str(c.get("name", "")) for c in _listed(_table(made.get("request")), "target")]
    method = str(made.get("method", ""))
    if asked:
        lines.append(f"It is about {' and '.join(escaped(name) for name in asked)}, made by {_system(method)}.")
    elif method:
        lines.append(f"It was made by {_system(method)}.")
    parts = sorted({name.partition(".")[0] for name in told.patch.deltas})
    if parts:
        lines.append(f"It changes {len(told.patch.deltas)} tensors of {', '.join(map(escaped, parts))}.")
    if told.patch.words:
        lines.append(f"It brings the words {', '.join(escaped(word) for word in sorted(told.patch.words))}.")
    if told.lora is not None and told.lora.lost:
        lines.append(
            f"The LoRA here is cut to rank {told.lora.rank}, which leaves out {told.lora.lost_in_all:.1%} of the "
            "change (in Frobenius norm); the patch beside it is whole."
        )
    if told.why_not:
        lines.append(f"No LoRA says the same: {escaped(told.why_not)}")
    return "\n".join(lines)


def _system(method: str) -> str:
    """A system's name with its paper, where it is installed here; else as the patch says it."""
    try:
        known = catalog.find(method).card
    except BadRequest:
        return escaped(method)
    return f"{escaped(known.name)} ([{escaped(known.title)}]({known.paper}), {known.year})"


def _measured(told: Told) -> str:
    if told.receipt is None:
        return (
            "## What was measured\n\nNothing: there is no receipt. What it changes beside what it should is not known "
            "until it is audited."
        )
    lines = [f"- {escaped(sentence['text'])}" for sentence in told.receipt["summary"]]
    rows = [r for r in told.receipt["readings"] if r["value"] is not None and r["low"] is not None and r["concept"]]
    table = ["| reading | of | before | after | interval | verdict |", "|---|---|---|---|---|---|"]
    for r in rows[:MOST_ROWS]:
        unit = r["unit"]
        cells = [r["name"], f"{r['concept']} ({r['role']})", number(r["before"], unit), number(r["value"], unit)]
        cells += [f"{number(r['low'], unit)} to {number(r['high'], unit)}", r["verdict"]]
        table.append("| " + " | ".join(escaped(str(cell)) for cell in cells) + " |")
    more = f"\n\n{len(rows) - MOST_ROWS} more are in the receipt." if len(rows) > MOST_ROWS else ""
    return (
        "## What was measured\n\n" + "\n".join(lines) + "\n\n" + ("\n".join(table) + more if rows else "") + "\n\n"
        f"Intervals are of 95 %. All of it, with pictures, is in `{HTML_FILE}`; `{JSON_FILE}` holds the numbers, and "
        "`palimpsest verify` computes them again."
    )


def _use(told: Told) -> Iterator[str]:
    base = repr(told.base or "the base model")
    if told.lora is not None or told.words:
        lines = ["from diffusers import DiffusionPipeline", "", f"pipe = DiffusionPipeline.from_pretrained({base})"]
        if any("safetensors.torch" in call for _, calls in told.words for call in calls):
            lines.insert(0, "import safetensors.torch")
        if told.lora is not None:
            lines.append(f"pipe.load_lora_weights({HERE!r})")
        lines += [call for _, calls in told.words for call in calls]
        yield "With diffusers:"
        yield fenced("\n".join(lines), "python")
    images = 'images = host.sample(["a prompt"], [0])' if told.draws else "..."
    lines = ["from palimpsest.core.patch import Patch", "from palimpsest.run import load", ""]
    lines += [f"host = load({base})", f'with Patch.load("{HERE}/{PATCH_FILE}").applied(host):', f"    {images}"]
    yield "With palimpsest, exactly, and undone at the block's end:"
    yield fenced("\n".join(lines), "python")


def _repeat(told: Told) -> Iterator[str]:
    if told.receipt is not None:
        if command := told.receipt["command"]:
            yield "It was made, or audited, by"
            yield fenced(command, "text")
        yield "The receipt is checked, and measured again, by"
        yield fenced(f"palimpsest verify {JSON_FILE}", "text")
    made = told.patch.provenance
    versions = _table(made.get("versions"))
    lines = [f"- patch: sha256 `{told.patch.sha256()}`", f"- base model: fingerprint `{escaped(told.patch.base)}`"]
    if "seed" in made:
        lines.append(f"- seed: {escaped(str(made['seed']))}")
    if parameters := _table(made.get("parameters")):
        said = ", ".join(f"{name} = {value}" for name, value in sorted(parameters.items()))
        lines.append(f"- parameters: {escaped(said)}")
    if versions:
        lines.append("- versions: " + escaped(", ".join(f"{name} {v}" for name, v in sorted(versions.items()))))
    yield "\n".join(lines)


def _table(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _listed(table: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    found = table.get(key)
    return [row for row in found if isinstance(row, Mapping)] if isinstance(found, (list, tuple)) else []
