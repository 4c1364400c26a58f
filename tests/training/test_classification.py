"""Classifiers through the loop that image-text models train by: what is minimised, resumed to the bit, whole runs."""

import attrs
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.nn import functional as F

from mobileclip import training
from mobileclip.data import MixingSpec, RandomErasingSpec, RangeAugmentSpec
from mobileclip.datasets import LabelledPipelineSpec
from mobileclip.encoders import Classifier, DualEncoderSpec, load_model, save_model
from mobileclip.evaluation import classifier_hook, evaluate_classifier
from mobileclip.inputs import ImageInput
from mobileclip.losses import ContrastiveLossSpec, LossSpec, losses
from mobileclip.training import CrossEntropySpec, Memory, Objective, RunSpec, World, build_objective, run, train
from tests.errors import fails
from tests.training import runs
from tests.training.class_runs import IMAGE, LOSS, MODEL, TRANSFORMER, class_batch, new_classifier, training_spec
from tests.training.runs import image_of, logged, trained


def objective_of(spec, model=None) -> training.ClassificationObjective:
    return build_objective(spec.loss, spec=spec, model=model or new_classifier(TRANSFORMER), world=World())


@pytest.mark.parametrize("mixing", [None, MixingSpec()], ids=["", "mixed"])
def test_smoothed_targets_by_hand_are_those_of_the_mixed_images(mixing):
    model, batch = new_classifier(TRANSFORMER), class_batch(0)
    torch.manual_seed(7)
    (loss,) = objective_of(training_spec(loss=attrs.evolve(LOSS, mixing=mixing)), model)(class_batch(0))
    torch.manual_seed(7)
    image, targets = image_of(batch), F.one_hot(batch.label, 8).float()
    if mixing is not None:
        image, targets = mixing.mix(image, targets)
    expected = -((0.9 * targets + 0.1 / 8) * model(image).log_softmax(dim=1)).sum(dim=1).mean()
    torch.testing.assert_close(loss, expected)
    assert torch.equal(image, image_of(batch)) == (mixing is None)


MIXINGS = {"": None, "mixup": MixingSpec(cutmix_alpha=0.0), "cutmix": MixingSpec(mixup_alpha=0.0)}


@pytest.mark.parametrize("mixing", MIXINGS.values(), ids=MIXINGS)
@pytest.mark.parametrize("range_augment", [None, RangeAugmentSpec()], ids=["", "augmented"])
def test_pieces_make_no_difference(mixing, range_augment):
    def gradients(**changes):
        spec = training_spec(loss=CrossEntropySpec(mixing=mixing), range_augment=range_augment, **changes)
        objective, batch = objective_of(spec).double(), class_batch(0)
        torch.manual_seed(5)
        objective(attrs.evolve(batch, image=image_of(batch).double()))[-1].backward()
        return {name: parameter.grad for name, parameter in objective.named_parameters()}

    torch.testing.assert_close(gradients(memory=Memory(micro_batch=3)), gradients(), rtol=1e-9, atol=1e-12)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_mixtures_are_not_compiled_anew():
    """A kind of mixing is compiled once, whatever is drawn for a batch."""
    model = new_classifier(TRANSFORMER)
    objective, uncompiled = (objective_of(training_spec(**one), model) for one in ({"compile": "step"}, {}))
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters["stats"]
    before = counters["unique_graphs"]
    compiled = torch.compile(objective.forward, backend="eager")
    for step in range(12):
        torch.manual_seed(step)
        (plain,) = uncompiled(class_batch(step))
        torch.manual_seed(step)
        torch.testing.assert_close(compiled(class_batch(step))[0], plain)
    assert counters["unique_graphs"] - before == 2


def test_what_does_not_go_together_is_refused():
    dual = DualEncoderSpec(image=IMAGE, text=runs.MODEL.text).build()
    for call, *words in (
        (lambda: CrossEntropySpec(label_smoothing=1.0), "label_smoothing"),
        (lambda: objective_of(training_spec(), dual), "DualEncoder"),
        (lambda: objective_of(training_spec(loss=ContrastiveLossSpec())),),
        (lambda: objective_of(training_spec())(runs.batch_of(0)), "ReinforcedBatch"),
        (lambda: objective_of(runs.training_spec(), runs.new_model())(class_batch(0)), "LabelledBatch"),
    ):
        with fails(ValueError, *words):
            call()


def test_it_learns(tmp_path):
    spec = training_spec(40, peak=5e-3, ema_decay=0.8)
    result = trained(tmp_path, spec, model=new_classifier(), make=class_batch)
    lines = training.read_metrics(tmp_path / "metrics.jsonl")
    assert lines[0].keys() == {"step", "loss", "gradient_norm", "learning_rate", "seconds", "seconds_waiting"}
    batch = class_batch(1000, size=64)
    assert (result.model(image_of(batch)).argmax(dim=1) == batch.label).float().mean() > 0.6


