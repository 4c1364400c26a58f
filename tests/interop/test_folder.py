"""Models as folders: what is in them, who loads them, what their cards say, and what is never written over."""

import json
import re

import attrs
import pytest
import torch
from huggingface_hub import ModelCard, metadata_load
from PIL import Image

from mobileclip import ImageTextModel, reparameterize, specs
from mobileclip.data import ImageTransform, Tokenizer, read_text_input
from mobileclip.encoders import ClassifierSpec, DualEncoderSpec, TextTransformerSpec, ViTSpec, load_model, save_model
from mobileclip.evaluation import DatasetResult
from mobileclip.inputs import ImageInput
from mobileclip.interop import from_pretrained, open_clip_config, save_pretrained, timm_config
from mobileclip.interop.transformers_folder import TRANSFORMERS
from mobileclip.tensor_files import CheckpointError
from tests.build.commands import worked
from tests.data.tokenizer_files import bert
from tests.encoders.small import IMAGE, SMALL, TEXT, VIT, randomised
from tests.errors import fails
from tests.golden.checkpoints import relative_error
from tests.interop.models import DUAL, PHOTO, TOWER, WITH_TEXTS
from tests.interop.round_trip import same
from tests.lazily import lazily

open_clip, timm, transformers = lazily("open_clip"), lazily("timm"), lazily("transformers")
PUBLISHED = [f"MobileCLIP2-{size}" for size in ("B", "L-14", "S0", "S2", "S3", "S4")]

STAGES = zip(specs.mci3().stages, (32, 32, 64, 64, 128), strict=True)
FIVE = attrs.evolve(
    specs.mci3(),
    stages=tuple(attrs.evolve(stage, dim=dim, depth=1) for stage, dim in STAGES),
    embedding_dim=40,
    projection_bias=True,
    input=ImageInput(size=64),
)
CONVOLUTIONAL = ViTSpec(depth=1, num_heads=6, stem_padding=0, norm_eps=1e-6, input=ImageInput(size=64))
PATCH = attrs.evolve(specs.vit_l14(), width=32, depth=2, num_heads=2, patch_size=8, input=ImageInput(size=56))
BARE = TOWER.without_projection()
CLASSIFIER = ClassifierSpec(image=BARE, num_classes=3, class_names=("cat", "dog", "owl"))
ON_EMBEDDINGS = ClassifierSpec(image=TOWER, num_classes=3)
VIT_B = specs.mobileclip2_b()
PLAIN, TIMM = {"README.md", "model.safetensors"}, {"README.md", "model.safetensors", "config.json"}


def saved(spec, tmp_path, **options):
    """Save the model of a spec, and return its folder and its card."""
    folder = save_pretrained(randomised(spec), tmp_path / "model", **{"license": "mit", **options})
    return folder, ModelCard.load(folder / "README.md")


def names(folder):
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("spec", "folded", "files", "library"),
    [
        (SMALL, False, PLAIN, "mobileclip"),
        (SMALL, True, PLAIN, "mobileclip"),
        (TOWER, False, TIMM, "timm"),
        (TOWER, True, PLAIN, "mobileclip"),
        (IMAGE, False, PLAIN, "mobileclip"),
        (TEXT, False, PLAIN, "mobileclip"),
        (BARE, False, TIMM, "timm"),
        (CLASSIFIER, False, TIMM, "timm"),
        (ON_EMBEDDINGS, False, PLAIN, "mobileclip"),
    ],
)
def test_what_is_saved_comes_back_to_the_bit(spec, folded, files, library, tmp_path):
    model = reparameterize(randomised(spec)) if folded else randomised(spec)
    folder = save_pretrained(model, tmp_path / "made" / "model", license="mit")
    assert names(folder) == files
    assert metadata_load(folder / "README.md")["library_name"] == library
    assert same(from_pretrained(folder, fold=folded), model)


def test_a_tokenizer_of_its_own_is_there_and_keeps_other_libraries_away(tmp_path):
    bert().save(str(tmp_path / "theirs.json"))
    text = attrs.evolve(TEXT, input=read_text_input(tmp_path / "theirs.json", context_length=12))
    folder, card = saved(DualEncoderSpec(image=TOWER, text=text), tmp_path)
    assert names(folder) == {*PLAIN, "tokenizer.json"}
    assert (folder / "tokenizer.json").read_bytes() == (tmp_path / "theirs.json").read_bytes()
    assert text.input.tokenizer.sha256 in card.text


