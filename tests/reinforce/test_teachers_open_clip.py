import io
import json
import shutil
import sys
from pathlib import Path

import attrs
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from mobileclip.data import ImageTransform
from mobileclip.extras import install
from mobileclip.inference.identity import ModelIdentity
from mobileclip.inputs import TextInput
from mobileclip.recipes.distilling import open_teacher
from mobileclip.reinforce import OpenClipTeacher, build_ensemble
from tests.contracts.teachers import check_teacher
from tests.errors import fails
from tests.lazily import lazily
from tests.reinforce.conftest import picture
from tests.reinforce.open_clip_models import CONFIGS

open_clip = lazily("open_clip")

TEXTS = ["a photo of a cat", "ein Hund & eine Katze", "word " * 100, ""]


def in_its_layout(place, spec, **whole):
    """Write a teacher as a folder of open_clip's own layout, and return what names it."""
    whole = {"model_cfg": CONFIGS[Path(spec.model).stem], **whole}
    (place / "open_clip_config.json").write_text(json.dumps(whole))
    shutil.copy(spec.pretrained, place / "open_clip_model.safetensors")
    return f"local-dir:{place}"


def test_a_teacher_keeps_the_contract(tiny):
    check_teacher(tiny.teachers[0])


def test_it_teaches_a_text_tower_by_its_name(tiny):
    spec = tiny.teachers[0]
    named = open_teacher(f"open_clip:{spec.model}={spec.pretrained}")
    expected = torch.nn.functional.normalize(spec.build().encode_texts(TEXTS))
    torch.testing.assert_close(named.teacher.encode_texts(TEXTS), expected)
    assert ModelIdentity.from_json(named.space).weights_sha256 == named.teacher.weights_sha256
    assert (named.tower, named.text) == (None, TextInput())


@pytest.mark.parametrize("index", [0, 1])
@torch.inference_mode()
def test_equals_open_clip_with_its_own_transform_and_tokenizer(tiny, tmp_path, index):
    spec = tiny.teachers[index]
    teacher, place = spec.build(), in_its_layout(tmp_path, spec)
    model, _, transform = open_clip.create_model_and_transforms(place)
    model, tokenizer = model.eval(), open_clip.get_tokenizer(place)
    pictures = [Image.open(io.BytesIO(picture(seed, width=90 + 7 * seed, height=80))) for seed in range(3)]
    theirs = model.encode_image(torch.stack([transform(one) for one in pictures]))
    cropped = [torch.from_numpy(ImageTransform(teacher.image).pixels(one)) for one in pictures]
    ours = teacher.encode_images(torch.stack(cropped).permute(0, 3, 1, 2))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(teacher.encode_texts(TEXTS), model.encode_text(tokenizer(TEXTS)), rtol=1e-5, atol=1e-5)
    assert teacher.dim == theirs.shape[-1] == CONFIGS[Path(spec.model).stem]["embed_dim"]
    assert teacher.logit_scale == 50.0
    assert attrs.evolve(spec, logit_scale=70).build().logit_scale == 70
    assert not teacher.clip.model.training
    assert not any(parameter.requires_grad for parameter in teacher.clip.model.parameters())


def test_members_differ_in_all_that_reinforcement_must_keep_apart(tiny):
    ensemble = build_ensemble(tiny.teachers)
    assert (ensemble.image_sizes, ensemble.dims) == ((32, 64), (48, 32))
    assert len({teacher.weights_sha256 for teacher in ensemble.teachers}) == 2


def test_a_folder_in_open_clips_layout_is_the_same_teacher(tiny, tmp_path):
    one = tiny.teachers[0].build()
    other = OpenClipTeacher(model=in_its_layout(tmp_path, tiny.teachers[0]), pretrained=None).build()
    assert (other.name, other.weights_sha256) == (f"{tmp_path.name}-{one.weights_sha256[:8]}", one.weights_sha256)
    assert torch.equal(other.encode_texts(TEXTS), one.encode_texts(TEXTS))


