"""SigLIP 2 and MetaCLIP 2 as teachers: embeddings as transformers itself gives them for what they were trained on."""

import io
import json
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from mobileclip.extras import install
from mobileclip.inference.identity import ModelIdentity
from mobileclip.inputs import OPENAI_MEAN, OPENAI_STD
from mobileclip.recipes.distilling import open_teacher
from mobileclip.reinforce import OpenClipTeacher, TransformersTeacher, build_ensemble
from tests.contracts.teachers import check_teacher
from tests.errors import fails
from tests.lazily import lazily
from tests.reinforce.conftest import picture
from tests.reinforce.tiny_transformers import gemma_tokenizer, write_metaclip, write_siglip, xlm_tokenizer

transformers = lazily("transformers")

TEXTS = ["a cat", "A Cat, a DOG?", "", "word " * 100, "é 漢字"]


@pytest.fixture(scope="module")
def siglip(tmp_path_factory):
    return write_siglip(tmp_path_factory.mktemp("siglip"))


@pytest.fixture(scope="module")
def metaclip(tmp_path_factory):
    return write_metaclip(tmp_path_factory.mktemp("metaclip"))


def squares(size=32):
    return [Image.open(io.BytesIO(picture(seed, width=size, height=size))).convert("RGB") for seed in range(3)]


def pixels(images):
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2)


@pytest.fixture(params=["siglip", "metaclip"])
def folder(request):
    return request.getfixturevalue(request.param)


def test_a_teacher_keeps_the_contract(folder):
    check_teacher(TransformersTeacher(model=folder))


def test_it_teaches_a_text_tower_by_its_name(siglip):
    named = open_teacher(f"transformers:{siglip}")
    expected = TransformersTeacher(model=siglip).build().encode_texts(TEXTS)
    torch.testing.assert_close(named.teacher.encode_texts(TEXTS), torch.nn.functional.normalize(expected))
    assert ModelIdentity.from_json(named.space).weights_sha256 == named.teacher.weights_sha256
    assert named.tower is None


def test_a_tower_is_built_in_silence_without_another_of_the_size_of_a_published_one(folder, monkeypatch, capfd):
    made, sizes = transformers.AutoModel.from_config, []

    def counted(config):
        model = made(config)
        sizes.append(sum(parameter.numel() for parameter in model.parameters()))
        return model

    monkeypatch.setattr(transformers.AutoModel, "from_config", counted)
    TransformersTeacher(model=folder).build()
    assert 0 < max(sizes) < 2_000_000
    assert capfd.readouterr() == ("", "")


@torch.inference_mode()
def test_images_are_prepared_as_the_model_card_says(folder):
    teacher = TransformersTeacher(model=folder).build()
    model = transformers.AutoModel.from_pretrained(folder)
    prepared = transformers.AutoImageProcessor.from_pretrained(folder)(images=squares(), return_tensors="pt")
    theirs = model.get_image_features(**prepared).pooler_output
    torch.testing.assert_close(teacher.encode_images(pixels(squares())), theirs, rtol=1e-5, atol=1e-5)
    assert teacher.dim == theirs.shape[-1]
    assert theirs.std(0).max() > 0.01


@torch.inference_mode()
def test_siglip_2_reads_lower_case_with_the_end_behind_it_and_padding_on_the_right(siglip):
    teacher = TransformersTeacher(model=siglip).build()
    tokenizer = gemma_tokenizer()
    expected = torch.zeros(len(TEXTS), 64, dtype=torch.int64)
    for row, text in zip(expected, TEXTS, strict=True):
        ids = [*tokenizer(text.lower(), add_special_tokens=False)["input_ids"][:63], tokenizer.eos_token_id]
        row[: len(ids)] = torch.tensor(ids)
    assert torch.equal(teacher.clip.tokenizer(TEXTS), expected)
    assert expected[3, -1] == tokenizer.eos_token_id
    # No attention mask: the model was trained to look at the padding.
    theirs = transformers.AutoModel.from_pretrained(siglip).get_text_features(input_ids=expected).pooler_output
    torch.testing.assert_close(teacher.encode_texts(TEXTS), theirs, rtol=1e-5, atol=1e-5)
    assert torch.equal(teacher.encode_texts(["A CAT"]), teacher.encode_texts(["a cat"]))
    assert not torch.allclose(teacher.encode_texts(["a cat"]), teacher.encode_texts(["a dog"]), rtol=1e-2)


