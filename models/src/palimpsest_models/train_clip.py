"""Train tiny/clip, pictures and texts of both worlds in one space: `python -m palimpsest_models.train_clip`."""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from palimpsest.core.files import write_beside
from palimpsest.tiny import WEIGHTS
from palimpsest.tiny.assemble import ZIP
from palimpsest_models.captions import KEYS, VOCABULARY, Caption, claims, true_of
from palimpsest_models.clip_batches import Batch, Data
from palimpsest_models.clip_tokens import CLASSES, LENGTH, Encoder, lay_out
from palimpsest_models.everyday import EVERYDAY
from palimpsest_models.masters import Masters
from palimpsest_models.pack import zipped
from palimpsest_models.precision import measured
from palimpsest_models.tokenizer import write_tokenizer
from palimpsest_models.train_text import world_words

TEXT = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 4}
IMAGE = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4}
PROJECTION = 192
PROCESSOR = {
    "image_processor_type": "CLIPImageProcessor",
    "do_convert_rgb": True,
    "do_resize": True,
    "size": {"shortest_edge": 64},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": 64, "width": 64},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
}
SHARES = {"prefix": 1.0, "own": 0.3, "mate": 0.5, "alike": 0.3, "picture": 1.0, "words": 1.0}


class Heads(nn.Module):
    """What is read from states during training alone.

    prefix: from each token's state, the word of each key that was said so far. own: from a word's state, the word
    itself. mate: from a subject's state the colour said of it, from a colour's its subject. picture: labels.
    """

    def __init__(self) -> None:
        super().__init__()
        width = TEXT["hidden_size"]
        self.prefix = nn.Linear(width, sum(CLASSES))
        self.own = nn.Linear(width, sum(len(VOCABULARY[key]) for key in KEYS))
        self.mate = nn.ModuleDict(
            {
                "subject": nn.Linear(width, len(VOCABULARY["colour"]) + 1),
                "colour": nn.Linear(width, CLASSES[KEYS.index("subject")]),
            }
        )
        self.picture = nn.Linear(IMAGE["hidden_size"], sum(CLASSES))


def make_model(tokenizer: CLIPTokenizer) -> CLIPModel:
    """A CLIPModel of 5 M parameters for pictures of 64 x 64 and texts of 77 tokens."""
    tokens = len(tokenizer)
    text = dict(TEXT, vocab_size=tokens, max_position_embeddings=LENGTH, hidden_act="gelu", projection_dim=PROJECTION)
    text |= {"bos_token_id": tokens - 2, "eos_token_id": tokens - 1, "pad_token_id": tokens - 1}
    image = dict(IMAGE, image_size=64, patch_size=8, hidden_act="gelu", projection_dim=PROJECTION)
    config = CLIPConfig(text_config=text, vision_config=image, projection_dim=PROJECTION)
    return CLIPModel(config)


def make_tokenizer(folder: Path) -> CLIPTokenizer:
    """The tokenizer, written to `folder`: every word of the worlds and of `EVERYDAY` is one token."""
    write_tokenizer(folder, world_words() | set(EVERYDAY), length=LENGTH)
    return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


def contrast(logits: Tensor, true: Tensor) -> Tensor:
    """Mean over true pairs (i, j) of -log(e^s_ij / (e^s_ij + sum over false k of e^s_ik)), rows and columns alike.

    Captions leave things out, so that many are true of many pictures: what is true is never held against a pair.

    Args:
        logits: (pictures, texts).
        true: (pictures, texts) bool.
    """
    losses = []
    for s, t in ((logits, true), (logits.T, true.T)):
        against = torch.logsumexp(s.masked_fill(t, float("-inf")), 1, keepdim=True)
        use = t & torch.isfinite(against)
        pair = F.softplus(against.masked_fill(~torch.isfinite(against), 0.0) - s)
        counts = use.sum(1)
        means = (pair * use).sum(1) / counts.clamp(min=1)
        losses.append(means.sum() / (counts > 0).sum().clamp(min=1))
    return (losses[0] + losses[1]) / 2


