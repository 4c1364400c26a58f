import shutil

import attrs
import pytest
import torch
from hypothesis import given, strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

import mobileclip
from mobileclip.blocks import models
from mobileclip.data import Tokenizer
from mobileclip.encoders import load_model, save_model
from mobileclip.reinforce import CheckpointTeacher, OpenClipTeacher, TeacherEnsemble, TeacherSpec, build_ensemble
from mobileclip.reinforce.teachers import NotFiniteError, teachers as registry
from mobileclip.serialization import from_json
from mobileclip.tensor_files import weights_sha256
from tests.contracts.teachers import check_teacher
from tests.encoders.small import SMALL, SMALL_VIT, randomised
from tests.errors import fails
from tests.reinforce.conftest import lying_teacher, tiny_teacher
from tests.reinforce.plugins import install_plugin


def pixels(count, size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)


STATE = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.tensor(3), "c": torch.ones(4, dtype=torch.bfloat16)}


class TestWeightsHash:
    def test_neither_order_nor_strides_nor_file_matter(self, tmp_path):
        expected = weights_sha256(STATE)
        turned = {name: STATE[name] for name in "cab"}
        turned["b"] = STATE["b"].T.contiguous().T
        assert not turned["b"].is_contiguous()
        assert weights_sha256(turned) == expected
        save_file(STATE, tmp_path / "state.safetensors")
        torch.save(STATE, tmp_path / "state.pt")
        assert weights_sha256(load_file(tmp_path / "state.safetensors")) == expected
        assert weights_sha256(torch.load(tmp_path / "state.pt")) == expected
        assert weights_sha256({name: nn.Parameter(t, requires_grad=False) for name, t in STATE.items()}) == expected

    @pytest.mark.parametrize(
        "change",
        [
            {"b": torch.arange(6.0).reshape(3, 2)},
            {"b": torch.arange(6.0).reshape(2, 3).double()},
            {"b": torch.arange(6).reshape(2, 3)},
            {"b": torch.nextafter(torch.arange(6.0), torch.tensor(9.0)).reshape(2, 3)},
            {"d": torch.zeros(0)},
            {"c": torch.ones(4, dtype=torch.float16)},
        ],
    )
    def test_names_shapes_dtypes_and_every_bit_do(self, change):
        assert weights_sha256(STATE | change) != weights_sha256(STATE)
        renamed = {"x": STATE["b"], "a": STATE["a"], "c": STATE["c"]}
        assert weights_sha256(renamed) != weights_sha256(STATE)

    @given(st.lists(st.integers(0, 255), min_size=2, max_size=8), st.integers(1, 7))
    def test_where_one_tensor_ends_matters(self, values, cut):
        cut = min(cut, len(values) - 1)
        tensor = torch.tensor(values, dtype=torch.uint8)
        whole = {"a": tensor, "b": tensor[:0]}
        parts = {"a": tensor[:cut], "b": tensor[cut:]}
        assert weights_sha256(whole) != weights_sha256(parts)


def test_batches_stay_small_and_change_nothing():
    teacher = tiny_teacher("t", dim=6, size=32, seed=1)
    sizes = []
    for tower in (teacher.clip.model.image_encoder, teacher.clip.model.text_encoder):
        tower.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    small = attrs.evolve(teacher, max_batch=3, weights_sha256=teacher.weights_sha256)
    images, texts = pixels(7, 32), [f"text {index}" for index in range(5)]
    torch.testing.assert_close(small.encode_images(images), teacher.encode_images(images))
    torch.testing.assert_close(small.encode_texts(texts), teacher.encode_texts(texts))
    assert sum(sizes) == 2 * (7 + 5)
    assert max(sizes[:3]) <= 3


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    save_model(randomised(SMALL), folder / "ours.safetensors")
    save_model(randomised(SMALL_VIT, 1), folder / "vit.safetensors")
    return folder


