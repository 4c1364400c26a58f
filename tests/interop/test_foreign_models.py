"""Models of open_clip and transformers, with random weights, for all that is done with the library's own."""

import io
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import mobileclip
from mobileclip.data import ImageTransform
from mobileclip.data.images.transform import read_tower_image
from mobileclip.encoders.checkpoints import read_checkpoint
from mobileclip.inference.embedding import read_embeddings
from mobileclip.inputs import ImageInput
from mobileclip.interop import OpenClipSource, load_open_clip
from mobileclip.reinforce import OpenClipTeacher, TransformersTeacher
from tests.build.commands import worked
from tests.build.image_files import encoded, noise
from tests.errors import fails
from tests.lazily import lazily
from tests.reinforce.conftest import picture
from tests.reinforce.open_clip_models import write_tiny_models
from tests.reinforce.tiny_transformers import gemma_tokenizer, write_clip, write_metaclip, write_siglip

transformers = lazily("transformers")
open_clip = lazily("open_clip")

TEXTS = ["a cat", "A Cat, a DOG?", "", "word " * 100, "voilÃ  &amp; cafÃ©"]
KINDS = ("open_clip", "siglip", "clip", "siglip2", "metaclip2")


def first_by_default(*kinds):
    return [kinds[0], *(pytest.param(one, marks=pytest.mark.slow) for one in kinds[1:])]


def write_siglip_of_open_clip(folder):
    """SigLIP as open_clip has it: pictures are stretched, texts lose their capitals and punctuation."""
    folder.mkdir()
    tokenizer = gemma_tokenizer(padding_side="right", add_eos_token=True, add_bos_token=False)
    tokenizer.save_pretrained(folder / "tokenizer")
    text = {"width": 32, "heads": 2, "layers": 2, "context_length": 64, "vocab_size": len(tokenizer)}
    text |= {"hf_tokenizer_name": "tokenizer", "tokenizer_kwargs": {"clean": "canonicalize"}, "pool_type": "last"}
    text |= {"no_causal_mask": True, "proj_bias": True, "norm_kwargs": {"eps": 1e-6}}
    vision = {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8}
    config = {"embed_dim": 48, "init_logit_bias": -10, "vision_cfg": vision, "text_cfg": text}
    torch.manual_seed(0)
    model = open_clip.model.CustomTextCLIP(**config)
    preprocess = {"size": 32, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}
    written = {"model_cfg": {**config, "custom_text": True}, "preprocess_cfg": preprocess}
    (folder / "siglip.json").write_text(json.dumps(written))
    save_file({key: one.contiguous() for key, one in model.state_dict().items()}, folder / "siglip.safetensors")
    return f"open_clip:{folder / 'siglip.json'}={folder / 'siglip.safetensors'}"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("foreign")
    tiny = write_tiny_models(folder / "tiny").teachers[0]
    return {
        "open_clip": f"open_clip:{tiny.model}={tiny.pretrained}",
        "siglip": write_siglip_of_open_clip(folder / "siglip"),
        "clip": f"transformers:{write_clip(folder / 'clip')}",
        "siglip2": f"transformers:{write_siglip(folder / 'siglip2')}",
        "metaclip2": f"transformers:{write_metaclip(folder / 'metaclip2')}",
    }


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Six pictures in folders of two classes."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(6):
        place = folder / ("cat", "dog")[number % 2]
        place.mkdir(exist_ok=True)
        (place / f"{number}.png").write_bytes(picture(number, width=60, height=40))
    return folder