def read_keys(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over keys of the cross-entropy; logits (n, all classes), targets (n, keys)."""
    losses = [F.cross_entropy(part, targets[:, i]) for i, part in enumerate(logits.split(CLASSES, 1))]
    return torch.stack(losses).mean()


def _shown(labels: Tensor) -> Tensor:
    """Labels as targets of the picture head: what is absent is the last class."""
    none = torch.tensor(CLASSES) - 1
    return torch.where(labels[:, :-1] < 0, none, labels[:, :-1])


class Trainer:
    """The model, its heads, and the step."""

    def __init__(self, model: CLIPModel, encode: Encoder, *, lr: float) -> None:
        self.model, self.encode = model, encode
        self.heads = Heads()
        both = nn.ModuleDict({"model": model, "heads": self.heads})
        self.masters = Masters(both, lr=lr, average=0.995, dtype=measured().dtype)

    def texts(self, captions: list[Caption], twins: list[tuple[int, int]]) -> tuple[Tensor, dict[str, Tensor]]:
        """(n, d) unit vectors, and the losses of what is read from tokens."""
        vectors: list[Tensor] = [torch.empty(0)] * len(captions)
        states: list[Tensor] = [torch.empty(0)] * len(captions)
        sums = {"prefix": [], "own": [], "mate": []}
        for group in lay_out(captions, self.encode):
            out = self.model.text_model(input_ids=group.ids)
            hidden = out.last_hidden_state
            said = self.heads.prefix(hidden).flatten(0, 1).float()
            sums["prefix"].append((read_keys(said, group.prefix.flatten(0, 1)), len(said)))
            if len(group.own):
                at = hidden[group.own[:, 0], group.own[:, 1]]
                sums["own"].append((F.cross_entropy(self.heads.own(at).float(), group.own[:, 2]), len(at)))
            for kind, name in enumerate(("subject", "colour")):
                some = group.mate[group.mate[:, 2] == kind]
                if len(some):
                    at = hidden[some[:, 0], some[:, 1]]
                    sums["mate"].append((F.cross_entropy(self.heads.mate[name](at).float(), some[:, 3]), len(at)))
            projected = F.normalize(self.model.text_projection(out.pooler_output).float(), dim=1)
            for row, vector, state in zip(group.rows, projected, hidden, strict=True):
                vectors[row], states[row] = vector, state
        losses = {k: sum(v * n for v, n in parts) / sum(n for _, n in parts) for k, parts in sums.items()}
        apart = []
        for one, other in twins:
            length = min(len(states[one]), len(states[other]))
            apart.append((states[other][:length].float() - states[one][:length].float().detach()).square().mean())
        losses["alike"] = torch.stack(apart).mean()
        return torch.stack(vectors), losses

    def losses(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        """Every loss of a batch by name, and their weighted sum."""
        dtype = next(self.model.parameters()).dtype
        hidden, vectors = [], []
        for part in ((batch.pictures - 0.5) / 0.5).to(dtype).split(64):
            pooled = self.model.vision_model(part).pooler_output
            hidden.append(pooled)
            vectors.append(F.normalize(self.model.visual_projection(pooled).float(), dim=1))
        texts, losses = self.texts(batch.captions, batch.twins)
        true = true_of(batch.labels, claims(batch.captions[: batch.paired]))
        scale = self.model.logit_scale.float().exp().clamp(max=100)
        logits = scale * torch.cat(vectors) @ texts[: batch.paired].T
        columns = slice(batch.columns.start, batch.columns.stop)
        losses["contrast"] = contrast(logits, true)
        losses["words"] = contrast(logits[:, columns], true[:, columns])
        losses["picture"] = read_keys(self.heads.picture(torch.cat(hidden)).float(), _shown(batch.labels))
        return losses, sum((SHARES.get(name, 1.0) * value for name, value in losses.items()), torch.zeros(()))

    def step(self, batch: Batch, scale: float) -> dict[str, float]:
        """One update; the losses as numbers."""
        losses, total = self.losses(batch)
        total.backward()
        self.masters.step(scale)
        return {name: float(value.detach()) for name, value in losses.items()}


def scale_at(step: int, steps: int, *, warmup: int = 50, cooldown: float = 0.3) -> float:
    """Step-size factor: up in `warmup` steps, level, and straight to 0 over the last share `cooldown`.

    Level for most of a run, so that a longer run can go on from the checkpoint of a shorter one's level part.
    """
    rest = (steps - step) / max(1, round(cooldown * steps))
    return min(1.0, (step + 1) / warmup, rest)


def save_checkpoint(file: Path, trainer: Trainer) -> None:
    """Everything that `restore` needs to go on as if nothing had happened."""
    header = {"run": "clip"}
    write_beside(file, lambda beside: save_file(trainer.masters.state(), str(beside), metadata=header))


def export(trainer: Trainer, tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Write the averaged model as a transformers folder in float16; the training goes on unharmed."""
    trainer.masters.show(trainer.masters.averages)
    model = make_model(tokenizer)
    model.load_state_dict(trainer.model.state_dict())
    trainer.masters.show(trainer.masters.masters)
    folder.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR, indent=2) + "\n")


