"""Layouts and forms: everything there and back, into open_clip itself, and every way a file can be wrong."""

import attrs
import pytest
import torch
from safetensors.torch import load_file

from mobileclip import reparameterize, specs
from mobileclip.encoders import CheckpointError, MCi, TextEncoder, load_model, save_model
from mobileclip.encoders.checkpoints import read_checkpoint
from mobileclip.reparam import is_folded
from tests.encoders.small import SMALL, SMALL_MCT, SMALL_VIT, embeddings, randomised
from tests.errors import fails
from tests.evaluation.scene_models import small_spec, write_for_open_clip
from tests.golden.checkpoints import golden, golden_images, golden_tokens, relative_error

TIMM_VIT = attrs.evolve(SMALL_VIT, image=attrs.evolve(SMALL_VIT.image, stem_padding=0, norm_eps=1e-6))
STORABLE = [
    pytest.param(SMALL, "mobileclip", id="mci-own"),
    pytest.param(SMALL_MCT, "mobileclip", id="mct-own"),
    pytest.param(SMALL_VIT, "mobileclip", id="vit-own"),
    pytest.param(SMALL, "official", id="mci-official"),
    pytest.param(SMALL_MCT, "official", id="mct-official"),
    pytest.param(SMALL_VIT, "official", id="vit-official"),
    pytest.param(SMALL, "open_clip", id="mci-open_clip"),
    pytest.param(TIMM_VIT, "open_clip", id="vit-open_clip"),
]


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "model.safetensors"
    model = randomised(SMALL)
    save_model(model, path)
    return path, model


class TestLayouts:
    @pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
    @pytest.mark.parametrize(("spec", "layout"), STORABLE)
    def test_training_form_comes_back_to_the_bit(self, spec, layout, suffix, tmp_path):
        if layout == "mobileclip" and suffix == ".pt":
            pytest.skip("mobileclip's own layout is safetensors")
        model, path = randomised(spec), tmp_path / f"model{suffix}"
        save_model(model, path, layout=layout)
        loaded = load_model(path, spec, fold=False)
        assert loaded.spec == spec
        assert not loaded.training
        torch.testing.assert_close(dict(loaded.state_dict()), dict(model.state_dict()), rtol=0, atol=0)
        assert not list(tmp_path.glob(".*"))

    @pytest.mark.parametrize(("spec", "layout"), STORABLE)
    def test_folded_form_keeps_its_embeddings(self, spec, layout, tmp_path):
        model = randomised(spec)
        save_model(reparameterize(model), tmp_path / "model.safetensors", layout=layout)
        loaded = load_model(tmp_path / "model.safetensors", spec)
        assert is_folded(loaded)
        assert relative_error(embeddings(loaded), embeddings(model)) < 2e-5

    @pytest.mark.parametrize("layout", ["official", "open_clip"])
    def test_branches_folded_form_is_what_the_public_code_folds(self, layout, tmp_path):
        model = reparameterize(randomised(SMALL))
        save_model(model, tmp_path / "folded.pt", layout=layout)
        stored = read_checkpoint(tmp_path / "folded.pt", SMALL)
        assert stored.form == "branches_folded"
        assert relative_error(embeddings(stored.build()), embeddings(model)) < 1e-5
        save_model(stored.build(), tmp_path / "again.safetensors")
        again = read_checkpoint(tmp_path / "again.safetensors")
        assert (again.form, again.spec) == ("branches_folded", SMALL)
        torch.testing.assert_close(embeddings(again.build()), embeddings(stored.build()), rtol=1e-5, atol=1e-6)

    def test_our_own_file_needs_no_name(self, saved):
        path, model = saved
        assert load_model(path, fold=False).spec == model.spec
        assert relative_error(embeddings(load_model(path)), embeddings(model)) < 1e-5

    def test_how_a_file_was_trained_is_not_asked_of_it(self, saved):
        path, model = saved
        wanted = attrs.evolve(model.spec, image=attrs.evolve(model.spec.image, drop_path=0.1))
        loaded = load_model(path, wanted, fold=False)
        assert loaded.spec == wanted
        save_model(loaded, path.with_name("again.safetensors"))
        assert load_model(path.with_name("again.safetensors"), model.spec, fold=False).spec == model.spec

    @pytest.mark.parametrize("layout", ["official", "open_clip"])
    def test_text_repmixer_has_no_place_in_open_clip(self, layout, tmp_path):
        model = randomised(SMALL_MCT)
        if layout == "official":
            save_model(model, tmp_path / "m.pt", layout=layout)
        else:
            with fails(ValueError):
                save_model(model, tmp_path / "m.pt", layout=layout)
            assert not (tmp_path / "m.pt").exists()

    def test_a_vit_is_not_written_where_it_would_mean_something_else(self, tmp_path):
        with fails(ValueError):
            save_model(randomised(SMALL_VIT), tmp_path / "m.pt", layout="open_clip")
        with fails(ValueError):
            save_model(randomised(TIMM_VIT), tmp_path / "m.pt", layout="official")

    def test_unknown_layout_names_the_known(self, tmp_path):
        with fails(ValueError, "open_clip"):
            save_model(randomised(SMALL), tmp_path / "m.pt", layout="openclip")

    def test_full_size_file_is_recognised_without_a_name(self, s0_shapes, tmp_path):
        assert read_checkpoint(s0_shapes, mmap=True).spec == specs.mobileclip_s0()
        other = golden("openclip_MobileCLIP2-S0").write_shapes(tmp_path / "open_clip.safetensors")
        stored = read_checkpoint(other, mmap=True)
        assert (stored.spec.image, stored.spec.text) == (specs.mci0(), specs.text_base())


