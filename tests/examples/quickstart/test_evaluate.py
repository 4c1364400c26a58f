"""The quickstart's evaluation against counting by hand, and the test sets that anyone can evaluate on again."""

from pathlib import Path

import attrs
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mobileclip
from examples.quickstart.benchmarks import as_benchmarks
from examples.quickstart.evaluate import evaluate_as_published, evaluate_model, evaluate_teachers
from examples.quickstart.spec import student
from mobileclip.data import ImageTransform, Tokenizer, decode_image
from mobileclip.encoders import save_model
from mobileclip.evaluation import EvaluationSpec, evaluate_models
from mobileclip.inference.image_text_model import ImageTextModel
from mobileclip.reinforce import ModelTeacher, TeacherEnsemble
from tests.examples.quickstart.drawings import SPEC as DRAWN

SPEC = student()
# Pictures as large as the model wants them: resizing, which teachers do in another way, changes nothing.
DATA = attrs.evolve(DRAWN, image_size=SPEC.image.input.size)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def dataset(build_drawn):
    return build_drawn(DATA)


@pytest.fixture(scope="module")
def benchmarks(dataset, tmp_path_factory):
    return as_benchmarks(dataset, tmp_path_factory.mktemp("written") / "benchmarks")


def new_model(dataset, seed):
    """A model that knows the drawings' statistics, and whose texts differ: random weights tell nothing apart."""
    torch.manual_seed(seed)
    model = SPEC.build()
    transform = ImageTransform(SPEC.image.input)
    with torch.no_grad():
        model.text_encoder.token_embedding.weight.mul_(20)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
        model.encode_image(torch.stack([transform(decode_image(one.image)) for one in dataset.train.samples()]))
    return model.eval()


@pytest.fixture(scope="module")
def path(dataset, tmp_path_factory):
    saved = tmp_path_factory.mktemp("model") / "student.safetensors"
    save_model(new_model(dataset, 0), saved)
    return saved


def counted(split, encode_image, encode_text):
    """Return scores in per cent (top-1, top-5, both recalls) and answers, picture by picture and text by text.

    A picture's class is right where its label is; of captions and pictures, those of one label belong together.
    """
    samples = list(split.samples())
    labels = [sample.metadata["label"] for sample in samples]
    images = torch.cat([encode_image(decode_image(sample.image)) for sample in samples])
    prompts = [[encode_text(text) for text in (name, f"an emoji of {name}")] for name in split.class_names]
    classes = torch.cat([F.normalize((one + other) / 2, dim=-1) for one, other in prompts])
    best = [[split.class_names[index] for index in row.argsort(descending=True)[:5]] for row in images @ classes.T]
    captions = {label: sample.captions for label, sample in zip(labels, samples, strict=True)}
    pairs = [(label, text) for label, group in captions.items() for text in group]
    scores = images @ torch.cat([encode_text(text) for _, text in pairs]).T
    scores_in_percent = {
        "top1": 100 * sum(row[0] == label for row, label in zip(best, labels, strict=True)) / len(labels),
        "top5": 100 * sum(label in row for row, label in zip(best, labels, strict=True)) / len(labels),
        "text_to_image": 100
        * sum(labels[int(column.argmax())] == label for column, (label, _) in zip(scores.T, pairs, strict=True))
        / len(pairs),
        "image_to_text": 100
        * sum(pairs[int(row.argmax())][0] == label for row, label in zip(scores, labels, strict=True))
        / len(labels),
    }
    answers = {sample.key: row for sample, row in zip(samples, best, strict=True)}
    top5 = {sample.key: label in answers[sample.key] for sample, label in zip(samples, labels, strict=True)}
    return scores_in_percent, {key: row[0] for key, row in answers.items()}, top5


def compare(found, split, encode_image, encode_text):
    scores, answers, top5 = counted(split, encode_image, encode_text)
    assert attrs.asdict(found.scores[split.name]) == pytest.approx(scores), split.name
    assert found.answers[split.name] == answers
    assert found.top5[split.name] == top5


def test_a_student_is_scored_as_counted_by_hand(dataset, benchmarks, path):
    clip = mobileclip.load(path)
    several = 0
    found = evaluate_model(clip, benchmarks, dataset.tests)
    for split in dataset.tests:
        compare(found, split, clip.encode_image, clip.encode_text)
        several += split.num_samples > len({sample.metadata["label"] for sample in split.samples()})
    # Among them are pictures of one concept, which share their captions.
    assert several


