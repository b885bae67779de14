"""Model folders as people and as enemies write them: nothing runs, nothing is guessed, refusals say what to do."""

from __future__ import annotations

import json
import shutil
import sys
import types
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hosts_fixtures import autoencoder, folder_of, host_of
from palimpsest.core.errors import Damaged, PalimpsestError, Unsupported
from palimpsest.core.host import Autoencoder, Classifier, Encoder, Matcher
from palimpsest.hosts.classifiers import ClassifierHost
from palimpsest.hosts.factory import save
from palimpsest.hosts.load import check_alike, check_loaded, load
from palimpsest.hosts.source import Family, config_of
from palimpsest.tiny.resnet import resnet

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
VISION = {**SIZES, "image_size": 16, "patch_size": 8}
LABELS = {"id2label": {0: "cat", 1: "dog", 2: "fish"}, "label2id": {"cat": 0, "dog": 1, "fish": 2}}


def kept(model: Any, folder: Path, processor: str = "ViTImageProcessor") -> Path:
    torch.manual_seed(0)
    model.save_pretrained(folder)
    settings = {"image_processor_type": processor, "size": {"height": 16, "width": 16}, "do_center_crop": False}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def rewrite(file: Path, change: Any) -> None:
    save_file(change(load_file(str(file))), str(file), metadata={"format": "pt"})


def vit(folder: Path, **more: Any) -> Path:
    from transformers import ViTConfig, ViTForImageClassification

    return kept(ViTForImageClassification(ViTConfig(**VISION, **LABELS, **more)), folder)


def pictures(n: int = 2, side: int = 16) -> Tensor:
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(0))


# -- classifiers of all kinds ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["clip", "siglip", "deit", "resnet", "swin", "convnext"])
def test_classifiers_of_transformers(kind: str, tmp_path: Path) -> None:
    import transformers as t

    build = {
        "clip": lambda: t.CLIPForImageClassification(t.CLIPConfig(vision_config=VISION, text_config=SIZES, **LABELS)),
        "siglip": lambda: t.SiglipForImageClassification(
            t.SiglipConfig(vision_config=VISION, text_config=SIZES, **LABELS)
        ),
        "deit": lambda: t.DeiTForImageClassification(t.DeiTConfig(**VISION, **LABELS)),
        "resnet": lambda: t.ResNetForImageClassification(
            t.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", **LABELS)
        ),
        "swin": lambda: t.SwinForImageClassification(
            t.SwinConfig(
                image_size=16, patch_size=2, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=2, **LABELS
            )
        ),
        "convnext": lambda: t.ConvNextForImageClassification(
            t.ConvNextConfig(hidden_sizes=[8, 8, 8, 16], depths=[1, 1, 1, 1], patch_size=2, **LABELS)
        ),
    }[kind]
    host = load(kept(build(), tmp_path / "m"))
    assert isinstance(host, Classifier)
    assert host.labels == ("cat", "dog", "fish")
    features, logits = host.read(pictures())
    assert logits.shape == (2, 3)
    (head,) = host.parts("head").values()
    linear = [m for m in head.modules() if isinstance(m, nn.Linear)][-1]
    assert torch.allclose(linear(features), logits, atol=1e-5)
    assert load(tmp_path / "m").fingerprint() == host.fingerprint()


def test_a_model_with_a_teachers_head_is_told_what_to_load(tmp_path: Path) -> None:
    from transformers import DeiTConfig, DeiTForImageClassificationWithTeacher

    folder = kept(DeiTForImageClassificationWithTeacher(DeiTConfig(**VISION, **LABELS)), tmp_path / "m")
    with pytest.raises(Unsupported, match=r"2 layers that give its 3 logits.*without WithTeacher"):
        load(folder)


@pytest.mark.parametrize("problem", ["multi_label_classification", "regression"])
def test_labels_that_do_not_exclude_each_other_are_refused(problem: str, tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="do not exclude each other"):
        load(vit(tmp_path / "m", problem_type=problem))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model."])
def test_a_classifier_saved_from_a_wrapper(prefix: str, tmp_path: Path) -> None:
    folder = vit(tmp_path / "m")
    wanted = load(folder)
    rewrite(folder / "model.safetensors", lambda state: {prefix + key: value for key, value in state.items()})
    assert load(folder).fingerprint() == wanted.fingerprint()
    assert torch.equal(load(folder).logits(pictures()), wanted.logits(pictures()))


