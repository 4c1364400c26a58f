"""Classifiers through the loop that image-text models train by: what is minimised, resumed to the bit, whole runs."""

from __future__ import annotations

import attrs
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from mobileclip.data import MixingSpec, RandomErasingSpec, RangeAugmentSpec
from mobileclip.datasets import LabelledPipelineSpec
from mobileclip.encoders import Classifier, DualEncoderSpec, load_model, save_model
from mobileclip.evaluation import classifier_hook, evaluate_classifier
from mobileclip.inputs import ImageInput
from mobileclip.losses import ContrastiveLossSpec, LossSpec, losses
from mobileclip.training import (
    ClassificationObjective,
    CrossEntropySpec,
    Memory,
    Objective,
    RunSpec,
    TrainingSpec,
    World,
    build_objective,
    read_metrics,
    run,
    train,
)
from tests.errors import fails
from tests.training import runs
from tests.training.class_runs import IMAGE, LOSS, MODEL, TRANSFORMER, class_batch, new_classifier, training_spec
from tests.training.runs import Batches, assert_resumes_to_the_bit, image_of


def objective_of(spec: TrainingSpec, model) -> ClassificationObjective:
    return build_objective(spec.loss, spec=spec, model=model, world=World())


class TestLoss:
    @pytest.mark.parametrize("mixing", [None, MixingSpec()], ids=["", "mixed"])
    def test_smoothed_targets_by_hand_are_those_of_the_mixed_images(self, mixing):
        model = new_classifier(TRANSFORMER)
        torch.manual_seed(7)
        spec = training_spec(loss=attrs.evolve(LOSS, mixing=mixing))
        (loss,) = objective_of(spec, model)(class_batch(0))
        torch.manual_seed(7)
        batch = class_batch(0)
        image, targets = image_of(batch), F.one_hot(batch.label, 8).float()
        if mixing is not None:
            image, targets = mixing.mix(image, targets)
        expected = -((0.9 * targets + 0.1 / 8) * model(image).log_softmax(dim=1)).sum(dim=1).mean()
        torch.testing.assert_close(loss, expected)
        assert torch.equal(image, image_of(batch)) == (mixing is None)

    @pytest.mark.parametrize(
        "mixing", [None, MixingSpec(cutmix_alpha=0.0), MixingSpec(mixup_alpha=0.0)], ids=["", "mixup", "cutmix"]
    )
    @pytest.mark.parametrize("range_augment", [None, RangeAugmentSpec()], ids=["", "augmented"])
    def test_pieces_make_no_difference(self, mixing, range_augment):
        def gradients(**changes):
            spec = training_spec(loss=CrossEntropySpec(mixing=mixing), range_augment=range_augment, **changes)
            objective = objective_of(spec, new_classifier(TRANSFORMER)).double()
            batch = class_batch(0)
            torch.manual_seed(5)
            objective(attrs.evolve(batch, image=image_of(batch).double()))[-1].backward()
            return {name: parameter.grad for name, parameter in objective.named_parameters()}

        torch.testing.assert_close(gradients(memory=Memory(micro_batch=3)), gradients(), rtol=1e-9, atol=1e-12)

    @pytest.mark.slow
    @pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
    def test_mixtures_are_not_compiled_anew(self):
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

    def test_what_does_not_go_together_is_refused(self):
        dual = DualEncoderSpec(image=IMAGE, text=runs.MODEL.text).build()
        with fails(ValueError, "label_smoothing"):
            CrossEntropySpec(label_smoothing=1.0)
        with fails(ValueError, "DualEncoder"):
            objective_of(training_spec(), dual)
        with fails(ValueError):
            objective_of(training_spec(loss=ContrastiveLossSpec()), new_classifier())
        with fails(ValueError, "ReinforcedBatch"):
            objective_of(training_spec(), new_classifier())(runs.batch_of(0))
        with fails(ValueError, "LabelledBatch"):
            objective_of(runs.training_spec(), runs.new_model())(class_batch(0))


class TestLoop:
    def test_it_learns(self, tmp_path):
        spec = training_spec(40, peak=5e-3, ema_decay=0.8)
        result = train(spec, model=new_classifier(), batches=Batches(make=class_batch), output=tmp_path)
        lines = read_metrics(tmp_path / "metrics.jsonl")
        assert lines[0].keys() == {"step", "loss", "gradient_norm", "learning_rate", "seconds", "seconds_waiting"}
        batch = class_batch(1000, size=64)
        assert isinstance(result.model, Classifier)
        assert (result.model(image_of(batch)).argmax(dim=1) == batch.label).float().mean() > 0.6

    @pytest.mark.parametrize(
        "changes",
        [
            pytest.param({}, id="plain"),
            pytest.param(
                {"range_augment": RangeAugmentSpec(), "memory": Memory(micro_batch=4, recompute=True)},
                id="more",
                marks=pytest.mark.slow,
            ),
        ],
    )
    def test_a_killed_run_resumes_to_the_bit(self, tmp_path, changes):
        """Mixing, drop path and RangeAugment draw from the random numbers that checkpoints hold."""
        assert_resumes_to_the_bit(training_spec(8, **changes), new_classifier, tmp_path, class_batch)