def test_a_torch_file_is_the_same_teacher_and_its_preprocessing_is_read(tiny, tmp_path):
    spec = tiny.teachers[0]
    torch.save(load_file(spec.pretrained), tmp_path / "weights.pt")
    preprocess = {"mean": [0.0, 0.1, 0.2], "std": [1.0, 0.5, 0.25], "interpolation": "bilinear", "size": 99}
    whole = {"model_cfg": CONFIGS["tiny_vit"], "preprocess_cfg": preprocess}
    (tmp_path / "other.json").write_text(json.dumps(whole))
    other = OpenClipTeacher(model=str(tmp_path / "other.json"), pretrained=str(tmp_path / "weights.pt")).build()
    assert other.weights_sha256 == spec.build().weights_sha256
    assert (other.image.mean, other.image.std) == ((0.0, 0.1, 0.2), (1.0, 0.5, 0.25))
    assert (other.image.interpolation, other.image.size) == ("bilinear", 32)


def test_bfloat16_is_near_and_has_the_same_weights(tiny):
    exact = tiny.teachers[0].build()
    rough = attrs.evolve(tiny.teachers[0], precision="bfloat16").build()
    assert (rough.name, rough.weights_sha256) == (f"{exact.name}/bfloat16", exact.weights_sha256)
    assert rough.clip.model.logit_scale.dtype == torch.bfloat16
    cosine = torch.cosine_similarity(exact.encode_texts(TEXTS), rough.encode_texts(TEXTS))
    assert 0.995 < cosine.min() < 1


@pytest.fixture
def known(tiny, monkeypatch):
    """The tiny ViT under a name that open_clip knows, with weights of all sorts under tags that it knows."""
    spec = tiny.teachers[0]
    configs = {"tiny-vit": CONFIGS["tiny_vit"], "tiny-vit-quickgelu": {**CONFIGS["tiny_vit"], "quick_gelu": True}}
    common = {"file": spec.pretrained, "mean": (0.5, 0.5, 0.5), "interpolation": "bilinear"}
    tags = {"plain": common, "quick": {**common, "quick_gelu": True}}
    for name, config in configs.items():
        monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, name, config)
        monkeypatch.setitem(open_clip.pretrained._PRETRAINED, name, tags)
    return spec


def test_a_tag_brings_its_preprocessing_and_its_activation(known):
    plain = OpenClipTeacher(model="tiny-vit", pretrained="plain").build()
    assert plain.name == "tiny-vit/plain"
    assert (plain.image.mean, plain.image.interpolation) == ((0.5, 0.5, 0.5), "bilinear")
    assert torch.equal(plain.encode_texts(TEXTS), known.build().encode_texts(TEXTS))
    # open_clip computes the first of these with GELU, under a warning.
    corrected = OpenClipTeacher(model="tiny-vit", pretrained="quick").build()
    right = OpenClipTeacher(model="tiny-vit-quickgelu", pretrained="quick").build()
    assert torch.equal(corrected.encode_texts(TEXTS), right.encode_texts(TEXTS))
    assert not torch.allclose(corrected.encode_texts(TEXTS), plain.encode_texts(TEXTS), rtol=1e-3)
    with fails(ValueError):
        OpenClipTeacher(model="tiny-vit-quickgelu", pretrained="plain").build()
    # A file may stand for the tag.
    teacher = OpenClipTeacher(model="tiny-vit", pretrained=known.pretrained).build()
    assert teacher.name == f"tiny-vit/tiny_vit-{teacher.weights_sha256[:8]}"


def test_the_papers_teachers_are_known_with_their_activation():
    assert open_clip.get_pretrained_cfg("ViT-L-14", "openai")["quick_gelu"]
    assert not open_clip.get_pretrained_cfg("ViT-L-14", "datacomp_xl_s13b_b90k").get("quick_gelu")


