"""Towers in int8: what they are calibrated with, what they are measured on, and what becomes of those that fail."""

import re
import sys

import attrs
import pytest
import torch

from mobileclip import optimize, reparameterize
from mobileclip.data import ImageTransform, load_image
from mobileclip.export import bundled_samples
from mobileclip.extras import install
from mobileclip.inference import Form, OptimizedTower, optimize_tower
from mobileclip.inference.comparison import LEAST_COSINE, Calibration, calibrations, least_agreement
from mobileclip.inference.forms import with_depthwise_convs, with_one_token
from mobileclip.inference.openvino_backend import int8_model
from tests.errors import fails
from tests.export.models import CONVOLUTIONAL, PIXELS, TOKENS, TRANSFORMERS, seeing

pytestmark = pytest.mark.usefixtures("one_thread")
INT8 = Form(engine="openvino", precision="int8", max_batch_size=1)


@pytest.fixture(scope="module")
def model():
    return seeing(CONVOLUTIONAL)


@pytest.fixture
def one_of_two(model):
    """Four pictures of which ranges are found with two, and what the others give."""
    images = torch.stack([ImageTransform(PIXELS)(load_image(data)) for data in bundled_samples().images[:4]])
    with torch.no_grad():
        return images, Calibration.of(images), model.image_encoder(images)


def test_what_is_measured_is_not_what_ranges_are_found_with(model, one_of_two):
    images, calibration, _ = one_of_two
    assert torch.equal(calibration.ranges, images[[0, 2]])
    assert torch.equal(calibration.measured, images[[1, 3]])
    with fails(ValueError, "3", "4"):
        Calibration.of(images[:3])
    tokens = torch.ones(8, TOKENS.context_length, dtype=torch.long)
    with fails(ValueError, "3"):
        optimize(model, precision="int8", calibration=(images[:3], tokens), compiled=False)
    report = optimize(model, precision="int8", compiled=False, rounds=1, show_progress=False).report
    for tower in (report.image, report.text):  # without programs there is no int8
        assert [str(trial.form) for trial in tower.trials] == ["eager float32, 1 at once", "eager bfloat16, 1 at once"]


def test_crops_of_half_of_the_pictures_are_for_ranges_and_the_others_are_measured_on():
    calibration = Calibration.of_package(PIXELS)
    transform, pictures = ImageTransform(PIXELS), bundled_samples().images
    assert torch.equal(calibration.measured, torch.stack([transform(load_image(data)) for data in pictures[1::2]]))
    assert calibration.ranges.shape == (96, 3, PIXELS.size, PIXELS.size)
    darkest = transform.normalize(torch.zeros(1, 1, 3, dtype=torch.uint8)).amin()
    assert calibration.ranges.min() >= darkest
    captions = Calibration.of_package(TOKENS)
    assert captions.ranges.shape == captions.measured.shape == (12, TOKENS.context_length)
    assert not any(torch.equal(one, other) for one in captions.ranges for other in captions.measured)


def test_results_must_be_found_as_in_float32(one_of_two):
    _, calibration, embeddings = one_of_two
    measured = embeddings[1::2]
    others = torch.stack([measured[0], measured[1]])
    beside = attrs.evolve(calibration, others=others)
    assert not beside.refusal(measured, measured)
    expected = f"0.0% of 4 first results are as in float32, expected at least {least_agreement(4):.1%}"
    assert beside.refusal(measured.flip(0), measured) == expected
    assert not calibration.refusal(measured.flip(0), measured), "two inputs are each other's nearest, whatever they are"


def test_both_towers_are_ranked_against_the_other_in_float32(model):
    with torch.no_grad():
        images, tokens = torch.randn(5, 3, PIXELS.size, PIXELS.size), torch.randint(1, 500, (6, TOKENS.context_length))
        of_images, of_texts = calibrations(model, (images, tokens))
        torch.testing.assert_close(of_images.others, model.text_encoder(tokens))
        torch.testing.assert_close(of_texts.others, model.image_encoder(images))
    assert torch.equal(of_images.measured, images[1::2])
    assert torch.equal(of_texts.ranges, tokens[::2])


@pytest.mark.slow
def test_layers_are_in_int8_but_for_grouped_convolutions(model):
    tower = with_depthwise_convs(with_one_token(reparameterize(model).image_encoder))
    found = int8_model(tower, Calibration.of_package(PIXELS).ranges[:8], lengths=False)

    def stored(node):
        while node.get_type_name() != "Constant":
            node = node.input_value(0).get_node()
        return node.get_element_type().get_type_name()

    def weight_types(kind):
        return {stored(node.input_value(1).get_node()) for node in found.get_ops() if node.get_type_name() == kind}

    assert weight_types("GroupConvolution") == {"f32"}
    # Those of squeeze-and-excite blocks see one vector an image.
    assert weight_types("Convolution") == {"i8", "f32"}


@pytest.mark.slow
@pytest.mark.parametrize(("spec", "name"), [(CONVOLUTIONAL, "image_encoder"), (TRANSFORMERS, "text_encoder")])
def test_programs_of_any_batch_are_made_of_one_model(spec, name):
    model = seeing(spec)
    plain = getattr(model, name)
    calibration = Calibration.of_package(plain.spec.input)
    towers = [OptimizedTower(reparameterize(plain), form=attrs.evolve(INT8, max_batch_size=most)) for most in (1, 4)]
    int8 = towers[0].int8_model(calibration)
    with torch.no_grad():
        expected = plain(calibration.measured[:4])
    for tower in towers:
        tower.compile_for(calibration.measured[:4], int8=int8)
        given = tower(calibration.measured[:4])
        assert torch.cosine_similarity(given, expected).min() > LEAST_COSINE["int8"]
        assert not torch.equal(given, expected)


@pytest.mark.slow
def test_a_tower_that_fails_stays_in_the_next_precision_and_says_so(model, monkeypatch):
    monkeypatch.setitem(LEAST_COSINE, "int8", 1.1)
    size, length = PIXELS.size, TOKENS.context_length
    example = torch.rand(2, 3, size, size), torch.randint(1, 500, (2, length))
    report = optimize(model, example, precision="int8", rounds=1, show_progress=False).report
    for tower in (report.image, report.text):
        kinds = [(trial.form.engine, trial.form.precision) for trial in tower.trials]
        others = [(engine, precision) for precision in ("float32", "bfloat16") for engine in ("eager", "openvino")]
        assert kinds == [*others, ("openvino", "int8")]
        assert tower.trials[-1].refused == "the cosine is below 1.1"
        assert tower.used is None or tower.used.form.precision != "int8"


@pytest.mark.slow
def test_the_quantiser_is_named_where_it_is_missing(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "nncf", None)
    tower = OptimizedTower(reparameterize(model.image_encoder), form=INT8)
    with pytest.raises(ImportError, match=re.escape(f"int8 needs nncf: `{install('openvino')}`")):
        tower.int8_model(Calibration.of_package(PIXELS))


@pytest.mark.slow
def test_an_image_tower_alone_is_tried_too(model):
    images = torch.rand(4, 3, PIXELS.size, PIXELS.size)
    fast, _ = optimize_tower(model.image_encoder, images, precision="int8", engines=("openvino",), rounds=2)
    measured = Calibration.of_package(PIXELS).measured
    with torch.no_grad():
        given, expected = fast(measured), model.image_encoder(measured)
    assert torch.cosine_similarity(given, expected).min() > LEAST_COSINE["int8"]
