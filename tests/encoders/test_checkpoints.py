"""Layouts and forms: everything there and back, into open_clip itself, and every way a file can be wrong."""

import attrs
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from mobileclip import reparameterize, specs
from mobileclip.encoders import CheckpointError, ClassifierSpec, MCi, TextEncoder, load_model, save_model
from mobileclip.encoders.checkpoints import read_checkpoint, write_tensors
from mobileclip.reparam import is_folded
from tests.encoders.small import COCA_VIT, SMALL, SMALL_MCT, SMALL_VIT, embeddings, randomised
from tests.errors import fails
from tests.evaluation.scene_models import small_spec, write_for_open_clip
from tests.golden.checkpoints import golden, golden_images, golden_tokens, relative_error

BARE = SMALL.image.without_projection()
TIMM_VIT = attrs.evolve(SMALL_VIT, image=attrs.evolve(SMALL_VIT.image, stem_padding=0, norm_eps=1e-6))
BIASED = attrs.evolve(SMALL, image=attrs.evolve(SMALL.image, projection_bias=True))
MODELS = {"mci": SMALL, "mct": SMALL_MCT, "vit": SMALL_VIT, "timm_vit": TIMM_VIT}
STORABLE = [
    pytest.param(MODELS[name], layout, id=f"{name}-{layout}")
    for layout, names in (
        ("mobileclip", ("mci", "mct", "vit")),
        ("official", ("mci", "mct", "vit")),
        ("open_clip", ("mci", "timm_vit")),
    )
    for name in names
]
PARTS = [(SMALL.text, "mobileclip"), (SMALL.text, "official"), (SMALL.text, "open_clip")]
PARTS += [(SMALL.image, "timm"), (TIMM_VIT.image, "timm")]
# What has no place in a layout, and what the message names.
NOT_STORABLE = [
    (SMALL_MCT, "open_clip"),
    (SMALL_VIT, "open_clip"),
    (TIMM_VIT, "official"),
    (BIASED, "official"),
    (SMALL, "openclip", "open_clip"),
    (SMALL, "timm", "--tower image"),
    (SMALL.text, "timm", "--tower image"),
    *((attrs.evolve(SMALL.text, pool="mean"), layout, layout) for layout in ("official", "open_clip")),
    *((BARE, layout) for layout in ("official", "open_clip")),
    *((ClassifierSpec(image=BARE, num_classes=5), layout) for layout in ("official", "open_clip")),
    (COCA_VIT, "open_clip_coca"),
    (SMALL.with_channels(4), "open_clip", "4"),
]