@pytest.mark.parametrize("lost", ["classifier.weight", "vit.embeddings.cls_token"])
def test_a_classifier_that_lacks_a_tensor(lost: str, tmp_path: Path) -> None:
    folder = vit(tmp_path / "m")
    rewrite(folder / "model.safetensors", lambda state: {k: v for k, v in state.items() if k != lost})
    with pytest.raises(Damaged, match=f"1 tensors of .* are not in its files, first '{lost}'"):
        load(folder)


def test_statistics_of_batch_normalisation_may_not_be_absent_but_their_counter_may(tmp_path: Path) -> None:
    folder = save(
        resnet(3, 8), tmp_path / "m", factory="palimpsest.tiny.resnet:resnet", arguments={"classes": 3, "width": 8},
        labels=["a", "b", "c"], head="head", backbone="backbone",
    )  # fmt: skip
    wanted = load(folder).fingerprint()
    file = folder / "model.safetensors"
    rewrite(file, lambda state: {k: v for k, v in state.items() if "num_batches_tracked" not in k})
    assert load(folder).fingerprint() == wanted
    rewrite(file, lambda state: {f"module.{k}": v for k, v in state.items()})
    assert load(folder).fingerprint() == wanted
    rewrite(file, lambda state: {k: v for k, v in state.items() if "running_var" not in k})
    with pytest.raises(Damaged, match=r"are not in its files, first '.*running_var'"):
        load(folder)


class Several(nn.Module):
    """Answers with a tuple, or with something else altogether."""

    def __init__(self, answer: str) -> None:
        super().__init__()
        self.head, self.answer = nn.Linear(3, 2), answer

    def forward(self, images: Tensor) -> Any:
        logits = self.head(images.mean((2, 3)))
        return {"tuple": (logits, images), "dict": {"out": logits}, "short": logits[:, :1]}[self.answer]


def test_models_that_answer_with_more_than_logits() -> None:
    host = ClassifierHost(Several("tuple"), name="mine", labels=["a", "b"], head="head")
    assert host.logits(pictures()).shape == (2, 2)
    for answer, words in (("dict", "a dict"), ("short", r"of shape \(2, 1\)")):
        host = ClassifierHost(Several(answer), name="mine", labels=["a", "b"], head="head")
        with pytest.raises(
            Unsupported, match=rf"mine answers 2 pictures with {words}; expected logits of shape \(2, 2\)"
        ):
            host.logits(pictures())


def test_pictures_that_are_too_small_get_words() -> None:
    host = ClassifierHost(resnet(3, 8), name="digits", labels=["a", "b", "c"], head="head")
    with pytest.raises(Unsupported, match="digits cannot read pictures of 8x8 pixels"):
        host.logits(pictures(side=8))


def test_a_model_knows_its_size(tmp_path: Path) -> None:
    assert load(vit(tmp_path / "m")).size == (16, 16)


# -- encoders, CLIP, autoencoders, families of others ------------------------------------------------------


def test_encoders(tmp_path: Path) -> None:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection, ViTConfig, ViTModel

    model = ViTModel(ViTConfig(**VISION)).eval()
    host = load(kept(model, tmp_path / "vit"))
    assert isinstance(host, Encoder)
    assert not isinstance(host, Classifier)
    assert torch.allclose(host.embed(pictures()), model((pictures() - 0.5) / 0.5).pooler_output, atol=1e-5)
    clip = CLIPVisionModelWithProjection(CLIPVisionConfig(**VISION, projection_dim=8)).eval()
    assert load(kept(clip, tmp_path / "clip")).embed(pictures()).shape == (2, 8)
    own = save(
        nn.Sequential(nn.Flatten(), nn.Linear(48, 5)),
        tmp_path / "own",
        factory="mine:net",
        arguments={},
        labels=[],
        head="",
    )
    config = json.loads((own / "config.json").read_text())
    (own / "config.json").write_text(json.dumps({k: config[k] for k in ("factory", "arguments")}))
    with pytest.raises(Damaged, match="not one of the architectures"):
        load(own)