def test_nothing_is_written_over_but_what_was_written_so(tmp_path):
    folder, _ = saved(TOWER, tmp_path)
    with fails(FileExistsError):
        saved(TEXT, tmp_path)
    saved(TEXT, tmp_path, overwrite=True)
    assert names(folder) == PLAIN
    assert names(tmp_path) == {"model"}
    (tmp_path / "project" / "model").mkdir(parents=True)
    (tmp_path / "project" / "model" / "README.md").write_text("mine")
    (folder / "notes.txt").write_text("mine")
    for place, word in ((tmp_path, "notes.txt"), (tmp_path / "project", "")):
        with fails(FileExistsError, word):
            saved(TEXT, place, overwrite=True)


def test_names_that_the_hub_has_not_are_refused(tmp_path):
    repositories = ({"repository": "name"}, {"repository": "owner/name\n# Free"})
    for options in ({"license": "MIT License"}, {"license": ""}, *repositories, {"base_model": "mobileclip_s2"}):
        with fails(ValueError):
            saved(TEXT, tmp_path, **options)
    assert not list(tmp_path.iterdir())


def test_a_folder_is_asked_for_what_it_has(tmp_path):
    folder, _ = saved(TEXT, tmp_path)
    with fails(ValueError):
        from_pretrained(folder, revision="main")
    (folder / "more.safetensors").write_bytes(b"")
    with fails(CheckpointError):
        from_pretrained(folder)


@pytest.mark.parametrize("spec", [specs.mci0(), TOWER, FIVE, CONVOLUTIONAL, PATCH])
@torch.inference_mode()
def test_timm_builds_the_tower_with_equal_embeddings_and_features(spec, tmp_path):
    folder, _ = saved(spec, tmp_path)
    tower, theirs = randomised(spec), timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    preprocess = timm.data.create_transform(**timm.data.resolve_model_data_config(theirs))
    image = Image.open(PHOTO).convert("RGB")
    images, ours = preprocess(image)[None], ImageTransform(spec.input)(image)[None]
    assert images.shape == ours.shape
    assert relative_error(theirs(images), tower(images)) < 1e-5
    maps = theirs.forward_intermediates(ours, intermediates_only=True)
    for own, other in zip(tower.features(ours), maps, strict=True):
        assert relative_error(other, own) < 1e-5


OF_VIT = ClassifierSpec(image=attrs.evolve(PATCH, projection=False, embedding_dim=32), num_classes=3)


@pytest.mark.parametrize("spec", [BARE, CLASSIFIER, OF_VIT])
@torch.inference_mode()
def test_timm_builds_classifiers_and_towers_without_a_projection(spec, tmp_path):
    folder, _ = saved(spec, tmp_path)
    model, theirs = randomised(spec), timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    images = torch.rand(2, *theirs.pretrained_cfg["input_size"])
    assert relative_error(theirs(images), model(images)) < 1e-5
    assert tuple(theirs.pretrained_cfg.get("label_names", ())) == getattr(spec, "class_names", ())
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    assert same(load_model(tmp_path / "theirs.pth", spec, fold=False), model)
    tower = load_model(tmp_path / "theirs.pth", spec, tower="image", fold=False)
    assert same(tower, getattr(model, "image_encoder", model))


@pytest.mark.parametrize("name", ["mci0", "mci1", "mci2", "mci3", "mci4", "vit_l14"])
def test_timm_has_the_published_towers_by_name(name):
    config = timm_config(getattr(specs, name)(), licence="mit")
    assert timm.is_model(config["architecture"])
    assert "model_args" not in config


@pytest.mark.parametrize(
    ("spec", "word"),
    [(IMAGE, "none, none, batch"), (VIT, "stem_padding"), (attrs.evolve(PATCH, norm_eps=1e-6), "norm_eps")],
)
def test_what_timm_does_not_build_is_said(spec, word, tmp_path):
    with fails(ValueError, word):
        timm_config(spec, licence="mit")
    folder, card = saved(spec, tmp_path)
    assert word.replace("_", "\\_") in card.text
    assert names(folder) == PLAIN