@torch.inference_mode()
def test_metaclip_2_reads_what_its_tokenizer_makes(metaclip):
    teacher = TransformersTeacher(model=metaclip).build()
    model = transformers.AutoModel.from_pretrained(metaclip)
    prepared = xlm_tokenizer()(TEXTS, padding=True, truncation=True, max_length=24, return_tensors="pt")
    theirs = model.get_text_features(**prepared).pooler_output
    torch.testing.assert_close(teacher.encode_texts(TEXTS), theirs, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(teacher.encode_texts(["A CAT"]), teacher.encode_texts(["a cat"]), rtol=1e-2)


def test_what_is_stored_of_a_teacher(siglip, metaclip):
    spec = TransformersTeacher(model=siglip)
    ensemble = build_ensemble([spec, TransformersTeacher(model=metaclip, logit_scale=50.0)])
    assert (ensemble.dims, ensemble.image_sizes) == ((32, 24), (32,))
    first, second = ensemble.teachers
    assert first.name == f"{siglip.name}-{first.weights_sha256[:8]}"
    # SigLIP's bias is not among what a softmax over similarities sees.
    assert (first.logit_scale, second.logit_scale) == (pytest.approx(20.09, abs=0.01), 50.0)
    assert (first.image.mean, first.image.interpolation) == ((0.5,) * 3, "bilinear")
    image = second.image
    assert (image.mean, image.std, image.interpolation) == (OPENAI_MEAN, OPENAI_STD, "bicubic")
    assert not any(parameter.requires_grad for parameter in first.clip.model.parameters())


def test_bfloat16_is_near_and_has_the_same_weights(siglip):
    exact = TransformersTeacher(model=siglip).build()
    rough = TransformersTeacher(model=siglip, precision="bfloat16").build()
    assert (rough.name, rough.weights_sha256) == (f"{exact.name}/bfloat16", exact.weights_sha256)
    assert 0.99 < torch.cosine_similarity(exact.encode_texts(TEXTS), rough.encode_texts(TEXTS)).min() < 1


def test_threads_share_a_tokenizer(folder):
    tokenizer = TransformersTeacher(model=folder).build().clip.tokenizer
    texts = ["a cat " * length for length in range(1, 41)]
    alone = [tokenizer([text]).tolist() for text in texts]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda text: tokenizer([text]).tolist(), texts)) == alone


@pytest.fixture
def copy(siglip, tmp_path):
    return shutil.copytree(siglip, tmp_path / "copy")


def test_weights_are_never_random(copy):
    file = copy / "model.safetensors"
    weights = load_file(file)
    for held, *named in (
        ({k: v for k, v in weights.items() if "text_model.head" not in k}, "'text_model.head.bias', 'text_mo"),
        ({**weights, "logit_scale": torch.zeros(2)},),
    ):
        save_file(held, file)
        with fails(ValueError, *named):
            TransformersTeacher(model=copy).build()
    file.unlink()
    torch.save(weights, copy / "pytorch_model.bin")
    with fails(ValueError, "safetensors"):
        TransformersTeacher(model=copy).build()


def test_programs_of_a_model_are_not_run(copy, tmp_path):
    config = json.loads((copy / "config.json").read_text())
    (copy / "evil.py").write_text(f"open({str(tmp_path / 'run')!r}, 'w')")
    config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}
    (copy / "config.json").write_text(json.dumps(config))
    TransformersTeacher(model=copy).build()
    (copy / "config.json").write_text(json.dumps({**config, "model_type": "own"}))
    with fails(ValueError):
        TransformersTeacher(model=copy).build()
    assert not (tmp_path / "run").exists()


def test_mistakes(siglip, tmp_path):
    for model in (tmp_path / "none", "none", "./a/b", tmp_path):
        with fails(ValueError):
            TransformersTeacher(model=model).build()
    with fails(ValueError, "main"):
        TransformersTeacher(model=siglip, revision="main").build()
    transformers.AutoConfig.for_model("siglip2").save_pretrained(tmp_path)
    with fails(ValueError, "siglip2"):
        TransformersTeacher(model=tmp_path).build()