def test_an_autoencoder_alone(tmp_path: Path) -> None:
    model = autoencoder().eval()
    model.save_pretrained(tmp_path / "vae")
    host = load(tmp_path / "vae")
    assert isinstance(host, Autoencoder)
    assert not isinstance(host, Matcher)
    z = host.latents(pictures(1))
    assert torch.allclose(z, model.encode(pictures(1) * 2 - 1).latent_dist.mean, atol=1e-5)
    assert torch.allclose(host.pixels(z), (model.decode(z).sample / 2 + 0.5).clamp(0, 1), atol=1e-5)


def test_a_package_adds_a_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Own:
        root = nn.Linear(1, 1)

    module = types.ModuleType("my_hosts")
    module.FAMILY = Family(lambda files, config, keys: "weird.json" in files, lambda source: Own())  # type: ignore
    monkeypatch.setitem(sys.modules, "my_hosts", module)
    point = EntryPoint(name="weird", value="my_hosts", group="palimpsest.hosts")
    monkeypatch.setattr("palimpsest.hosts.load.entry_points", lambda group: [point])
    (tmp_path / "weird.json").write_text("{}")
    assert isinstance(load(tmp_path), Own)


# -- what a folder may name --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "named"),
    [
        ("unet", ["diffusers", "StableDiffusionPipeline"]),
        ("unet", ["diffusers", "ControlNetModel"]),
        ("text_encoder", ["transformers", "AutoModel"]),
        ("text_encoder", ["transformers", "pipeline"]),
        ("tokenizer", ["transformers", "AutoTokenizer"]),
        ("scheduler", ["diffusers", "DiffusionPipeline"]),
        ("vae", ["diffusers", "UNet2DConditionModel"]),
        ("vae", ["os", "system"]),
        ("unet", ["diffusers", 7]),
        ("unet", ["diffusers", ["UNet2DConditionModel"]]),
        ("unet", "diffusers"),
        ("unet", ["diffusers", "UNet2DConditionModel", "more"]),
        ("unet", None),
        ("unet", 7),
    ],
)
def test_a_pipelines_parts_are_of_listed_classes(part: str, named: Any, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folder_of("sd"), tmp_path / "m"))
    edit(folder / "model_index.json", **{part: named})
    with pytest.raises((Unsupported, Damaged), match=part):
        load(folder)


REACHING: list[dict[str, Any]] = [
    {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}},
    {"attn_implementation": "someone/kernels"},
    {"_attn_implementation": "someone/kernels:flash"},
    {"vision_config": {"_attn_implementation": "someone/kernels"}},
]


@pytest.mark.parametrize("change", REACHING, ids=lambda c: next(iter(c)))
@pytest.mark.parametrize("part", ["", "unet", "text_encoder"])
def test_configurations_reach_nothing_beside_the_component(part: str, change: dict[str, Any], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folder_of("sd"), tmp_path / "m")) if part else vit(tmp_path / "m")
    edit(folder / part / "config.json", **change)
    with pytest.raises(Damaged, match="would run or fetch something beside the model"):
        load(folder)


def test_an_adapters_folder_names_no_other_model(tmp_path: Path) -> None:
    folder = vit(tmp_path / "m")
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "someone/else"}))
    with pytest.raises(Damaged, match="holds an adapter of another model"):
        load(folder)


def test_code_of_a_classifiers_folder_is_never_followed(tmp_path: Path) -> None:
    folder, mark = vit(tmp_path / "m"), tmp_path / "ran"
    (folder / "mine.py").write_text(f"open({str(mark)!r}, 'w')\nclass Net: pass\nclass Proc: pass\n")
    wanted = load(folder).fingerprint()
    edit(folder / "config.json", auto_map={"AutoModelForImageClassification": "mine.Net", "AutoConfig": "mine.Net"})
    assert load(folder).fingerprint() == wanted
    edit(folder / "config.json", architectures=["MineForImageClassification"])
    with pytest.raises(Unsupported, match="MineForImageClassification, which the transformers installed here"):
        load(folder)
    edit(folder / "config.json", architectures=["ViTForImageClassification"])
    edit(folder / "preprocessor_config.json", image_processor_type="Proc", auto_map={"AutoImageProcessor": "mine.Proc"})
    with pytest.raises(Damaged, match="image processor"):
        load(folder)
    assert not mark.exists()