class TestOpenClip:
    """Converted files in open_clip itself."""

    @pytest.mark.parametrize("folded", [False, True])
    @pytest.mark.parametrize("name", [None, pytest.param("MobileCLIP2-S0", marks=pytest.mark.slow)])
    @torch.inference_mode()
    def test_loads_there_with_equal_outputs(self, name, folded, request, tmp_path):
        import open_clip
        import timm.utils as timm_utils

        if name is None:
            model = randomised(small_spec())
            name = write_for_open_clip(model, tmp_path / "theirs")
            model = reparameterize(model) if folded else model
        else:
            model = load_model(request.getfixturevalue("clip2_s0_file"), fold=folded)
        save_model(model, tmp_path / "converted.safetensors", layout="open_clip")
        theirs = open_clip.create_model(name, pretrained=None, load_weights=False).eval()
        if folded:
            theirs = timm_utils.reparameterize_model(theirs)
        theirs.load_state_dict(load_file(tmp_path / "converted.safetensors"))
        images, texts = golden_images(model.spec.image.input.size), golden_tokens()[:3]
        assert relative_error(theirs.encode_image(images), model.encode_image(images)) < 1e-5
        assert relative_error(theirs.encode_text(texts), model.encode_text(texts)) < 1e-5

    def test_its_zero_head_bias_is_filled_in_and_dropped(self, tmp_path):
        save_model(randomised(SMALL), tmp_path / "m.safetensors", layout="open_clip")
        assert not load_file(tmp_path / "m.safetensors")["visual.trunk.head.fc.bias"].any()
        assert load_model(tmp_path / "m.safetensors", SMALL, fold=False).spec == SMALL

    @pytest.mark.parametrize("layout", ["official", "open_clip"])
    def test_a_safetensors_file_says_what_it_is_in_foreign_layouts_too(self, layout, tmp_path):
        model = randomised(SMALL)
        save_model(model, tmp_path / "m.safetensors", layout=layout)
        stored = read_checkpoint(tmp_path / "m.safetensors")
        assert (stored.spec, stored.form, stored.layout) == (SMALL, "training", layout)
        tower = load_model(tmp_path / "m.safetensors", tower="image", fold=False)
        torch.testing.assert_close(dict(tower.state_dict()), dict(model.image_encoder.state_dict()), rtol=0, atol=0)

    def test_a_head_bias_that_says_something_is_kept(self, tmp_path):
        biased = attrs.evolve(SMALL, image=attrs.evolve(SMALL.image, projection_bias=True))
        model = randomised(biased)
        save_model(model, tmp_path / "m.pt", layout="open_clip")
        loaded = load_model(tmp_path / "m.pt", SMALL, fold=False)
        assert loaded.spec == biased
        with fails(ValueError):
            save_model(loaded, tmp_path / "n.pt", layout="official")