def their_embeddings(name, images):
    """Return what the package itself makes of pictures and texts, by its own transform and tokenizer."""
    scheme, _, where = name.partition(":")
    if scheme == "open_clip":
        config, weights = where.split("=")
        opened = load_open_clip(OpenClipSource(model=config, pretrained=weights))
        preprocess = open_clip.transform.PreprocessCfg(**opened.preprocess)
        transform = open_clip.transform.image_transform_v2(preprocess, is_train=False)
        pixels = torch.stack([transform(image) for image in images])
        return opened.model.encode_image(pixels), opened.model.encode_text(opened.tokenizer(TEXTS))
    model = transformers.AutoModel.from_pretrained(where).eval()
    pixels = transformers.AutoImageProcessor.from_pretrained(where)(images=images, return_tensors="pt")["pixel_values"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(where)
    length = model.config.text_config.max_position_embeddings
    if model.config.model_type == "siglip":
        rows = [tokenizer(text.lower(), add_special_tokens=False)["input_ids"][: length - 1] for text in TEXTS]
        rows = [[*row, tokenizer.eos_token_id] for row in rows]
        ids = torch.tensor([row + [tokenizer.pad_token_id] * (length - len(row)) for row in rows])
    else:
        ids = tokenizer(TEXTS, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        ids = ids["input_ids"]
    images, texts = model.get_image_features(pixel_values=pixels), model.get_text_features(input_ids=ids)
    return images.pooler_output, texts.pooler_output


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_embeddings_are_those_of_the_package(kind, models, photos):
    clip = mobileclip.load(models[kind])
    images = [Image.open(path).convert("RGB") for path in sorted(photos.rglob("*.png"))]
    expected_images, expected_texts = their_embeddings(models[kind], images)
    texts = clip.encode_text(TEXTS, normalize=False)
    torch.testing.assert_close(texts, expected_texts, rtol=1e-4, atol=1e-5)
    # Filters of two packages differ by a level of 255 here and there.
    cosine = torch.cosine_similarity(clip.encode_image(images), expected_images)
    assert cosine.min() > 0.999
    assert expected_images.std(0).max() > 0.01


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("kind", first_by_default(*KINDS))
@pytest.mark.usefixtures("here")
def test_every_command_takes_it(kind, models, photos, capsys):
    name, first, said = models[kind], next(photos.rglob("*.png")), partial(worked, capsys)
    clip = mobileclip.load(name, identify=True)
    found = json.loads(said("classify", first, "a cat", "a dog", "-m", name, "--json"))
    expected = clip.classify(first, ["a cat", "a dog"])
    assert found.get("probabilities", found) == {label: pytest.approx(one, abs=1e-4) for label, one in expected.items()}
    Path("texts.txt").write_text("a cat\n")
    said("embed", photos, "--texts", "texts.txt", "-m", name, "-o", "photos.npz")
    embedded = read_embeddings(Path("photos.npz"))
    assert embedded.model.is_same(clip.identity)
    paths = [Path(path) for path in embedded.image_paths]
    np.testing.assert_allclose(embedded.image, clip.encode_image(paths).numpy(), atol=1e-5)
    said("index", photos, "-m", name, "-i", "photos.index")
    assert "png" in said("search", "a cat", "-i", "photos.index")
    said("eval", name, photos, "-o", "out")
    lines = [json.loads(line) for path in Path("out").rglob("results.jsonl") for line in path.read_text().splitlines()]
    assert [line["num_images"] for line in lines] == [6]
    described = json.loads(said("info", name))
    assert described["licence"]
    assert described["input"]["image"]["size"] == clip.image_input.size
    said("convert", name, "-o", "own.safetensors")
    again = mobileclip.load("own.safetensors", identify=True)
    assert again.identity.is_same(clip.identity)
    torch.testing.assert_close(again.encode_text(TEXTS), clip.encode_text(TEXTS))
    said("convert", name, "--tower", "text", "-o", "texts.safetensors")
    assert read_checkpoint("texts.safetensors").spec == clip.model.spec.text
    said("export", name, "-o", "onnx", "--target", "onnx")
    exported = mobileclip.load("onnx")
    # The tokenizer of an export repairs no mojibake.
    torch.testing.assert_close(exported.encode_text(TEXTS[:4]), clip.encode_text(TEXTS[:4]), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(exported.encode_image(paths), clip.encode_image(paths), rtol=1e-3, atol=1e-3)


def test_what_cannot_be_said_is_refused_by_name(models, photos, tmp_path):
    captioner = write_tiny_models(tmp_path).captioner
    whole = json.loads((Path(models["siglip2"].partition(":")[2]) / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**whole, "model_type": "siglip2"}))
    for words, names, options in (
        (["CoCa"], [f"open_clip:{captioner.model}={captioner.pretrained}"], {}),
        (["NaFlex"], [f"transformers:{tmp_path}"], {}),
        ([], ["mobileclip_s0", models["clip"]], {}),
        (["64"], [models["clip"]], {"image_size": 64}),
        (["16"], [models["clip"]], {"context_length": 16}),
    ):
        with fails(ValueError, *words):
            mobileclip.load(*names, **options)
    with fails(ValueError, "ForeignTower"):
        mobileclip.load(models["clip"]).explain(next(photos.rglob("*.png")), "a cat")


def test_the_licence_is_that_of_the_card(models, capsys):
    folder = Path(models["metaclip2"].partition(":")[2])
    (folder / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n# A model\n")
    assert "cc-by-nc-4.0" in json.loads(worked(capsys, "info", models["metaclip2"]))["licence"]


@pytest.mark.parametrize("kind", first_by_default("open_clip", "siglip2"))
def test_a_teacher_is_the_same_model(kind, models):
    config, _, weights = models[kind].partition(":")[2].partition("=")
    spec = OpenClipTeacher(model=config, pretrained=weights) if weights else TransformersTeacher(model=config)
    expected = mobileclip.load(models[kind]).encode_text(TEXTS, normalize=False)
    torch.testing.assert_close(spec.build().encode_texts(TEXTS), expected)


def test_pictures_are_stretched_to_the_bit_of_pillow():
    data = encoded(noise(90, 50), "JPEG")
    transform = ImageTransform(ImageInput(size=32, interpolation="bicubic", fit="stretch"))
    image = Image.open(io.BytesIO(data))
    expected = np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC))
    assert np.array_equal(transform.pixels(image), expected)
    assert np.array_equal(read_tower_image(data, transform, name="it").pixels, expected)