def test_a_killed_run_resumes_to_the_bit(tmp_path):
    """Mixing and drop path draw from the random numbers that checkpoints hold."""
    runs.assert_resumes_to_the_bit(training_spec(8), tmp_path, new_classifier, class_batch)


NAMES = ("green", "red")
INPUT = ImageInput(size=32)
RUN_MODEL = attrs.evolve(MODEL, image=attrs.evolve(MODEL.image, input=INPUT), num_classes=2, class_names=NAMES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images of two classes, one green and one red."""
    root = tmp_path_factory.mktemp("classes")
    for split, count in (("train", 24), ("val", 12)):
        for number in range(count):
            place = root / split / NAMES[number % 2] / f"{number}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            colour = ((30, 150, 40), (150, 40, 30))[number % 2]
            Image.new("RGB", (40, 36), tuple(value + 2 * number for value in colour)).save(place)
    (root / "train" / "red" / "broken.png").write_bytes(b"no image")
    return root


def run_spec(folder, *, data=(), **changes) -> RunSpec:
    own = {"image": INPUT, "num_classes": 2, "class_names": NAMES, "erasing": RandomErasingSpec()} | dict(data)
    pipeline = LabelledPipelineSpec(shards=str(folder / "train"), batch_size=6, **own)
    given = {"model": RUN_MODEL, "training": training_spec(10, checkpoint_every_steps=4)} | changes
    return RunSpec(data=pipeline, **given)


def test_a_run_refuses_what_does_not_fit(folder):
    for changes, *words in (
        ({"data": {"num_classes": 3, "class_names": ()}}, "data", "3", "model", "2"),
        ({"data": {"class_names": NAMES[::-1]}}, "class_names"),
        ({"data": {"image": ImageInput(size=64)}}, "image"),
        ({"training": training_spec(loss=ContrastiveLossSpec())}, "ReinforcedLossSpec"),
    ):
        with fails(ValueError, *words):
            run_spec(folder, **changes)


def test_from_a_dual_encoder_to_a_classifier_and_its_backbone(folder, tmp_path):
    """A run that is interrupted leaves, once resumed, the file of one that is not, to the bit."""
    dual = DualEncoderSpec(image=attrs.evolve(IMAGE, input=INPUT), text=runs.MODEL.text).build()
    save_model(dual.eval(), tmp_path / "dual.safetensors")
    spec = run_spec(folder, initial_weights=tmp_path / "dual.safetensors")
    evaluate = classifier_hook([str(folder / "val")])
    path = run(spec, tmp_path / "whole", evaluate=lambda _: evaluate, device="cpu")
    run(spec, tmp_path / "parts", device="cpu")
    for checkpoint in sorted((tmp_path / "parts" / "checkpoints").iterdir())[1:]:
        checkpoint.unlink()
    again = run(spec, tmp_path / "parts", device="cpu")
    torch.testing.assert_close(load_file(again), load_file(path), rtol=0, atol=0)

    classifier = load_model(path)
    assert isinstance(classifier, Classifier)
    assert classifier.spec == RUN_MODEL
    lines = training.read_metrics(tmp_path / "whole" / "metrics.jsonl")
    (line,) = (line for line in lines if "val/acc1" in line)
    accuracy = evaluate_classifier(classifier, folder / "val").result.top1
    assert line.items() >= {"step": 9, "val/num_skipped": 0, "val/acc1": accuracy}.items()
    assert "val/acc5" not in line
    tower, image = load_model(path, tower="image"), torch.ones(1, 3, 32, 32)
    torch.testing.assert_close(tower(image), classifier.image_encoder(image))


@attrs.frozen(kw_only=True)
class HingeSpec(LossSpec):
    """A loss of this file's own."""

    needs_teachers = False

    def build(self, *, process_group=None):
        del process_group
        return torch.nn.MultiMarginLoss()


class HingeObjective(Objective):
    """Labels as they are, and a log of the head's size."""

    term_names = ("margin",)
    progress = ()

    @property
    def towers(self):
        return (self.model.image_encoder,)

    @property
    def readings(self):
        return {"head_norm": self.model.head.weight.norm().item()}

    def forward(self, batch, progress=0.0):
        self.progress = (*self.progress, progress)
        loss = self.loss(self.model(self.normalized(batch.image)), batch.label)
        return loss, loss


def test_an_objective_of_one_s_own_joins_by_its_loss(tmp_path, monkeypatch):
    monkeypatch.setitem(losses._values, "hinge", HingeSpec)
    made = []

    def objective(_, **given):
        made.append(HingeObjective(**given))
        return made[-1]

    build_objective.register(HingeSpec, objective)
    spec = training_spec(6, loss=HingeSpec(), peak=5e-3)
    batches = runs.Batches(make=class_batch, stop=6)
    train(spec, model=new_classifier(), batches=batches, output=tmp_path)
    assert made[0].progress == pytest.approx([step / 6 for step in range(6)])
    assert all(line["margin"] == line["loss"] and line["head_norm"] > 0 for line in logged(tmp_path))
    assert trained(tmp_path, spec, model=new_classifier(), make=class_batch, stop=0).num_steps == 0
