"""A model with its own preprocessing: what it returns, and what it says when asked for something else."""

import numpy as np
import pytest
import torch
from PIL import Image

import mobileclip
from mobileclip.blocks import image_encoders, models, text_encoders
from mobileclip.data import ImageError, ImageTransform, Tokenizer
from mobileclip.data.images.transform import read_pixels
from mobileclip.encoders import DualEncoder, save_model
from mobileclip.encoders.checkpoints import PACKAGED, PUBLISHED
from mobileclip.inference import catalogue
from mobileclip.inference.forms import MOST_IMAGES_ON_CPU, PreparedTower, ReadyDualEncoder
from mobileclip.inference.loading import spec_known_by_name
from mobileclip.reparam import is_folded
from tests.encoders.small import SMALL, randomised
from tests.errors import fails, told
from tests.golden.checkpoints import relative_error

LABELS = ["a cat", "a dog", "a diagram"]


@pytest.fixture(scope="module")
def clip(small_file):
    return mobileclip.load(small_file)


@pytest.fixture(scope="module")
def images():
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(0, 256, (50 + 9 * i, 80, 3), dtype=np.uint8)) for i in range(5)]


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
    def test_inputs_go_through_the_models_own_transform_and_tokenizer(self, clip, images):
        transform = ImageTransform(SMALL.image.input)
        with torch.inference_mode():
            expected = clip.model.encode_image(torch.stack([transform(image) for image in images]))
            texts = clip.model.encode_text(Tokenizer(SMALL.text.input)(LABELS), normalize=True)
        for batch_size in (2, 64):
            embedding = clip.encode_image(images, normalize=False, batch_size=batch_size)
            assert relative_error(embedding, expected) < 1e-6
            assert relative_error(clip.encode_text(LABELS, batch_size=batch_size), texts) < 1e-6
        assert (embedding.norm(dim=-1) - 1).abs().min() > 1e-3
        torch.testing.assert_close(clip.encode_image(images).norm(dim=-1), torch.ones(5))

    def test_every_kind_of_image_source_is_the_same_image(self, clip, images, tmp_path):
        path = tmp_path / "0.png"
        images[0].save(path)
        with path.open("rb") as file:
            embeddings = clip.encode_image([images[0], path, str(path), path.read_bytes(), file])
        torch.testing.assert_close(embeddings, embeddings[:1].expand_as(embeddings), rtol=1e-6, atol=1e-6)
        with fails(ImageError, "nothing.png"):
            clip.encode_image(tmp_path / "nothing.png")

    def test_one_counts_as_a_batch_and_none_as_an_empty_one(self, clip, images):
        assert clip.encode_image(images[0]).shape == clip.encode_text("a cat").shape == (1, 24)
        assert clip.encode_image([]).shape == clip.encode_text([]).shape == (0, 24)
        with fails(ValueError):
            clip.encode_image(images, batch_size=0)

    def test_texts_ask_nothing_of_the_image_tower(self, clip, monkeypatch):
        expected = clip.encode_text(LABELS)

        def fail(*_, **__):
            raise AssertionError("the image tower was looked at")

        for name in ("parameters", "modules", "named_children", "children"):
            monkeypatch.setattr(clip.model.image_encoder, name, fail)
        torch.testing.assert_close(clip.encode_text(LABELS), expected, rtol=0, atol=0)

    def test_progress_says_how_far_and_how_fast(self, clip, images, capsys):
        clip.encode_image(images, batch_size=2, progress=True)
        told(capsys.readouterr().err, "encoding images: 5/5", "images/s")
        clip.encode_text(LABELS, progress=True)
        told(capsys.readouterr().err, "encoding texts: 3/3", "texts/s")

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

    def test_half_precision_weights_give_float32_embeddings(self, small_file, clip, images):
        half = mobileclip.load(small_file, dtype=torch.bfloat16)
        embedding = half.encode_image(images)
        assert embedding.dtype == torch.float32
        assert relative_error(embedding, clip.encode_image(images)) < 0.05


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
    @pytest.mark.parametrize("fold", [True, False])
    def test_is_folded_and_frozen_unless_asked_otherwise(self, small_file, fold):
        model = mobileclip.load(small_file, fold=fold).model
        assert is_folded(model) == fold
        assert not model.training
        assert {parameter.requires_grad for parameter in model.parameters()} == {not fold}

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

    def test_what_is_no_model_is_refused(self, small_file, tmp_path):
        save_model(randomised(SMALL).text_encoder, tmp_path / "text.safetensors")
        for given, options, *named in (
            (["mobileclip_s22"], {}, "did you mean 'mobileclip_s2'"),
            (["mci0"], {}, "mci0", "models with published weights"),
            ([], {}, "this model"),
            ([small_file], {"decode": "quick"}, "quick", "exact, fast"),
            ([tmp_path / "text.safetensors"], {}),
        ):
            with fails(ValueError, *named):
                mobileclip.load(*given, **options)
        with fails(ValueError):
            mobileclip.ImageTextModel(SMALL.build())

    def test_a_model_without_weights_names_those_that_are_built_like_it(self, monkeypatch):
        monkeypatch.setitem(models._values, "a_twin", mobileclip.specs.mobileclip2_s4())
        with fails(ValueError, "a_twin", "mobileclip_s4 and mobileclip2_s4 have the same architecture"):
            mobileclip.load("a_twin")
        (row,) = catalogue.rows(known={*models, *image_encoders, *text_encoders, *PACKAGED} - {"a_twin"})
        assert row["weights"] == "none; built like mobileclip_s4, mobileclip2_s4"
