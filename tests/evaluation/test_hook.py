"""What evaluates a model in training: the right numbers, no trace in the training, and no end of it either."""

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
from tests.errors import fails, told
from tests.evaluation.models import session_of
from tests.evaluation.scene_models import CLASSES, write_scene_benchmarks
from tests.training.runs import Batches, training_spec

# All ids and a longer context, so that no two captions are cut to the same text.
SPEC = attrs.evolve(SMALL_MCT, text=attrs.evolve(SMALL_MCT.text, input=TextInput(context_length=32)))
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return write_scene_benchmarks(tmp_path_factory.mktemp("benchmarks"), 30)


@pytest.fixture
def copied(folders, tmp_path):
    """The folder of classes, for a test to damage."""
    return shutil.copytree(folders[0], tmp_path / folders[0].name)


@pytest.fixture
def model(folders):
    """A model that knows the pictures' statistics, and whose texts differ: random weights tell nothing apart."""
    torch.manual_seed(0)
    model, transform = SPEC.build(), ImageTransform(SPEC.image.input)
    images = [transform(decode_image(one.image)) for one in open_benchmark(folders[0]).samples(SkipReport())]
    with torch.no_grad():
        model.text_encoder.token_embedding.weight.mul_(20)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
        model.encode_image(torch.stack(images))
    return model.eval()


def test_the_numbers_are_those_of_an_evaluation_in_half_precision_too(model, folders):
    expected = {}
    for folder in folders:
        found = evaluate_benchmark(session_of(model), open_benchmark(folder))
        expected |= {f"{found.key}/{name}": value for name, value in {**found.metrics, "num_skipped": 0}.items()}
        del expected[f"{found.key}/main_metric"]
    exact = evaluation_hook(folders)(model, 7)
    assert exact == pytest.approx(expected)
    assert 0 < exact["scenes/acc1"] < 1
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


@pytest.mark.parametrize("ema_decay", [pytest.param(None, marks=pytest.mark.slow), 0.9])
def test_a_run_is_the_same_to_the_bit_whether_it_is_looked_at_or_not(folders, tmp_path, ema_decay):
    options = {"range_augment": RangeAugmentSpec(), "ema_decay": ema_decay, "evaluate_every_steps": 2}
    states, random = [], []
    for evaluate in (None, evaluation_hook(folders)):
        spec, output = training_spec(5, reinforced=False, **options), tmp_path / str(len(states))
        torch.manual_seed(0)
        result = train(spec, model=SPEC.build(), batches=Batches(make=batch), output=output, evaluate=evaluate)
        states.append(result.model.state_dict())
        random.append(torch.get_rng_state())
    assert states[0].keys() == states[1].keys()
    assert not [name for name, value in states[0].items() if not torch.equal(value, states[1][name])]
    assert torch.equal(*random)
    seen = [line for line in read_metrics(output / "metrics.jsonl") if "scenes/acc1" in line]
    assert [line["step"] for line in seen] == [1, 3, 4]
    assert all("scene-captions/mean_recall@1" in line for line in seen)


def test_modes_random_numbers_and_memory_layout_stay_as_they_were(folders):
    model, drawn = SPEC.build().train(), []
    model.text_encoder.eval()
    model.text_encoder.norm.register_forward_pre_hook(lambda *_: drawn.append(torch.rand(())))

    def state():
        modes = [module.training for module in model.modules()]
        return modes, [value.stride() for value in model.state_dict().values()], torch.get_rng_state().tolist()

    before = state()
    evaluation_hook(folders[:1])(model, 0)
    assert drawn
    assert state() == before
    assert not any(parameter.is_inference() for parameter in model.parameters())


def cut_short(folder):
    shard = folder / "test" / "0.tar"
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size * 2 // 3])


DAMAGES = [
    (lambda folder: (folder / "classnames.txt").unlink(), "classnames.txt"),
    (cut_short, "0.tar"),
    (lambda folder: (folder / "test" / "0.tar").write_bytes(bytes(1024)), "scenes"),
]


@pytest.mark.parametrize(("damage", "said"), DAMAGES)
def test_broken_data_is_named_before_the_training(folders, copied, damage, said):
    damage(copied)
    with fails(ValueError, said):
        evaluation_hook([folders[1], copied])


def test_data_sets_have_different_names_and_there_is_one(folders, copied):
    for places, word in (([folders[0], open_benchmark(copied)], "scenes"), ([], "")):
        with fails(ValueError, word):
            evaluation_hook(places)


def test_a_shard_that_is_damaged_later_is_logged_and_the_rest_is_evaluated(model, folders, copied, caplog):
    hook = evaluation_hook([copied, folders[1]])
    whole = hook(model.train(), 1)
    cut_short(copied)
    with caplog.at_level(logging.WARNING):
        rest = hook(model, 2)
    assert rest == {name: value for name, value in whole.items() if name.startswith("scene-captions/")}
    assert rest
    assert "scenes could not be evaluated after 2 steps; training continues: ValueError: " in caplog.text
    assert model.training


def test_what_nobody_expected_is_logged_with_its_trace(model, folders, caplog):
    model.text_encoder.token_embedding = nn.Embedding(3, 32)
    assert evaluation_hook(folders[:1])(model, 3) == {}
    told(caplog.text, "IndexError", "Traceback")


def test_missing_shards_are_allowed_where_that_is_said(model, copied):
    (copied / "test" / "0.tar").rename(copied / "test" / "1.tar")
    (copied / "test" / "nshards.txt").write_text("2")
    assert evaluation_hook([copied], allow_missing=True)(model, 0)["scenes/num_skipped"] == 1