def test_teachers_are_scored_by_their_mean_similarity(dataset, benchmarks):
    models, tokenizer = [new_model(dataset, seed) for seed in (0, 1)], Tokenizer(SPEC.text.input)
    teachers = [ModelTeacher(name=str(seed), clip=ImageTextModel(model.eval())) for seed, model in enumerate(models)]
    transform = ImageTransform(SPEC.image.input)

    # Embeddings of length one each, and of length one together: their cosine is the mean of both.
    def encode_image(image):
        parts = [model.encode_image(transform(image)[None], normalize=True) for model in models]
        return torch.cat(parts, dim=-1) / 2**0.5

    def encode_text(text):
        parts = [model.encode_text(tokenizer([text]), normalize=True) for model in models]
        return torch.cat(parts, dim=-1) / 2**0.5

    found = evaluate_teachers(TeacherEnsemble(teachers), benchmarks, dataset.tests)
    for split in dataset.tests:
        with torch.inference_mode():
            compare(found, split, encode_image, encode_text)


def test_the_command_finds_the_same_numbers_in_the_same_folders(dataset, benchmarks, path, tmp_path):
    folder = next(iter(benchmarks.values())).shards[0].rpartition("/wds_")[0]
    spec = EvaluationSpec(datasets=tuple(f"{folder}/{name}" for name in benchmarks), output=tmp_path, device="cpu")
    run = evaluate_models([str(path)], spec)
    assert not run.failures
    found = {name: record.result.metrics for name, record in run.models[0].records.items()}
    clip = mobileclip.load(path)
    for name, metrics in evaluate_as_published(clip, benchmarks).items():
        assert found[name.removeprefix("wds_").removesuffix("_test")] == pytest.approx(metrics)
    for name, scores in evaluate_model(clip, benchmarks, dataset.tests).scores.items():
        metrics = found[f"emoji-{name}"]
        assert scores.top1 == pytest.approx(100 * metrics["acc1"])
        # The unseen concepts are fewer than five.
        assert scores.top5 == pytest.approx(100 * metrics.get("acc5", 1))
        # One picture of a concept: the layout's retrieval is the quickstart's.
        captions = found.get(f"emoji-{name}-captions")
        if name == "test_style":
            assert scores.text_to_image == pytest.approx(100 * captions["image_retrieval_recall@1"])
            assert scores.image_to_text == pytest.approx(100 * captions["text_retrieval_recall@1"])


def times(benchmarks):
    return {shard: Path(shard).stat().st_mtime_ns for one in benchmarks.values() for shard in one.shards}


def test_what_is_written_is_kept_and_what_is_lost_or_other_is_written_again(dataset, tmp_path):
    folder = tmp_path / "benchmarks"
    first = as_benchmarks(dataset, folder)
    assert set(first) == {path.name for path in folder.glob("wds_*")}
    written = times(first)
    assert as_benchmarks(dataset, folder) == first
    assert times(first) == written

    def again():
        assert as_benchmarks(dataset, folder) == first
        now = times(first)
        assert all(now[shard] > before for shard, before in written.items())
        written.update(now)

    shard = folder / "wds_emoji-test_style_test" / "test" / "0.tar"
    shard.unlink()
    again()
    (folder / "wds_emoji-test_style_test" / "test" / "nshards.txt").unlink()
    again()
    (folder / "written.json").write_text("{")
    again()
    (folder / "wds_emoji-of_before-captions_test").mkdir()
    fewer = attrs.evolve(dataset, splits={name: one for name, one in dataset.splits.items() if name != "test_style"})
    assert set(as_benchmarks(fewer, folder)) == {path.name for path in folder.glob("wds_*")} < set(first)


def test_a_picture_that_cannot_be_used_is_named(dataset, path, tmp_path):
    benchmarks = as_benchmarks(dataset, tmp_path / "benchmarks")
    shard = tmp_path / "benchmarks" / "wds_emoji-test_style_test" / "test" / "0.tar"
    content = bytearray(shard.read_bytes())
    start = content.index(b"\x89PNG")
    content[start + 8 : start + 100] = bytes(92)
    shard.write_bytes(content)
    with pytest.raises(ValueError, match=r"not all pictures of emoji-test_style can be used: .* 1 skipped.*; delete "):
        evaluate_model(mobileclip.load(path), benchmarks, dataset.tests)