@torch.inference_mode()
def test_open_clip_loads_a_folder_with_equal_embeddings(tmp_path):
    folder, _ = saved(DUAL, tmp_path)
    assert names(folder) == {*PLAIN, "open_clip_config.json", "open_clip_model.safetensors", *TRANSFORMERS}
    dual, texts = randomised(DUAL), ["a cat", "two dogs on a beach"]
    assert same(from_pretrained(folder, fold=False), dual)
    theirs, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    theirs.eval()
    images = preprocess(Image.open(PHOTO).convert("RGB"))[None]
    assert relative_error(theirs.encode_image(images), dual.encode_image(images)) < 1e-5
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(texts)
    assert torch.equal(tokens, Tokenizer(DUAL.text.input)(texts))
    assert relative_error(theirs.encode_text(tokens), dual.encode_text(tokens)) < 1e-5
    assert torch.equal(theirs.logit_scale, dual.logit_scale[0])


@pytest.mark.parametrize("name", PUBLISHED)
def test_open_clip_has_the_published_models_as_we_describe_them(name):
    spec = getattr(specs, name.lower().replace("-", "_").replace("l_14", "l14"))()
    ours, theirs = open_clip_config(spec)["model_cfg"], open_clip.get_model_config(name)
    # A rate of training alone.
    theirs["vision_cfg"]["timm_drop_path"] = 0.0
    assert ours == theirs


@pytest.mark.parametrize(
    ("spec", "word"),
    [
        (specs.mobileclip_s0(), "MCtSpec"),
        (specs.mobileclip_b(), ""),
        (DualEncoderSpec(image=attrs.evolve(TOWER, embedding_dim=512), text=specs.text_base()), ""),
        (SMALL, ""),
        (attrs.evolve(DUAL, image=attrs.evolve(IMAGE, embedding_dim=512)), "none, none, batch"),
        (attrs.evolve(VIT_B, image=attrs.evolve(VIT_B.image, input=ImageInput(size=384))), "224"),
    ],
)
def test_what_open_clip_does_not_build_is_said(spec, word):
    with fails(ValueError, word):
        open_clip_config(spec)


SENTENCES = ["a red bicycle in snow", "cat", "word " * 90]
SHORT = TextTransformerSpec(width=64, num_heads=2, depth=2, embedding_dim=32)
CAUSAL = DualEncoderSpec(image=attrs.evolve(CONVOLUTIONAL, embedding_dim=32), text=attrs.evolve(SHORT, causal=True))


@pytest.mark.parametrize(
    ("spec", "text_model"),
    [
        (WITH_TEXTS, "sam3_lite_text_text_model"),
        (attrs.evolve(WITH_TEXTS, text=SHORT), "sam3_lite_text_text_model"),  # padding is attended to
        (CAUSAL, "clip_text_model"),
    ],
)
@torch.inference_mode()
def test_transformers_loads_a_folder_with_equal_embeddings_and_writes_one(spec, text_model, tmp_path):
    folder, _ = saved(spec, tmp_path, library="transformers")
    model, photo = randomised(spec), Image.open(PHOTO).convert("RGB")
    assert names(folder) == {*PLAIN, *TRANSFORMERS}
    assert same(from_pretrained(folder, fold=False), model)
    theirs = transformers.AutoModel.from_pretrained(folder).eval()
    assert theirs.config.text_config.model_type == text_model
    options = {"padding": "max_length", "max_length": 77, "truncation": True, "return_tensors": "pt"}
    given = transformers.AutoProcessor.from_pretrained(folder)(text=SENTENCES, images=photo, **options)
    ids, pixels = given["input_ids"], given["pixel_values"]
    assert torch.equal(ids, Tokenizer(spec.text.input)(SENTENCES))
    texts = theirs.get_text_features(input_ids=ids).pooler_output
    assert relative_error(texts, model.encode_text(ids)) < 1e-5
    images = theirs.get_image_features(pixel_values=pixels).pooler_output
    assert relative_error(images, model.encode_image(pixels)) < 1e-5
    ours = model.encode_image(ImageTransform(spec.image.input)(photo)[None])
    assert torch.cosine_similarity(images, ours) > 0.9999
    theirs.text_projection.weight.mul_(2)
    theirs.save_pretrained(tmp_path / "theirs")
    trained = ImageTextModel(from_pretrained(tmp_path / "theirs"))
    assert relative_error(trained.model.encode_text(ids), 2 * texts) < 1e-5


