"""What evaluates a model in training: the right numbers, no trace in the training, and no end of it either."""

import copy
import logging
import shutil

import attrs
import pytest
import torch
from torch import nn

from mobileclip.data import ImageTransform, RangeAugmentSpec, ReinforcedBatch, SkipReport, Tokenizer, decode_image
from mobileclip.evaluation import evaluate_benchmark, evaluation_hook, open_benchmark
from mobileclip.inputs import TextInput
from mobileclip.training import read_metrics, train
from tests.encoders.small import SMALL_MCT
from tests.errors import fails
from tests.evaluation.models import session_of
from tests.evaluation.scene_models import CLASSES, write_scene_benchmarks
from tests.training.runs import Batches, training_spec

COUNT = 30
# All ids and a longer context, so that no two captions are cut to the same text.
SPEC = attrs.evolve(SMALL_MCT, text=attrs.evolve(SMALL_MCT.text, input=TextInput(context_length=32)))


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return write_scene_benchmarks(tmp_path_factory.mktemp("benchmarks"), COUNT)


@pytest.fixture(scope="module")
def statistics(folders):
    """A model that knows the pictures' statistics, and whose texts differ: random weights tell nothing apart."""
    torch.manual_seed(0)
    model = SPEC.build()
    transform = ImageTransform(SPEC.image.input)
    samples = open_benchmark(folders[0]).samples(SkipReport())
    with torch.no_grad():
        model.text_encoder.token_embedding.weight.mul_(20)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
        model.encode_image(torch.stack([transform(decode_image(one.image)) for one in samples]))
    return model.eval()


@pytest.fixture
def model(statistics):
    return copy.deepcopy(statistics)


def test_the_numbers_are_those_of_an_evaluation(model, folders):
    expected = {}
    for folder in folders:
        found = evaluate_benchmark(session_of(model), open_benchmark(folder))
        named = {**found.metrics, "num_skipped": 0}
        expected |= {f"{found.key}/{name}": value for name, value in named.items() if name != "main_metric"}
    assert evaluation_hook(folders)(model, 7) == pytest.approx(expected)
    assert 0 < expected["scenes/acc1"] < 1


def test_weights_in_half_precision_are_evaluated_too(model, folders):
    exact = evaluation_hook(folders)(model, 0)
    half = evaluation_hook(folders)(model.bfloat16(), 0)
    assert half.keys() == exact.keys()
    assert next(model.parameters()).dtype == torch.bfloat16
    assert half["scenes/acc5"] == pytest.approx(exact["scenes/acc5"], abs=0.2)


def batch(step, size=8):
    """Noise with names of things: what a step needs, drawn from a generator of its own."""
    own = torch.Generator().manual_seed(step)
    names = [CLASSES[index] for index in torch.randperm(len(CLASSES), generator=own)[:size].tolist()]
    image = torch.randint(256, (size, 3, 64, 64), generator=own, dtype=torch.uint8)
    return ReinforcedBatch(keys=tuple(names), image=image, text=Tokenizer(SPEC.text.input)(names), syn_text=None)


def trained(output, *, evaluate, ema_decay):
    spec = training_spec(
        5, reinforced=False, range_augment=RangeAugmentSpec(), ema_decay=ema_decay, evaluate_every_steps=2
    )
    torch.manual_seed(0)
    result = train(spec, model=SPEC.build(), batches=Batches(make=batch), output=output, evaluate=evaluate)
    return result.model.state_dict(), read_metrics(output / "metrics.jsonl"), torch.get_rng_state()


@pytest.mark.parametrize("ema_decay", [pytest.param(None, marks=pytest.mark.slow), 0.9])
def test_a_run_is_the_same_to_the_bit_whether_it_is_looked_at_or_not(folders, tmp_path, ema_decay):
    hook = evaluation_hook(folders)
    one, _, random_after = trained(tmp_path / "alone", evaluate=None, ema_decay=ema_decay)
    other, lines, random_after_other = trained(tmp_path / "seen", evaluate=hook, ema_decay=ema_decay)
    assert one.keys() == other.keys()
    assert not [name for name, value in one.items() if not torch.equal(value, other[name])]
    assert torch.equal(random_after, random_after_other)
    assert [line["step"] for line in lines if "scenes/acc1" in line] == [1, 3, 4]
    assert all("scene-captions/mean_recall@1" in line for line in lines if "scenes/acc1" in line)


def test_modes_random_numbers_and_memory_layout_stay_as_they_were(folders):
    model = SPEC.build().train()
    model.text_encoder.eval()
    drawn = []
    model.text_encoder.norm.register_forward_pre_hook(lambda *_: drawn.append(torch.rand(())))
    modes = {name: module.training for name, module in model.named_modules()}
    strides = {name: value.stride() for name, value in model.state_dict().items()}
    before = torch.get_rng_state()
    evaluation_hook(folders[:1])(model, 0)
    assert drawn
    assert torch.equal(torch.get_rng_state(), before)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert {name: value.stride() for name, value in model.state_dict().items()} == strides
    assert not any(parameter.is_inference() for parameter in model.parameters())


def copied(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / folder.name)


def without_names(folder):
    (folder / "classnames.txt").unlink()


def cut_short(folder):
    shard = folder / "test" / "0.tar"
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size * 2 // 3])


def emptied(folder):
    (folder / "test" / "0.tar").write_bytes(bytes(1024))


@pytest.mark.parametrize(
    ("damage", "said"), [(without_names, "classnames.txt"), (cut_short, "0.tar"), (emptied, "scenes")]
)
def test_broken_data_is_named_before_the_training(folders, tmp_path, damage, said):
    folder = copied(folders[0], tmp_path)
    damage(folder)
    with fails(ValueError, said):
        evaluation_hook([folders[1], folder])


def test_data_sets_have_different_names_and_there_is_one(folders, tmp_path):
    with fails(ValueError, "scenes"):
        evaluation_hook([folders[0], open_benchmark(copied(folders[0], tmp_path))])
    with fails(ValueError):
        evaluation_hook([])


def test_a_shard_that_is_damaged_later_is_logged_and_the_rest_is_evaluated(model, folders, tmp_path, caplog):
    folder = copied(folders[0], tmp_path)
    hook = evaluation_hook([folder, folders[1]])
    model.train()
    whole = hook(model, 1)
    cut_short(folder)
    with caplog.at_level(logging.WARNING):
        rest = hook(model, 2)
    assert rest == {name: value for name, value in whole.items() if name.startswith("scene-captions/")}
    assert rest
    assert "scenes could not be evaluated after 2 steps; training continues: ValueError: " in caplog.text
    assert model.training


def test_what_nobody_expected_is_logged_with_its_trace(model, folders, caplog):
    model.text_encoder.token_embedding = nn.Embedding(3, 32)
    assert evaluation_hook(folders[:1])(model, 3) == {}
    assert "IndexError" in caplog.text
    assert "Traceback" in caplog.text


def test_missing_shards_are_allowed_where_that_is_said(model, folders, tmp_path):
    folder = copied(folders[0], tmp_path)
    shutil.copyfile(folder / "test" / "0.tar", folder / "test" / "1.tar")
    (folder / "test" / "nshards.txt").write_text("2")
    (folder / "test" / "0.tar").unlink()
    assert evaluation_hook([folder], allow_missing=True)(model, 0)["scenes/num_skipped"] == 1