class TestTowers:
    @pytest.mark.parametrize("layout", ["mobileclip", "official", "open_clip"])
    def test_load_alone_from_a_whole_checkpoint(self, layout, tmp_path):
        model, path = randomised(SMALL), tmp_path / "m.safetensors"
        save_model(model, path, layout=layout)
        image = load_model(path, SMALL.image, fold=False)
        text = load_model(path, SMALL, tower="text", fold=False)
        assert isinstance(image, MCi)
        assert isinstance(text, TextEncoder)
        for tower, own in ((image, model.image_encoder), (text, model.text_encoder)):
            torch.testing.assert_close(dict(tower.state_dict()), dict(own.state_dict()), rtol=0, atol=0)

    @pytest.mark.parametrize("layout", ["mobileclip", "official", "open_clip"])
    def test_save_and_load_as_a_file_of_their_own(self, layout, tmp_path):
        tower, path = randomised(SMALL).text_encoder, tmp_path / "text.safetensors"
        save_model(tower, path, layout=layout)
        loaded = load_model(path, SMALL.text, fold=False)
        torch.testing.assert_close(dict(loaded.state_dict()), dict(tower.state_dict()), rtol=0, atol=0)
        with pytest.raises(CheckpointError):
            load_model(path, SMALL.image)

    def test_load_by_name_from_a_full_size_file(self, s0_shapes):
        assert load_model(s0_shapes, "text_mct", mmap=True).spec == specs.text_mct()
        assert load_model(s0_shapes, tower="image", mmap=True).spec == specs.mci0()


class TestTimm:
    """Image towers as timm keeps them; that timm builds them is tested where folders are."""

    @pytest.mark.parametrize("spec", [SMALL.image, TIMM_VIT.image])
    @pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
    def test_a_tower_comes_back_to_the_bit(self, spec, suffix, tmp_path):
        tower, path = randomised(spec), tmp_path / f"tower{suffix}"
        save_model(tower, path, layout="timm")
        assert read_checkpoint(path, spec).layout == "timm"
        loaded = load_model(path, None if suffix == ".safetensors" else spec, fold=False)
        assert loaded.spec == spec
        torch.testing.assert_close(dict(loaded.state_dict()), dict(tower.state_dict()), rtol=0, atol=0)

    def test_the_image_tower_of_a_model_may_be_asked_for(self, tmp_path):
        model = randomised(SMALL)
        save_model(model.image_encoder, tmp_path / "tower.pt", layout="timm")
        tower = load_model(tmp_path / "tower.pt", SMALL, tower="image", fold=False)
        assert tower.spec == SMALL.image

    @pytest.mark.parametrize("part", ["text_encoder", None])
    def test_texts_have_no_place(self, part, tmp_path):
        model = randomised(SMALL)
        with fails(ValueError, "--tower image"):
            save_model(getattr(model, part) if part else model, tmp_path / "m.pt", layout="timm")
        assert not list(tmp_path.iterdir())


class TestWrongFiles:
    def test_a_model_with_exchanged_blocks_is_not_saved_under_its_spec(self, tmp_path):
        model = randomised(SMALL)
        model.image_encoder.stem[0] = torch.nn.Conv2d(3, 16, 3, stride=2, padding=1)
        with fails(ValueError):
            save_model(model, tmp_path / "m.safetensors")

    def test_a_projection_of_another_size_is_not_saved_under_the_spec(self, tmp_path):
        model = randomised(SMALL)
        own = model.image_encoder.head.project
        model.image_encoder.head.project = torch.nn.Linear(own.in_features, 5, bias=False)
        with fails(ValueError, "head.project.weight", "(5"):
            save_model(model, tmp_path / "m.safetensors")
        assert not list(tmp_path.iterdir())

    def test_no_file(self, tmp_path):
        with fails(FileNotFoundError, "nothing.pt"):
            load_model(tmp_path / "nothing.pt")