def test_weights_are_never_random():
    with fails(ValueError, "ViT-L-14", "its tags are openai"):
        OpenClipTeacher(pretrained=None)
    with fails(ValueError, "opnai", "ViT-B-32", "laion2b"):
        OpenClipTeacher(model="ViT-B-32", pretrained="opnai").build()
    with fails(ValueError, "ViT-L14", "did you mean 'ViT-L-14'"):
        OpenClipTeacher(model="ViT-L14").build()
    with fails(ValueError, "openai"):
        OpenClipTeacher(model="hf-hub:owner/name")


def test_files_that_do_not_fit_are_refused(tiny, tmp_path):
    vit, resnet = tiny.teachers
    state = load_file(vit.pretrained)
    del state["ln_final.weight"]
    torch.save(state, tmp_path / "part.pt")
    texts = {"broken.safetensors": "no header", "empty.json": "{}", "broken.json": "{", "list.json": "[1]"}
    for name, content in {**texts, "other.json": '{"model_cfg": []}'}.items():
        (tmp_path / name).write_text(content)
    for changes, *named in (
        ({"pretrained": resnet.pretrained}, "tiny_vit.json", "tiny_resnet.safetensors"),
        ({"pretrained": str(tmp_path / "part.pt")}, "ln_final.weight"),
        ({"pretrained": str(tmp_path / "broken.safetensors")},),
        ({"pretrained": str(tmp_path / "none.pt")}, "none.pt"),
        ({"model": str(tmp_path / "empty.json")}, "embed_dim, text_cfg, vision_cfg"),
        ({"model": str(tmp_path / "broken.json")},),
        ({"model": str(tmp_path / "list.json")}, "list.json"),
        ({"model": str(tmp_path / "other.json")}, "other.json"),
        ({"model": f"local-dir:{tmp_path}", "pretrained": None}, "open_clip_config"),
    ):
        with fails(ValueError, *named):
            attrs.evolve(vit, **changes).build()


@pytest.mark.parametrize(("name", "prefix"), [("positional_embedding", "module."), ("visual.positional_embedding", "")])
def test_a_file_of_another_context_or_image_size_is_refused(tiny, tmp_path, name, prefix):
    """open_clip would interpolate its positions and say nothing."""
    vit = tiny.teachers[0]
    state = load_file(vit.pretrained)
    longer = 100 if name == "positional_embedding" else 6 * 6 + 1
    state[name] = torch.zeros(longer, state[name].shape[1])
    torch.save({f"{prefix}{key}": tensor for key, tensor in state.items()}, tmp_path / "longer.pt")
    with fails(ValueError, "tiny_vit.json", f"({longer}, "):
        attrs.evolve(vit, pretrained=str(tmp_path / "longer.pt")).build()


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("touched-by-a-pickle"),))


def test_weights_run_no_code(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Evil()}, tmp_path / "evil.pt")
    with fails(ValueError):
        attrs.evolve(tiny.teachers[0], pretrained=str(tmp_path / "evil.pt")).build()
    assert not (tmp_path / "touched-by-a-pickle").exists()


def test_what_the_image_contract_cannot_say_is_refused(tiny, tmp_path):
    def built(size, interpolation="bicubic"):
        config = {**CONFIGS["tiny_vit"], "vision_cfg": {**CONFIGS["tiny_vit"]["vision_cfg"], "image_size": size}}
        prepared = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": interpolation}
        model = in_its_layout(tmp_path, tiny.teachers[0], model_cfg=config, preprocess_cfg=prepared)
        return OpenClipTeacher(model=model, pretrained=None).build()

    for size in (32, 48):
        assert built(size).image.size == size
    with fails(ValueError, "64", "32"):
        built([32, 64])
    with fails(ValueError, "nearest"):
        built(32, interpolation="nearest")


def test_without_open_clip_the_command_is_named(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with fails(ImportError, install("teachers")):
        tiny.teachers[0].build()