def ship(folder: Path, out: Path) -> None:
    """Copy an exported model into a package's `out`, its weights zipped without loss; `tiny.path` unpacks them."""
    out.mkdir(parents=True, exist_ok=True)
    for file in sorted(folder.iterdir()):
        if file.suffix == ".safetensors":
            zipped(file, out / (file.name + ZIP), planes=2)
        else:
            shutil.copyfile(file, out / file.name)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=Path("runs/clip"), help="the checkpoint, the pictures and the model"
    )
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--pictures", type=int, default=128, help="in a batch")
    parser.add_argument("--captions", type=int, default=64, help="of them that have one")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-every", type=float, default=150, help="seconds between checkpoints")
    parser.add_argument("--log-every", type=int, default=10)
    parser.add_argument("--export", action="store_true", help="write the model as the checkpoint has it, and stop")
    parser.add_argument("--ship", action="store_true", help="put the written model into the package, and stop")
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(given.seed)
    if given.ship:
        ship(given.out / "model", WEIGHTS / "clip")
        return
    data = Data(given.out / "pictures")
    tokenizer = make_tokenizer(given.out / "tokenizer")
    trainer = Trainer(make_model(tokenizer), Encoder(tokenizer), lr=given.lr)
    checkpoint = given.out / "checkpoint.safetensors"
    if checkpoint.is_file():
        trainer.masters.restore(load_file(str(checkpoint)))
        print(f"goes on after step {trainer.masters.steps}", flush=True)
    if given.export:
        export(trainer, tokenizer, given.out / "model")
        return
    saved, busy, sums = time.monotonic(), time.process_time(), {}
    for step in range(trainer.masters.steps, given.steps):
        batch = data.batch(step, pictures=given.pictures, captions=given.captions, seed=given.seed)
        for name, value in trainer.step(batch, scale_at(step, given.steps)).items():
            sums[name] = sums.get(name, 0.0) + value
        if (step + 1) % given.log_every == 0:
            means = {name: round(value / given.log_every, 4) for name, value in sums.items()}
            print(f"{step + 1}/{given.steps} {means} {time.process_time() - busy:.0f} s of processor", flush=True)
            sums = {}
        if time.monotonic() - saved > given.save_every:
            save_checkpoint(checkpoint, trainer)
            saved = time.monotonic()
    save_checkpoint(checkpoint, trainer)
    export(trainer, tokenizer, given.out / "model")


if __name__ == "__main__":
    main()