NAMES = ("green", "red")
RUN_MODEL = attrs.evolve(
    MODEL, image=attrs.evolve(MODEL.image, input=ImageInput(size=32)), num_classes=2, class_names=NAMES
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images of two classes, one green and one red."""
    from PIL import Image

    root = tmp_path_factory.mktemp("classes")
    for split, count in (("train", 12), ("val", 6)):
        for number in range(2 * count):
            colour = (30, 200, 40) if number % 2 == 0 else (200, 40, 30)
            shade = tuple(min(255, value + 2 * number) for value in colour)
            place = root / split / NAMES[number % 2] / f"{number}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 36), shade).save(place)
    (root / "train" / "red" / "broken.png").write_bytes(b"no image")
    return root


def run_spec(folder, **changes) -> RunSpec:
    spec = RunSpec(
        model=RUN_MODEL,
        data=LabelledPipelineSpec(
            shards=str(folder / "train"),
            batch_size=6,
            image=RUN_MODEL.image.input,
            num_classes=2,
            class_names=NAMES,
            erasing=RandomErasingSpec(),
        ),
        training=training_spec(10, checkpoint_every_steps=4),
    )
    return attrs.evolve(spec, **changes)


class TestRun:
    def test_it_refuses_what_does_not_fit(self, folder):
        spec = run_spec(folder)
        with fails(ValueError, "data", "3", "model", "2"):
            run_spec(folder, data=attrs.evolve(spec.data, num_classes=3, class_names=()))
        with fails(ValueError, "class_names"):
            run_spec(folder, data=attrs.evolve(spec.data, class_names=("red", "green")))
        with fails(ValueError, "image"):
            run_spec(folder, data=attrs.evolve(spec.data, image=ImageInput(size=64)))
        with fails(ValueError, "ReinforcedLossSpec"):
            run_spec(folder, training=attrs.evolve(spec.training, loss=ContrastiveLossSpec()))

    def test_from_a_dual_encoder_to_a_classifier_and_its_backbone(self, folder, tmp_path):
        """A run that is interrupted leaves, once resumed, the file of one that is not, to the bit."""
        torch.manual_seed(3)
        dual = DualEncoderSpec(image=attrs.evolve(IMAGE, input=ImageInput(size=32)), text=runs.MODEL.text).build()
        save_model(dual.eval(), tmp_path / "dual.safetensors")
        spec = run_spec(folder, initial_weights=tmp_path / "dual.safetensors")
        evaluate = classifier_hook([str(folder / "val")])
        path = run(spec, tmp_path / "whole", evaluate=lambda _: evaluate, device="cpu")
        run(spec, tmp_path / "parts", device="cpu")
        for checkpoint in sorted((tmp_path / "parts" / "checkpoints").iterdir())[1:]:
            checkpoint.unlink()
        again = run(spec, tmp_path / "parts", device="cpu")
        expected, found = load_file(path), load_file(again)
        assert expected.keys() == found.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)

        classifier = load_model(path)
        assert isinstance(classifier, Classifier)
        assert classifier.spec == RUN_MODEL
        (line,) = (line for line in read_metrics(tmp_path / "whole" / "metrics.jsonl") if "val/acc1" in line)
        assert line["step"] == 9
        assert line["val/num_skipped"] == 0
        assert "val/acc5" not in line
        evaluated = evaluate_classifier(classifier, folder / "val")
        assert line["val/acc1"] == evaluated.result.top1
        tower = load_model(path, tower="image")
        torch.testing.assert_close(tower(torch.ones(1, 3, 32, 32)), classifier.image_encoder(torch.ones(1, 3, 32, 32)))


@attrs.frozen(kw_only=True)
class HingeSpec(LossSpec):
    """A loss of this file's own."""

    needs_teachers = False

    def build(self, *, process_group=None):
        del process_group
        return torch.nn.MultiMarginLoss()


class HingeObjective(Objective):
    """Labels as they are, and a log of the head's size."""

    @property
    def towers(self):
        return (self.model.image_encoder,)

    @property
    def term_names(self):
        return ("margin",)

    @property
    def readings(self):
        return {"head_norm": self.model.head.weight.norm().item()}

    def forward(self, batch, progress=0.0):
        self.progress = [*getattr(self, "progress", []), progress]
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
    train(spec, model=new_classifier(), batches=Batches(make=class_batch, stop=6), output=tmp_path)
    assert made[0].progress == pytest.approx([step / 6 for step in range(6)])
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert all(line["margin"] == line["loss"] and line["head_norm"] > 0 for line in lines)
    resumed = train(spec, model=new_classifier(), batches=Batches(make=class_batch, stop=0), output=tmp_path)
    assert resumed.num_steps == 0