def test_what_the_image_contract_cannot_say_is_refused(copy):
    file = copy / "preprocessor_config.json"
    fitting = json.loads(file.read_text())

    def built(**changes):
        file.write_text(json.dumps({**fitting, **changes}))
        return TransformersTeacher(model=copy).build()

    assert built(do_normalize=False).image.mean == (0.0,) * 3
    for changes, *named in (
        ({"size": {"height": 64, "width": 64}}, "32", "[64]"),
        ({"resample": 0}, "0"),
        ({"rescale_factor": 1 / 127.5},),
    ):
        with fails(ValueError, *named):
            built(**changes)


def test_without_transformers_the_command_is_named(siglip, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with fails(ImportError, install("transformers")):
        TransformersTeacher(model=siglip).build()


TOWER = {"width": 32, "heads": 2, "layers": 2}


def by_open_clip(folder, name, config, tokenizer):
    """Return a teacher of open_clip with random weights and a tokenizer in a folder beside it."""
    import open_clip

    tokenizer.save_pretrained(folder / "tokenizer")
    (folder / f"{name}.json").write_text(json.dumps(config))
    model = open_clip.model.CustomTextCLIP if config.pop("custom_text", False) else open_clip.CLIP
    torch.manual_seed(0)
    built = model(**config)
    save_file({key: value.contiguous() for key, value in built.state_dict().items()}, folder / f"{name}.safetensors")
    return OpenClipTeacher(model=str(folder / f"{name}.json"), pretrained=str(folder / f"{name}.safetensors"))


def test_siglip_2_by_open_clip(tmp_path):
    tokenizer = gemma_tokenizer(padding_side="right", add_eos_token=True, add_bos_token=False)
    text = {**TOWER, "context_length": 64, "vocab_size": len(tokenizer), "hf_tokenizer_name": "tokenizer"}
    text |= {"tokenizer_kwargs": {"clean": "canonicalize"}, "no_causal_mask": True, "proj_bias": True}
    text |= {"pool_type": "last", "norm_kwargs": {"eps": 1e-6}, "act_kwargs": {"approximate": "tanh"}}
    vision = {"image_size": 160, "timm_model_name": "test_vit3", "timm_pool": "map", "timm_proj": "none"}
    config = {"embed_dim": 96, "init_logit_bias": -10, "custom_text": True, "vision_cfg": vision, "text_cfg": text}
    teacher = by_open_clip(tmp_path, "siglip2", config, tokenizer).build()
    ids = teacher.clip.tokenizer(["A Cat!"])
    assert ids.shape == (1, 64)
    words = tokenizer("a cat", add_special_tokens=False)["input_ids"]
    assert ids[0, : len(words)].tolist() == words
    assert ids[0, -1] == tokenizer.pad_token_id
    assert teacher.encode_images(pixels(squares(160))).shape == teacher.encode_texts(TEXTS[:3]).shape == (3, 96)


def test_metaclip_2_by_open_clip(tmp_path):
    tokenizer = xlm_tokenizer()
    text = {**TOWER, "context_length": 24, "vocab_size": len(tokenizer), "hf_tokenizer_name": "tokenizer"}
    text |= {"pool_type": "eos", "eos_id": 2}
    vision = {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8}
    config = {"embed_dim": 48, "vision_cfg": vision, "text_cfg": text}
    spec = by_open_clip(tmp_path, "metaclip2", config, tokenizer)
    teacher = spec.build()
    expected = tokenizer(TEXTS, padding="max_length", truncation=True, max_length=24)["input_ids"]
    assert teacher.clip.tokenizer(TEXTS).tolist() == expected
    with ThreadPoolExecutor(8) as pool:
        rows = list(pool.map(lambda text: teacher.clip.tokenizer([text])[0].tolist(), TEXTS * 8))
    assert rows == expected * 8
    (tmp_path / "metaclip2.json").write_text(json.dumps({**config, "text_cfg": {**text, "hf_tokenizer_name": "./no"}}))
    with fails(ValueError, "/no", "metaclip2.json"):
        spec.build()


def test_open_clip_knows_the_published_ones():
    import open_clip

    assert "webli" in open_clip.list_pretrained_tags_by_model("ViT-SO400M-14-SigLIP2")
    assert "metaclip2_worldwide" in open_clip.list_pretrained_tags_by_model("ViT-H-14-worldwide")