def test_what_transformers_does_not_build_is_refused(tmp_path):
    for model, word in (
        (randomised(specs.mobileclip_b()), "stem"),
        (reparameterize(randomised(WITH_TEXTS)), "folded"),
        (randomised(SMALL), "stages"),
        (randomised(TOWER), "image-text model"),
    ):
        with fails(ValueError, word):
            save_pretrained(model, tmp_path / "model", license="mit", library="transformers")
    assert not (tmp_path / "model").exists()


def test_the_command_converts_to_transformers(tmp_path, capsys):
    file = tmp_path / "model.safetensors"
    save_model(randomised(WITH_TEXTS), file)
    worked(capsys, "convert", file, "--to", "transformers", "-o", tmp_path / "folder")
    assert same(from_pretrained(tmp_path / "folder", fold=False), randomised(WITH_TEXTS))


HOSTILE = ["cats | dogs", "a\n---\nlicense: mit", "`x` <script>", "![x](y) **b**", '"}]: {"', "\u2028\u202e猫😀\x07\0"]


@pytest.mark.parametrize("name", HOSTILE)
def test_names_are_shown_in_a_card_and_do_nothing(name, tmp_path):
    result = DatasetResult(key=name, dataset=name, metrics={"main_metric": 0.5, name: 0.5}, num_images=7)
    folder, _ = saved(TEXT, tmp_path, license="apple-amlr", results=[result])
    content, data = (folder / "README.md").read_text(encoding="utf-8"), metadata_load(folder / "README.md")
    assert set(data) == {"license", "library_name", "pipeline_tag", "tags", "model-index"}
    assert data["license"] == "apple-amlr"
    last = content.splitlines()[-1]
    assert last.replace("\\|", "").count("|") == 6
    assert not any(mark in last.replace("\\<", "").replace("\\`", "") for mark in "<`")
    assert content.count("\n## ") == 4
    assert content.isprintable() or {letter for letter in content if not letter.isprintable()} == {"\n"}


def test_the_hub_reads_numbers_as_they_were_measured(tmp_path):
    metrics = {"main_metric": 0.6543, "acc1": 0.6543, "acc5": 0.9, "count_worst": 12.0}
    results = [DatasetResult(key="imagenet1k", dataset="ImageNet 1k", metrics=metrics, num_images=50_000)]
    _, card = saved(SMALL, tmp_path, license="cc-by-4.0", repository="me/small", results=results)
    found = {(one.dataset_type, one.metric_type): one.metric_value for one in card.data.eval_results}
    assert found == {("imagenet1k", "acc1"): 0.6543, ("imagenet1k", "acc5"): 0.9}
    assert (card.data.model_name, card.data.pipeline_tag) == ("small", "zero-shot-image-classification")
    assert "| ImageNet 1k | 50,000 | acc1 | 65.43% | acc5 90.00% |" in card.text


def test_a_card_tells_the_contract_and_the_licence(tmp_path):
    folder, card = saved(TOWER, tmp_path, license="apple-amlr")
    rows = dict(re.findall(r"^\| (\w+) \| (.*) \|$", card.text, re.MULTILINE))
    assert rows["mean"] == "0.5, 0.4, 0.3"
    assert rows["interpolation"].startswith("bicubic")
    assert rows["size"].startswith("64 x 64")
    config = json.loads((folder / "config.json").read_text())["pretrained_cfg"]
    assert (config["mean"], config["license"]) == ([0.5, 0.4, 0.3], "apple-amlr")


@pytest.mark.parametrize(
    ("spec", "libraries"),
    [(TOWER, ["mobileclip", "timm"]), (CLASSIFIER, ["mobileclip", "timm"]), (TEXT, ["mobileclip"])],
)
def test_a_card_says_what_the_model_was_made_of_and_how_it_is_loaded(spec, libraries, tmp_path):
    _, card = saved(spec, tmp_path, repository="me/small", base_model="apple/MobileCLIP-S2")
    assert card.data.base_model == "apple/MobileCLIP-S2"
    for block, library in zip(re.findall(r"```python\n(.*?)```", card.text, re.DOTALL), libraries, strict=True):
        compile(block, "card", "exec")
        assert library in block
        assert "me/small" in block