class TestLayouts:
    @pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
    @pytest.mark.parametrize(("spec", "layout"), [*STORABLE, *PARTS])
    def test_training_form_comes_back_to_the_bit(self, spec, layout, suffix, tmp_path):
        """A safetensors file says itself what it holds, in any layout."""
        if layout == "mobileclip" and suffix == ".pt":
            pytest.skip("mobileclip's own layout is safetensors")
        model, path = randomised(spec), tmp_path / f"model{suffix}"
        save_model(model, path, layout=layout)
        asked = None if suffix == ".safetensors" else spec
        stored = read_checkpoint(path, asked)
        assert (stored.spec, stored.form, stored.layout) == (spec, "training", layout)
        loaded = load_model(path, asked, fold=False)
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

    def test_how_a_file_was_trained_is_not_asked_of_it(self, tmp_path):
        wanted = attrs.evolve(SMALL, image=attrs.evolve(SMALL.image, drop_path=0.1))
        for saved, asked in ((SMALL, wanted), (wanted, SMALL)):
            save_model(randomised(saved), tmp_path / f"{saved.image.drop_path}.safetensors")
            loaded = load_model(tmp_path / f"{saved.image.drop_path}.safetensors", asked, fold=False)
            assert loaded.spec == asked

    @pytest.mark.parametrize(("spec", "layout", "named"), [(spec, to, named) for spec, to, *named in NOT_STORABLE])
    def test_what_has_no_place_in_a_layout_is_refused(self, spec, layout, named, tmp_path):
        with fails(ValueError, *named):
            save_model(randomised(spec), tmp_path / "m.pt", layout=layout)
        assert not list(tmp_path.iterdir())

    def test_full_size_file_is_recognised_without_a_name(self, s0_shapes, tmp_path):
        assert read_checkpoint(s0_shapes, mmap=True).spec == specs.mobileclip_s0()
        assert load_model(s0_shapes, "text_mct", mmap=True).spec == specs.text_mct()
        assert load_model(s0_shapes, tower="image", mmap=True).spec == specs.mci0()
        other = golden("openclip_MobileCLIP2-S0").write_shapes(tmp_path / "open_clip.safetensors")
        stored = read_checkpoint(other, mmap=True)
        assert (stored.spec.image, stored.spec.text) == (specs.mci0(), specs.text_base())

    def test_a_safetensors_file_says_that_its_tensors_are_pytorchs(self, tmp_path):
        """Other libraries refuse a file that does not."""
        write_tensors(tmp_path / "a.safetensors", {"x": torch.ones(2)}, {"mobileclip.note": "ours"})
        with safe_open(tmp_path / "a.safetensors", "pt") as file:
            assert file.metadata() == {"format": "pt", "mobileclip.note": "ours"}
            assert torch.equal(file.get_tensor("x"), torch.ones(2))


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

    @pytest.mark.parametrize("spec", [SMALL, BIASED])
    def test_a_head_bias_of_zero_is_filled_in_and_dropped_and_another_is_kept(self, spec, tmp_path):
        save_model(randomised(spec), tmp_path / "m.safetensors", layout="open_clip")
        assert load_file(tmp_path / "m.safetensors")["visual.trunk.head.fc.bias"].any() == (spec == BIASED)
        save_model(randomised(spec), tmp_path / "m.pt", layout="open_clip")
        assert load_model(tmp_path / "m.pt", SMALL, fold=False).spec == spec


class TestTowers:
    @pytest.mark.parametrize("layout", ["mobileclip", "official", "open_clip"])
    def test_load_alone_from_a_whole_checkpoint(self, layout, tmp_path):
        model, path = randomised(SMALL), tmp_path / "m.safetensors"
        save_model(model, path, layout=layout)
        for kind, tower, own in (
            (MCi, load_model(path, SMALL.image, fold=False), model.image_encoder),
            (MCi, load_model(path, tower="image", fold=False), model.image_encoder),
            (TextEncoder, load_model(path, SMALL, tower="text", fold=False), model.text_encoder),
        ):
            assert isinstance(tower, kind)
            torch.testing.assert_close(dict(tower.state_dict()), dict(own.state_dict()), rtol=0, atol=0)

    @pytest.mark.parametrize("layout", ["mobileclip", "official", "open_clip"])
    def test_a_text_tower_is_no_image_tower(self, layout, tmp_path):
        save_model(randomised(SMALL.text), tmp_path / "text.safetensors", layout=layout)
        with pytest.raises(CheckpointError):
            load_model(tmp_path / "text.safetensors", SMALL.image)

    def test_a_tower_of_timms_may_be_asked_for_as_that_of_a_model(self, tmp_path):
        save_model(randomised(SMALL.image), tmp_path / "tower.pt", layout="timm")
        assert load_model(tmp_path / "tower.pt", SMALL, tower="image", fold=False).spec == SMALL.image


def test_a_model_with_exchanged_parts_is_not_saved_under_its_spec(tmp_path):
    for at, index, part, *named in (
        ("stem", 0, torch.nn.Conv2d(3, 16, 3, stride=2, padding=1)),
        ("head", "project", torch.nn.Linear(128, 5, bias=False), "head.project.weight", "(5"),
    ):
        model = randomised(SMALL)
        model.image_encoder.get_submodule(at)._modules[str(index)] = part
        with fails(ValueError, *named):
            save_model(model, tmp_path / "m.safetensors")
        assert not list(tmp_path.iterdir())


def test_a_file_that_is_not_there_is_named(tmp_path):
    with fails(FileNotFoundError, "nothing.pt"):
        load_model(tmp_path / "nothing.pt")
