"""A model with its own preprocessing: what it returns, and what it says when asked for something else."""

import numpy as np
import pytest
import torch
from PIL import Image

import mobileclip
from mobileclip.blocks import models
from mobileclip.data import ImageError, ImageTransform, Tokenizer
from mobileclip.data.images.transform import read_pixels
from mobileclip.encoders import DualEncoder, save_model
from mobileclip.encoders.checkpoints import PUBLISHED
from mobileclip.inference import catalogue
from mobileclip.inference.forms import MOST_IMAGES_ON_CPU, PreparedTower, ReadyDualEncoder
from mobileclip.inference.loading import spec_known_by_name
from mobileclip.reparam import is_folded
from tests.encoders.small import SMALL, randomised
from tests.errors import fails
from tests.golden.checkpoints import relative_error

LABELS = ["a cat", "a dog", "a diagram"]


@pytest.fixture(scope="module")
def clip(small_file):
    return mobileclip.load(small_file)


@pytest.fixture(scope="module")
def images():
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(0, 256, (50 + 9 * i, 80, 3), dtype=np.uint8)) for i in range(5)]


@pytest.fixture
def files(images, tmp_path):
    paths = [tmp_path / f"{index}.png" for index in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        image.save(path)
    return paths


class Counting(PreparedTower):
    """An image tower that notes how many images come at once."""

    def __init__(self, tower):
        super().__init__()
        self.tower, self.sizes = tower, []

    @property
    def spec(self):
        return self.tower.spec

    def forward(self, images):
        self.sizes.append(len(images))
        return self.tower(images)


class TestEncoding:
    def test_images_go_through_the_models_own_transform(self, clip, images):
        embedding = clip.encode_image(images, normalize=False)
        transform = ImageTransform(SMALL.image.input)
        with torch.inference_mode():
            expected = clip.model.encode_image(torch.stack([transform(image) for image in images]))
        assert relative_error(embedding, expected) < 1e-6

    def test_texts_go_through_the_models_own_tokenizer(self, clip):
        with torch.inference_mode():
            expected = clip.model.encode_text(Tokenizer(SMALL.text.input)(LABELS), normalize=True)
        assert relative_error(clip.encode_text(LABELS), expected) < 1e-6

    def test_every_kind_of_image_source_is_the_same_image(self, clip, images, files):
        with files[0].open("rb") as file:
            sources = [images[0], files[0], str(files[0]), files[0].read_bytes(), file]
            embeddings = clip.encode_image(sources)
        torch.testing.assert_close(embeddings, embeddings[:1].expand_as(embeddings), rtol=1e-6, atol=1e-6)

    def test_batches_do_not_matter(self, clip, images):
        assert relative_error(clip.encode_image(images, batch_size=2), clip.encode_image(images)) < 1e-6
        assert relative_error(clip.encode_text(LABELS, batch_size=2), clip.encode_text(LABELS)) < 1e-6

    def test_one_counts_as_a_batch_and_none_as_an_empty_one(self, clip, images):
        assert clip.encode_image(images[0]).shape == clip.encode_text("a cat").shape == (1, 24)
        assert clip.encode_image([]).shape == clip.encode_text([]).shape == (0, 24)

    def test_texts_ask_nothing_of_the_image_tower(self, clip, monkeypatch):
        expected = clip.encode_text(LABELS)

        def fail(*_, **__):
            raise AssertionError("the image tower was looked at")

        for name in ("parameters", "modules", "named_children", "children"):
            monkeypatch.setattr(clip.model.image_encoder, name, fail)
        torch.testing.assert_close(clip.encode_text(LABELS), expected, rtol=0, atol=0)

    def test_unit_length_unless_asked_otherwise(self, clip, images):
        torch.testing.assert_close(clip.encode_image(images).norm(dim=-1), torch.ones(5))
        assert (clip.encode_image(images, normalize=False).norm(dim=-1) - 1).abs().min() > 1e-3

    def test_progress_says_how_far_and_how_fast(self, clip, images, capsys):
        clip.encode_image(images, batch_size=2, progress=True)
        shown = capsys.readouterr().err
        assert "encoding images: 5/5" in shown
        assert "images/s" in shown
        clip.encode_text(LABELS, progress=True)
        shown = capsys.readouterr().err
        assert "encoding texts: 3/3" in shown
        assert "texts/s" in shown

    def test_on_a_cpu_a_model_gets_few_images_at_once_and_one_that_chooses_gets_all(self, clip, images):
        for kind, sizes in ((DualEncoder, [MOST_IMAGES_ON_CPU, 1]), (ReadyDualEncoder, [5])):
            counting = Counting(clip.model.image_encoder)
            model = kind(counting, clip.model.text_encoder, max_logit_scale=clip.model.max_logit_scale).eval()
            embeddings = mobileclip.ImageTextModel(model, num_threads=1).encode_image(images)
            assert counting.sizes == sizes
            assert relative_error(embeddings, clip.encode_image(images)) < 1e-5

    @pytest.mark.parametrize("num_threads", [1, 3])
    @pytest.mark.parametrize("decode", ["exact", "fast"])
    def test_jpegs_are_decoded_as_far_as_asked_by_as_many_threads(self, small_file, tmp_path, decode, num_threads):
        size = SMALL.image.input.size
        noise = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
        photo = Image.fromarray(noise).resize((5 * size, 4 * size), Image.Resampling.BICUBIC)
        paths = [tmp_path / f"{number}.jpg" for number in range(3)]
        for number, path in enumerate(paths):
            photo.rotate(10 * number).save(path)
        clip = mobileclip.load(small_file, decode=decode, num_threads=num_threads)
        pixels = [read_pixels(path, clip.transform, reduced=decode == "fast") for path in paths]
        whole = [clip.transform.pixels(path) for path in paths]
        assert np.array_equal(pixels, whole) == (decode == "exact")
        expected = clip.encode_pixels(torch.from_numpy(np.stack(pixels)))
        for given in (paths, [path.read_bytes() for path in paths]):
            torch.testing.assert_close(clip.encode_image(given), expected, rtol=0, atol=0)
        paths[1].write_bytes(b"no picture")
        with fails(ValueError, "1.jpg"):
            clip.encode_image(paths)

    def test_another_way_to_decode_is_none(self, small_file):
        with fails(ValueError, "quick", "exact, fast"):
            mobileclip.load(small_file, decode="quick")

    def test_half_precision_weights_give_float32_embeddings(self, small_file, clip, images):
        half = mobileclip.load(small_file, dtype=torch.bfloat16)
        embedding = half.encode_image(images)
        assert embedding.dtype == torch.float32
        assert relative_error(embedding, clip.encode_image(images)) < 0.05

    def test_a_bad_image_is_named(self, clip, tmp_path):
        with fails(ImageError, "nothing.png"):
            clip.encode_image(tmp_path / "nothing.png")

    def test_no_batch_of_nothing(self, clip, images):
        with fails(ValueError):
            clip.encode_image(images, batch_size=0)


class TestClassify:
    def test_is_the_softmax_of_scaled_cosines(self, clip, images):
        scores = clip.classify(images[0], LABELS)
        logits = clip.model.logit_scale.exp() * clip.encode_image(images[0]) @ clip.encode_text(LABELS).T
        expected = dict(zip(LABELS, logits[0].softmax(-1).tolist(), strict=True))
        assert scores == pytest.approx(expected, abs=1e-6)
        assert list(scores.values()) == sorted(scores.values(), reverse=True)
        assert sum(scores.values()) == pytest.approx(1)

    def test_a_template_holds_the_label(self, clip, images):
        scores = clip.classify(images[0], ["cat", "dog"], template="a {}")
        assert scores == pytest.approx(
            {label[2:]: score for label, score in clip.classify(images[0], LABELS[:2]).items()}
        )

    @pytest.mark.parametrize(
        ("labels", "template", "error"),
        [
            ([], "{}", (ValueError,)),
            ("a cat", "{}", (ValueError,)),
            (["a", "a", "b"], "{}", (ValueError, "a")),
            (["a"], "a photo", (ValueError,)),
            (["a", " "], "{}", (ValueError,)),
        ],
    )
    def test_labels_that_make_no_sense(self, clip, images, labels, template, error):
        with fails(*error):
            clip.classify(images[0], labels, template=template)


class TestLoad:
    def test_is_folded_and_frozen_by_default(self, clip):
        assert is_folded(clip.model)
        assert not clip.model.training
        assert not any(parameter.requires_grad for parameter in clip.model.parameters())

    def test_keeps_the_training_form_when_asked(self, small_file):
        model = mobileclip.load(small_file, fold=False).model
        assert not is_folded(model)
        assert all(parameter.requires_grad for parameter in model.parameters())

    def test_takes_a_spec(self, tmp_path):
        save_model(randomised(SMALL), tmp_path / "m.pt", layout="official")
        assert mobileclip.load(SMALL, tmp_path / "m.pt").model.spec == SMALL

    def test_what_a_name_tells_of_a_model_is_known_without_its_weights(self, small_file):
        s2, smaller = mobileclip.specs.mobileclip_s2(), mobileclip.specs.mobileclip_s0()
        assert spec_known_by_name("mobileclip_s2") == s2
        assert spec_known_by_name("mobileclip_s0") == spec_known_by_name(smaller, small_file) == smaller
        assert spec_known_by_name(None, PUBLISHED["mobileclip_s0"].address) == smaller
        changed = spec_known_by_name("mobileclip_s2", image_size=384, context_length=32)
        assert (changed.image.input.size, changed.text.input.context_length) == (384, 32)
        assert spec_known_by_name(None, small_file) is None
        assert spec_known_by_name(None, "hf-hub:somebody/something") is None

    def test_unknown_names_and_missing_weights(self):
        with fails(ValueError, "did you mean 'mobileclip_s2'"):
            mobileclip.load("mobileclip_s22")
        with fails(ValueError, "mci0", "models with published weights"):
            mobileclip.load("mci0")
        with fails(ValueError, "this model"):
            mobileclip.load()

    def test_a_model_without_weights_names_those_that_are_built_like_it(self, monkeypatch):
        monkeypatch.setitem(models._values, "a_twin", mobileclip.specs.mobileclip2_s4())
        with fails(ValueError, "a_twin", "mobileclip_s4 and mobileclip2_s4 have the same architecture"):
            mobileclip.load("a_twin")
        row = next(row for row in catalogue.rows() if row["name"] == "a_twin")
        assert row["weights"] == "none; built like mobileclip_s4, mobileclip2_s4"

    def test_one_tower_cannot_classify(self, tmp_path):
        save_model(randomised(SMALL).text_encoder, tmp_path / "text.safetensors")
        with fails(ValueError):
            mobileclip.load(tmp_path / "text.safetensors")

    def test_a_training_model_is_refused(self):
        with fails(ValueError):
            mobileclip.ImageTextModel(SMALL.build())