class TestCheckpointTeacher:
    def test_a_teacher_keeps_the_contract(self, files):
        check_teacher(CheckpointTeacher(checkpoint=files / "vit.safetensors"))

    def test_equals_the_folded_model_with_its_own_preprocessing(self, files):
        path = files / "ours.safetensors"
        teacher = CheckpointTeacher(checkpoint=path).build()
        clip = mobileclip.load(path)
        images = pixels(3, SMALL.image.input.size)
        ours = torch.nn.functional.normalize(teacher.encode_images(images), dim=-1)
        theirs = clip.encode_image([Image.fromarray(one.permute(1, 2, 0).numpy()) for one in images])
        torch.testing.assert_close(ours, theirs)
        texts = ["a red square", "a very long text about circles and squares and all that is drawn beside them"]
        ours = torch.nn.functional.normalize(teacher.encode_texts(texts), dim=-1)
        torch.testing.assert_close(ours, clip.encode_text(texts))
        assert (teacher.image, teacher.dim) == (SMALL.image.input, SMALL.image.embedding_dim)
        assert isinstance(teacher.clip.tokenizer, Tokenizer)
        assert teacher.logit_scale == round(float(clip.model.logit_scale.exp()), 2)
        assert teacher.name == f"ours-{teacher.weights_sha256[:8]}"
        assert not any(isinstance(module, nn.BatchNorm2d) for module in teacher.clip.model.modules())
        assert not any(parameter.requires_grad for parameter in teacher.clip.model.parameters())

    def test_the_hash_knows_the_weights_and_not_the_file(self, files, tmp_path):
        moved = shutil.copy(files / "ours.safetensors", tmp_path / "moved.safetensors")
        one, same, other = (
            CheckpointTeacher(checkpoint=path, logit_scale=70).build()
            for path in (files / "ours.safetensors", moved, files / "vit.safetensors")
        )
        assert one.weights_sha256 == same.weights_sha256 != other.weights_sha256
        assert one.logit_scale == 70

    def test_the_hash_knows_no_layout(self, files, tmp_path, monkeypatch):
        """Whatever is held under other names, or as the research code shapes it."""
        monkeypatch.setattr(models, "_values", models._values | {"small": SMALL})
        theirs, own = tmp_path / "official.pt", files / "ours.safetensors"
        save_model(load_model(own, fold=False), theirs, layout="official")
        official, ours = (CheckpointTeacher(checkpoint=path, model="small").build() for path in (theirs, own))
        assert official.weights_sha256 == ours.weights_sha256
        # Not to the last bit: on some processors that depends on where in memory the weights lie.
        torch.testing.assert_close(official.encode_texts(["a cat"]), ours.encode_texts(["a cat"]))

    def test_bfloat16_is_near(self, files):
        spec = CheckpointTeacher(checkpoint=files / "vit.safetensors")
        exact, rough = spec.build(), attrs.evolve(spec, precision="bfloat16").build()
        assert (rough.name, rough.weights_sha256) == (f"{exact.name}/bfloat16", exact.weights_sha256)
        images = pixels(4, exact.image.size)
        cosine = torch.cosine_similarity(exact.encode_images(images), rough.encode_images(images))
        assert cosine.min() > 0.995
        assert rough.encode_texts(["a"]).dtype == torch.float32
        assert not torch.equal(exact.encode_images(images), rough.encode_images(images))

    def test_a_tower_alone_is_refused(self, tmp_path):
        save_model(randomised(SMALL).image_encoder, tmp_path / "tower.safetensors")
        with fails(ValueError):
            CheckpointTeacher(checkpoint=tmp_path / "tower.safetensors").build()
        with pytest.raises(FileNotFoundError):
            CheckpointTeacher(checkpoint=tmp_path / "none.safetensors").build()


class TestSpecs:
    def test_unknown_kinds_and_keys_are_named(self):
        with fails(ValueError, "teacher", "open_clap", "'open_clip'"):
            from_json('{"kind": "open_clap"}', TeacherSpec)
        with fails(ValueError, "'pretrain'"):
            from_json('{"kind": "open_clip", "pretrain": "openai"}', TeacherSpec)
        with fails(ValueError, "precision"):
            OpenClipTeacher(precision="float16")
        with pytest.raises(ValueError, match="logit_scale"):
            CheckpointTeacher(checkpoint="a.pt", logit_scale=0)

    def test_a_package_adds_a_teacher(self, tmp_path, monkeypatch):
        install_plugin(
            tmp_path,
            monkeypatch,
            registry,
            "bright",
            """
            import attrs, torch
            from mobileclip.inputs import ImageInput
            from mobileclip.reinforce.teachers import TeacherSpec

            class Bright:
                name, weights_sha256, dim, logit_scale, image = "bright", "0" * 64, 3, 1.0, ImageInput(size=8)

                def encode_images(self, pixels):
                    return pixels.float().mean((2, 3))

                def encode_texts(self, texts):
                    return torch.tensor([[len(text), text.count("a"), 1.0] for text in texts]).reshape(-1, 3)

            @attrs.frozen(kw_only=True)
            class Plugin(TeacherSpec):
                shade: int = 1

                def build(self, device="cpu"):
                    return Bright()
            """,
        )
        spec = from_json('{"kind": "bright", "shade": 2}', TeacherSpec)
        assert spec.shade == 2
        check_teacher(spec)
        ensemble = build_ensemble([spec])
        assert ensemble.encode_images({8: pixels(2, 8)}).shape == (2, 3)


class TestEnsemble:
    def test_normalises_and_concatenates_in_order(self):
        one, two = tiny_teacher("a", dim=6, size=32, seed=6), tiny_teacher("b", dim=4, size=24, seed=4)
        both = TeacherEnsemble([one, two])
        assert (both.dims, both.dim, both.image_sizes, both.logit_scales) == ((6, 4), 10, (24, 32), (60.0, 40.0))
        images = {32: pixels(3, 32), 24: pixels(3, 24, seed=1)}
        joined = both.encode_images(images)
        torch.testing.assert_close(joined[:, :6], torch.nn.functional.normalize(one.encode_images(images[32]), dim=-1))
        torch.testing.assert_close(joined[:, 6:], torch.nn.functional.normalize(two.encode_images(images[24]), dim=-1))
        joined = both.encode_texts(["x", "y"])
        torch.testing.assert_close(joined[:, 6:], torch.nn.functional.normalize(two.encode_texts(["x", "y"]), dim=-1))

    def test_build_ensemble_refuses_twins_and_nothing(self, small_file):
        spec = CheckpointTeacher(checkpoint=small_file)
        for specs in ([spec, spec], []):
            with fails(ValueError):
                build_ensemble(specs)
        other = attrs.evolve(spec, precision="bfloat16")
        assert build_ensemble([spec, other]).dim == 2 * SMALL.image.embedding_dim

    def test_broken_teachers_are_named(self):
        teacher = tiny_teacher("broken", dim=6, size=32, seed=1)
        nn.init.constant_(teacher.clip.model.image_encoder[-1].weight, torch.nan)
        with fails(NotFiniteError, "broken"):
            TeacherEnsemble([teacher]).encode_images({32: pixels(1, 32)})
        with fails(ValueError, "5"):
            TeacherEnsemble([lying_teacher()]).encode_texts(["a"])
