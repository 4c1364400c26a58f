"""Text towers that are distilled from texts alone, by the one loop."""

import attrs
import pytest
import torch
from torch.nn import functional as F

from mobileclip.data import StreamPosition, TextPipelineSpec, Tokenizer
from mobileclip.datasets.sources import TextPair
from mobileclip.encoders import TextEncoder, TextTransformerSpec, load_model
from mobileclip.inputs import TextInput
from mobileclip.losses import ContrastiveLossSpec, TextDistillationLossSpec
from mobileclip.reinforce import reinforce_texts
from mobileclip.tensor_files import weights_sha256
from mobileclip.training import Memory, RunSpec, run
from tests.encoders.small import SMALL, TEXT
from tests.errors import fails
from tests.training.runs import assert_killed_goes_on, logged, training_spec

WORDS = "red green blue old new big small round sharp soft".split()
THINGS = "arrow heart star house tree".split()
GERMAN = dict(zip(THINGS, "pfeil herz stern haus baum".split(), strict=True))
STUDENT = TextTransformerSpec(
    width=32, num_heads=2, depth=0, embedding_dim=24, pool="mean", input=TextInput(context_length=8, vocab_size=600)
)


class Teacher:
    """A small text tower that tells words apart."""

    name, dim = "small", TEXT.embedding_dim

    def __init__(self):
        torch.manual_seed(0)
        self.model, self.tokenizer = attrs.evolve(TEXT, depth=0, pool="mean").build().eval(), Tokenizer(TEXT.input)
        torch.nn.init.normal_(self.model.token_embedding.weight)
        self.weights_sha256 = weights_sha256(self.model.state_dict())

    @torch.inference_mode()
    def encode_texts(self, texts):
        return self.model(self.tokenizer(texts))


def pairs():
    for word in WORDS:
        for thing in THINGS:
            yield TextPair(text=f"{word} {thing}", teacher_text=f"{word} {thing}", language="en")
            yield TextPair(text=f"{word} {GERMAN[thing]}", teacher_text=f"{word} {thing}", language="de")


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts") / "stored"
    reinforce_texts(pairs(), Teacher(), folder, texts_per_part=30)
    return folder


def spec_of(texts, steps=8, **changes):
    data = TextPipelineSpec(texts=texts, batch_size=16, text=STUDENT.input)
    own = {"loss": TextDistillationLossSpec(relation_weight=1.0)}
    return RunSpec(model=STUDENT, data=data, training=training_spec(steps, peak=1e-2, **(own | changes)))


@pytest.fixture(scope="module")
def trained(texts, tmp_path_factory):
    output = tmp_path_factory.mktemp("run") / "out"
    return output, run(spec_of(texts, steps=150, checkpoint_every_steps=50), output)


def test_a_tower_comes_near_its_teacher_in_two_languages(texts, trained):
    output, model = trained
    assert {"cosine", "relations", "loss", "learning_rate"} <= logged(output)[-1].keys()
    student, teacher = load_model(model, fold=False), Teacher()
    assert isinstance(student, TextEncoder)
    assert student.spec == load_model(max((output / "checkpoints").iterdir()), fold=False).spec == STUDENT
    for language in ("en", "de"):
        told = [pair for pair in pairs() if pair.language == language]
        with torch.inference_mode():
            ours = F.normalize(student(Tokenizer(STUDENT.input)([pair.text for pair in told])), dim=1)
        theirs = F.normalize(teacher.encode_texts([pair.teacher_text for pair in told]), dim=1)
        right = ((ours @ theirs.T).argmax(dim=1) == torch.arange(len(told))).float().mean()
        assert right > 0.9, right


def test_a_killed_run_resumes_to_the_bit(texts, tmp_path):
    assert_killed_goes_on(spec_of(texts), tmp_path)


def test_a_run_starts_from_a_tower(texts, trained, tmp_path):
    output, model = trained
    run(attrs.evolve(spec_of(texts, steps=3), initial_weights=model), tmp_path)
    assert logged(tmp_path)[0]["cosine"] < 0.3 * logged(output)[0]["cosine"]


def test_other_texts_are_no_place_to_go_on(texts, tmp_path):
    reinforce_texts(list(pairs())[:40], Teacher(), tmp_path / "fewer")
    position = spec_of(texts).data.build().position(3)
    assert position == StreamPosition(first_batch=3, data=position.data)
    with fails(ValueError):
        next(spec_of(tmp_path / "fewer").data.build().stream(position))


IMAGES = attrs.evolve(SMALL, text=attrs.evolve(TEXT, input=STUDENT.input))


OF_IMAGES = {
    "memory": ({"channels_last": True}, STUDENT),
    "loss": ({"loss": ContrastiveLossSpec()}, STUDENT),
    "model": ({}, IMAGES),
}


@pytest.mark.parametrize(("training", "model"), OF_IMAGES.values(), ids=OF_IMAGES)
def test_what_is_of_images_is_refused(texts, tmp_path, training, model):
    with fails(ValueError):
        run(attrs.evolve(spec_of(texts, **training), model=model), tmp_path / "out")


def test_a_batch_in_pieces_has_the_same_gradient(texts, tmp_path):
    for size in (None, 5):
        run(spec_of(texts, steps=3, memory=Memory(micro_batch=size)), tmp_path / str(size))
    whole, pieces = (logged(tmp_path / name)[0] for name in ("None", "5"))
    assert pieces["loss"] == pytest.approx(whole["loss"], rel=1e-5)
    assert pieces["gradient_norm"] == pytest.approx(whole["gradient_norm"], rel=1e-4)
