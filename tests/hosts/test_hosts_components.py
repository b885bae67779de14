"""What a component's configuration may say: a field of another type, or layers that its file does not hold, is refused
with the file and the field named, before memory is taken for it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from hosts_fixtures import folder_of
from palimpsest.core.errors import Damaged
from palimpsest.hosts.load import load

HOSTILE: list[tuple[str, str, str, Any, str]] = [
    ("sd", "unet", "block_out_channels", "x", "a list of a whole number"),
    ("sd", "unet", "block_out_channels", [], "makes no UNet2DConditionModel"),
    ("sd", "unet", "block_out_channels", [8, "16"], "a list of a whole number"),
    ("sd", "unet", "down_block_types", [1, 2], "a list of text"),
    ("sd", "unet", "down_block_types", ["DownBlock2D", "NoSuchBlock"], "NoSuchBlock"),
    ("sd", "unet", "norm_num_groups", 3, "makes no UNet2DConditionModel"),
    ("sd", "unet", "norm_eps", {"a": 1}, "a number"),
    ("sd", "unet", "act_fn", 7, "text"),
    ("sd", "unet", "act_fn", "bogus", "bogus"),
    ("sd", "unet", "cross_attention_dim", 10**6, "does not belong to the weights"),
    ("sd", "unet", "in_channels", -4, "unet"),
    ("sd", "unet", "flip_sin_to_cos", "yes", "true or false"),
    ("sd", "vae", "scaling_factor", "x", "a number"),
    ("sd", "vae", "shift_factor", [1], "a number"),
    ("sd", "vae", "latents_mean", ["x"], "a list of a number"),
    ("sd", "vae", "block_out_channels", [8, 10**6], "does not belong to the weights"),
    ("sd", "text_encoder", "hidden_size", "16", "a whole number"),
    ("sd", "text_encoder", "vocab_size", 10**8, "does not belong to the weights"),
    ("sd", "text_encoder", "max_position_embeddings", 10**8, "does not belong to the weights"),
    ("sd", "text_encoder", "num_attention_heads", 3, "makes no CLIPTextModel"),
    ("sd3", "transformer", "pos_embed_max_size", 10**8, "'pos_embed.pos_embed'"),
    ("sd3", "transformer", "pos_embed_max_size", True, "a whole number"),
    ("sd3", "transformer", "dual_attention_layers", [0.5], "a list of a whole number"),
    ("sd3", "text_encoder_3", "d_ff", 10**8, "does not belong to the weights"),
    ("flux", "transformer", "axes_dims_rope", "x", "a list of a whole number"),
    ("flux", "transformer", "guidance_embeds", 1, "true or false"),
]


@pytest.mark.parametrize(("family", "part", "field", "value", "words"), HOSTILE)
def test_a_hostile_field_is_refused_by_name(
    family: str, part: str, field: str, value: Any, words: str, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(folder_of(family), tmp_path / "m"))
    file = model / part / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), field: value}))
    with pytest.raises(Damaged) as refusal:
        load(model)
    assert words in str(refusal.value)
    assert str(file) in str(refusal.value)