@pytest.mark.parametrize(
    "arguments",
    [
        {"checkpoint_path": "x"},
        {"pretrained": True},
        {"pretrained_cfg_overlay": "x"},
        {"cache_dir": "x"},
        {"norm_layer": "os.system"},
        {"act_layer": "../x"},
        {"scriptable": True},
        {"deep": {"checkpoint_path": "x"}},
    ],
)
def test_timm_builds_from_plain_arguments_alone(
    arguments: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []
    stand_in = types.ModuleType("timm")
    stand_in.__version__ = "1"  # type: ignore[attr-defined]

    def create_model(name: str, pretrained: bool, **more: Any) -> nn.Module:
        asked.append(more)
        return resnet(more["num_classes"], more.get("width", 8))

    stand_in.create_model = create_model  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "timm", stand_in)
    folder = tmp_path / "m"
    save(resnet(3, 4), folder, factory="x", arguments={}, labels=[], head="")
    cfg = {"input_size": [3, 16, 16], "classifier": "head", "num_classes": 3}
    named: dict[str, Any] = {"architecture": "small", "pretrained_cfg": cfg, "model_args": {"width": 4}}
    (folder / "config.json").write_text(json.dumps(named))
    assert load(folder).logits(pictures()).shape == (2, 3)
    assert asked == [{"width": 4, "num_classes": 3}]
    (folder / "config.json").write_text(json.dumps({**named, "model_args": arguments}))
    with pytest.raises(Damaged):
        load(folder)
    assert len(asked) == 1


# -- values that make no sense ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [{"layers_per_block": 10**6}, {"num_hidden_layers": 10**12}, {"depths": [3, 10**5]}, {"vocab_size": 10**12}],
    ids=lambda c: next(iter(c)),
)
def test_numbers_that_would_take_all_memory_or_time_are_refused_before_building(
    change: dict[str, Any], tmp_path: Path
) -> None:
    shutil.copy(folder_of("sd") / "unet" / "config.json", tmp_path)
    assert config_of(tmp_path)["_class_name"] == "UNet2DConditionModel"
    edit(tmp_path / "config.json", deeper=change)
    with pytest.raises(Damaged, match=next(iter(change))):
        config_of(tmp_path)


@pytest.mark.parametrize("value", ["x", None, [], {}])
def test_values_of_another_type_give_words(value: Any, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folder_of("sd"), tmp_path / "m"))
    edit(folder / "unet" / "config.json", block_out_channels=value)
    with pytest.raises(PalimpsestError):
        load(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "{" * 5000, '{"a": NaN}', '{"a": 1e999}', "\ud800"])
@pytest.mark.parametrize("file", ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json"])
def test_files_that_are_no_json(file: str, text: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folder_of("sd"), tmp_path / "m"))
    (folder / file).write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(Damaged):
        load(folder)


# -- comparing before loading ------------------------------------------------------------------------------


def test_another_model_is_noticed_before_it_is_loaded(tmp_path: Path) -> None:
    sd = host_of("sd")
    for same in ("sd", "sd_v"):
        check_alike(sd, folder_of(same))
    half = tmp_path / "half"
    load(folder_of("sd"), dtype="float16").pipeline.save_pretrained(half, variant="fp16")
    check_alike(sd, half)
    for other in (folder_of("sdxl"), folder_of("sd3"), folder_of("flux"), vit(tmp_path / "vit")):
        with pytest.raises(Unsupported, match="is no edit of"):
            check_alike(sd, other)


def test_what_is_loaded_is_compared_by_kind_classes_and_shapes() -> None:
    def host(labels: str, width: int = 12) -> ClassifierHost:
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(width, 8), torch.nn.Linear(8, len(labels)))
        return ClassifierHost(model, name=labels, labels=list(labels), head="2")

    check_loaded(host("ab"), host("ab"))
    check_loaded(host("ab"), host("01"))  # a state of one's own does not say what its classes are called
    check_loaded(host_of("sd"), host_of("sd_v"))
    others = [
        (host("ab"), host("abc"), "has 3 classes, that has 2"),
        (host("ab"), host("ba"), "'b' stands for 'a'"),
        (host("ab"), host("ab", width=48), "other shapes"),
        (host_of("sd"), host("ab"), "Classifier"),
        (host_of("sd"), host_of("sdxl"), "SDXL"),
    ]
    for before, after, words in others:
        with pytest.raises(Unsupported, match=words):
            check_loaded(before, after)
