"""UCE: closed-form erasing in the cross-attention layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from palimpsest.core.card import Card
from palimpsest.core.concept import Request
from palimpsest.core.fields import NonNegative
from palimpsest.core.method import ModelEdit
from palimpsest.core.patch import Patch
from palimpsest.core.pictures import Material
from palimpsest.core.trace import Trace
from palimpsest.ops import closed_form
from palimpsest.ops.text_states import Tokens, kept_texts, paired_states, pairs, states_of, text_readers


@dataclass(frozen=True, kw_only=True)
class UCE(ModelEdit):
    """Makes every cross-attention key and value layer read the target as its replacement, in one linear solve.

    For each layer W, with c the token states of the targets, c* of their replacements, k of the kept concepts:

        minimise over W'  erase_weight sum |W' c - W c*|^2 + keep_weight sum |W' k - W k|^2 + ridge |W' - W|^2

    The solve and its proof that one factorisation serves all layers are in `palimpsest.ops.closed_form`.

    Args:
        erase_weight: of the targets ("erase_scale" in the paper's code, whose default it has).
        keep_weight: of the kept concepts ("preserve_scale"; its default).
        ridge: of the distance to the old weights ("lamb"; its default).
        tokens: "tail" edits the states from the subject's last token to the end of padding, as the paper's first code
            does; "last" the first of them only, as its later code does; "all" every position.
        expand: also edit the concept's name in its other prompts and in sentences of its kind ("an image of ...";
            "expand_prompts").

    Where attention is joint (SD 3, Flux) the layers are the projection of all token states and the first layer that
    reads the pooled ones, as in the authors' code for Flux.

    Without Request.toward this is the paper's moderation; its debiasing, a loop around the same solve, is
    `palimpsest.erase.uce_debias`.

    Cost: one text forward per distinct text, one Cholesky factorisation; low-rank patches (rank <= edited states).
    Differs from the paper: solved in float64, where the public code inverts in float32.
    Fails when: the concept is asked for by words whose states differ much from the name's (paraphrases, other
        languages); the replacement is not neutral; a kept concept shares its last token with a target.
    Source: Gandikota et al., "Unified Concept Editing in Diffusion Models", WACV 2024, arXiv 2308.14761.

    Example:
        >>> patch = UCE()(host, Request(target=(Concept(name="star"),)))    # doctest: +SKIP
    """

    erase_weight: NonNegative = 1.0
    keep_weight: NonNegative = 1.0
    ridge: float = 0.5
    tokens: Tokens = "tail"
    expand: bool = False

    card = Card(
        name="UCE",
        title="Unified Concept Editing in Diffusion Models",
        year=2024,
        paper="https://arxiv.org/abs/2308.14761",
        family="closed form",
        needs="Denoiser",
        claim="Erases many concepts at once without training, with less harm to others than earlier methods.",
    )

    def run(self, host: Any, request: Request, *, data: Material, rng: torch.Generator, trace: Trace) -> Patch:
        kept, deltas = kept_texts(request, expand=self.expand), {}
        for weights, positions in text_readers(host, "UCE", self.tokens):
            states, into = paired_states(host, pairs(request, expand=self.expand), positions)
            edit = closed_form.erase(
                states,
                into,
                keep=closed_form.gram(torch.cat(states_of(host, kept, positions))) if kept else None,
                erase_weight=self.erase_weight,
                keep_weight=self.keep_weight,
                ridge=self.ridge,
            )
            deltas |= closed_form.edit_layers(weights, edit)
        return Patch(base="", deltas=deltas)
