"""`QuantizationSpec`: one file of a model tuned to int8, what is said of it, and a run that goes on when killed."""

import signal

import attrs
import pytest
import torch

import mobileclip
import mobileclip.cli
from mobileclip.data import ImageTransform, Tokenizer
from mobileclip.encoders import load_model, save_model
from mobileclip.export import bundled_samples
from mobileclip.inference import QuantizationSpec, is_grouped, space_of, weighted_layers
from mobileclip.inference.quantization import Agreement, TowerQuality, TuningSpec, rounded, state_file
from mobileclip.tensor_files import read_tensors
from tests.errors import fails
from tests.export.models import CONVOLUTIONAL, seeing
from tests.preloaded import preloaded
from tests.waiting import wait_for

pytestmark = pytest.mark.usefixtures("one_thread")
TOWERS = ("image", "text")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model, twelve pictures, and two captions of each."""
    folder = tmp_path_factory.mktemp("quantizing")
    save_model(seeing(CONVOLUTIONAL), folder / "model.safetensors")
    samples = bundled_samples()
    (folder / "photos").mkdir()
    for name, data in zip(samples.image_names, samples.images, strict=True):
        (folder / "photos" / f"{name}.jpg").write_bytes(data)
    (folder / "texts.txt").write_text("\n".join(samples.captions), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def spec(place):
    return QuantizationSpec(
        model=str(place / "model.safetensors"),
        images=(str(place / "photos"),),
        texts=(str(place / "texts.txt"),),
        output=place / "int8.safetensors",
        batch_size=4,
        tuning=TuningSpec(num_steps=6),
        seconds_between_saves=0,
    )


@pytest.fixture(scope="module")
def made(spec):
    """The report of a run; its file lies where the spec says."""
    return spec.run(show_progress=False)


def inputs_of(model):
    samples = bundled_samples()
    transform = ImageTransform(model.spec.image.input)
    images = torch.stack([transform(data) for data in samples.images])
    return {"image": images, "text": Tokenizer(model.spec.text.input)(samples.captions)}


def test_one_file_computes_the_same_weights_in_float32_and_in_int8(spec, made):
    assert not state_file(spec.output).exists()
    found = mobileclip.load(str(spec.output)).model
    teacher = mobileclip.load(spec.model).model
    for name, inputs in inputs_of(found).items():
        tower, before = (model.get_submodule(f"{name}_encoder") for model in (found, teacher))
        for layer, module in weighted_layers(tower):
            if layer in made.float32[name]:
                assert f"{layer}.input" not in tower.ranges
                continue
            steps = module.weight / tower.ranges[f"{layer}.weight"].reshape(-1, *(1,) * (module.weight.ndim - 1))
            torch.testing.assert_close(steps, steps.round(), atol=1e-4, rtol=0)
        int8 = rounded(tower, tower.ranges)(inputs)
        for other in (tower(inputs), before(inputs)):
            assert torch.cosine_similarity(int8, other).min() > 0.95
        assert made.towers[name].smallest_cosine > 0.95
        assert made.seconds_per_step[name] > 0
        grouped = {layer for layer, module in weighted_layers(tower) if is_grouped(module)}
        assert grouped <= set(made.float32[name])
        assert tower.ranges


def test_what_is_said_is_of_inputs_that_were_held_out(made):
    assert {name: one.num_inputs for name, one in made.towers.items()} == {"image": 3, "text": 6}
    assert made.towers["image"].is_found.total == 6
    assert made.towers["text"].is_found.total == 3
    assert str(made).splitlines()[0].startswith("image tower: 3 held-out inputs")
    assert "% of 3 (" in str(made)


def test_pictures_alone_tune_the_image_tower_and_leave_the_other(spec, place):
    output = place / "images.safetensors"
    report = attrs.evolve(spec, texts=(), output=output, tuning=TuningSpec(num_steps=1)).run(show_progress=False)
    assert report.towers.keys() == {"image"}
    assert report.towers["image"].is_found.total == 24
    found, teacher = load_model(output), load_model(spec.model)
    assert not hasattr(found.text_encoder, "ranges")
    assert found.image_encoder.ranges
    expected = teacher.text_encoder.state_dict()
    assert all(torch.equal(one, expected[name]) for name, one in found.text_encoder.state_dict().items())


def test_a_tower_alone_is_quantised_and_stays_in_its_space(spec, place):
    tower, output = place / "tower.safetensors", place / "tower_int8.safetensors"
    mobileclip.cli.main(["convert", spec.model, "-o", str(tower), "--tower", "text"])
    of_tower = attrs.evolve(spec, model=str(tower), images=(), output=output, tuning=TuningSpec(num_steps=1))
    report = of_tower.run(show_progress=False)
    assert report.towers["text"].is_found is None
    assert load_model(output).ranges
    assert space_of(output) == space_of(spec.model)


def test_a_killed_run_goes_on_to_the_same_tensors(spec, place, made):
    output = place / "killed.safetensors"
    line = (
        *("quantize", spec.model, "--images", *spec.images, "--texts", *spec.texts, "-o", str(output)),
        *("--steps", "6", "--batch-size", "4", "--seconds-between-saves", "0", "--quiet"),
    )
    process = preloaded().start("-m", "mobileclip", *line, folder=place)
    wait_for(lambda: state_file(output).exists() or process.poll() is not None)
    process.send_signal(signal.SIGKILL)
    wait_for(lambda: process.poll() is not None)
    assert process.poll() == -signal.SIGKILL, process.said()
    assert not output.exists()
    step = read_tensors(state_file(output))[0]["image:state/step"]
    assert 1 <= step < 6
    again = attrs.evolve(spec, output=output).run(show_progress=False)
    assert again.towers == made.towers
    (tensors, _), (expected, _) = read_tensors(output), read_tensors(spec.output)
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(one, expected[name]) for name, one in tensors.items())
    assert not state_file(output).exists()


def test_what_is_left_of_another_tuning_is_not_taken(spec, place):
    output = place / "other.safetensors"
    state_file(output).write_bytes((place / "int8.safetensors").read_bytes())
    with fails(ValueError, "other.tuning.safetensors"):
        attrs.evolve(spec, output=output).run(show_progress=False)


def test_what_cannot_be_quantised_is_refused(spec, place, made):
    with fails(ValueError):
        attrs.evolve(spec, images=(), texts=(), output=place / "a.safetensors").run(show_progress=False)
    with fails(ValueError, "int8.safetensors"):
        attrs.evolve(spec, model=str(spec.output), output=place / "a.safetensors").run(show_progress=False)
    few = place / "few.txt"
    few.write_text("one\ntwo\n", encoding="utf-8")
    with fails(ValueError, "--texts", "2", "8"):
        attrs.evolve(spec, texts=(str(few),), output=place / "a.safetensors").run(show_progress=False)
    text = place / "text.safetensors"
    save_model(load_model(spec.model, tower="text"), text)
    with fails(ValueError, "image", "--images"):
        attrs.evolve(spec, model=str(text), output=place / "a.safetensors").run(show_progress=False)


@pytest.mark.parametrize(
    ("same", "total", "low", "high"), [(0, 10, 0, 0.3085), (10, 10, 0.6915, 1), (49, 50, 0.8935, 0.9995)]
)
def test_the_interval_is_clopper_and_pearsons(same, total, low, high):
    assert Agreement(same=same, total=total).interval == pytest.approx((low, high), abs=1e-4)


def test_a_tower_that_ranks_otherwise_or_turns_away_is_refused():
    expected, others = torch.eye(8), torch.eye(8)
    assert not TowerQuality.of(expected, expected, others).refusal
    turned = TowerQuality.of(expected.flip(0), expected, others)
    assert "cosine" in turned.refusal
    assert turned.finds == turned.is_found == Agreement(same=0, total=8)
    # Of two texts that are all but one, the other one is nearer now, at the same cosine to the last digits.
    near = expected + 0.01 * expected.roll(1, 1)
    pairs = torch.cat([expected + 0.01 * expected.roll(2, 1), expected + 0.01 * expected.roll(1, 1)])
    ranked = TowerQuality.of(near, expected + 0.01 * expected.roll(2, 1), pairs)
    assert ranked.smallest_cosine > 0.999
    assert "first results" in ranked.refusal
