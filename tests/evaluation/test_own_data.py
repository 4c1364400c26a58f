"""`mobileclip eval MODEL my_classes/`: any data set, any form of a checkpoint, results with names of their own."""

import shutil

import attrs
import pytest
import torch

from mobileclip import reparameterize
from mobileclip.datasets import RowOptions
from mobileclip.encoders import CheckpointError, save_model
from mobileclip.evaluation import (
    Candidate,
    EvaluationSpec,
    evaluate_models,
    evaluation_hook,
    open_benchmark,
    open_candidate,
    read_results,
)
from mobileclip.inference.image_text_model import ImageTextModel
from tests.build.commands import run
from tests.datasets.test_opening import FORMS, class_folder, lines, picture
from tests.encoders.small import SMALL, randomised
from tests.errors import fails, told
from tests.evaluation.models import ColourModel


def pixels(image):
    return torch.tensor(list(image.resize((4, 4)).tobytes())).view(4, 4, 3).movedim(2, 0) / 255


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with data, and with two checkpoints of one name, neither of which can be read."""
    monkeypatch.chdir(tmp_path)
    class_folder(tmp_path)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"torn")
    (tmp_path / "empty").mkdir()
    return tmp_path


@pytest.fixture
def colours():
    """A model that knows colours, and one that takes red for green."""

    def candidate(name, model):
        return Candidate(
            name=name,
            clip=ImageTextModel(model.eval()),
            weights_sha256=("a" if name == "sees" else "b") * 64,
            num_parameters=12,
        )

    confused = ColourModel()
    with torch.no_grad():
        table = confused.text_encoder.table
        table[:2] = table[[1, 0]].clone()
    return candidate("sees", ColourModel()), candidate("confused", confused)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_numbers(tmp_path, colours, form):
    path = FORMS[form][0](tmp_path)
    spec = EvaluationSpec(datasets=(str(path),), output=tmp_path / "out", device="cpu", batch_size=2)
    done = evaluate_models(colours, spec)
    assert done.failures == ()
    sees, confused = (model.results["mine"] for model in done.models)
    assert sees.num_images == confused.num_images == 6
    if FORMS[form][2] == "classes":
        assert sees.metrics["acc1"] == 1
        assert confused.metrics["acc1"] == pytest.approx(1 / 3)
    else:
        assert sees.metrics["mean_recall@1"] > confused.metrics["mean_recall@1"]
    again = evaluate_models(colours, spec)
    assert [model.results for model in again.models] == [model.results for model in done.models]


def outside(root):
    """A list in a folder of its own, beside that of its pictures."""
    (root / "list").mkdir()
    written = lines(root, labels=True).read_text(encoding="utf-8")
    (root / "list" / "mine.jsonl").write_text(written.replace("images/", "../images/"), encoding="utf-8")
    return str(root / "list" / "mine.jsonl")


def test_a_list_that_is_trusted_names_pictures_elsewhere(tmp_path, colours):
    path = outside(tmp_path)
    spec = EvaluationSpec(datasets=(path,), output=tmp_path / "out", device="cpu")
    with fails(ValueError, "6 refused_address", "(--no-inside)"):
        evaluate_models(colours[:1], spec)
    trusted = attrs.evolve(spec, rows=RowOptions(inside=False))
    assert evaluate_models(colours[:1], trusted).models[0].results["mine"].main_metric == 1
    with fails(ValueError, "6 refused_address"):
        evaluation_hook([path])
    assert callable(evaluation_hook([path], rows=RowOptions(inside=False)))


def test_a_picture_in_another_class_is_another_result(tmp_path, colours):
    folder = class_folder(tmp_path)
    spec = EvaluationSpec(datasets=(str(folder),), output=tmp_path / "out", device="cpu")
    assert evaluate_models(colours[:1], spec).models[0].results["mine"].main_metric == 1
    shutil.move(folder / "red" / "red0.png", folder / "green" / "red0.png")
    assert evaluate_models(colours[:1], spec).models[0].results["mine"].main_metric == pytest.approx(5 / 6)


def test_one_class_leaves_nothing_to_choose(tmp_path):
    (tmp_path / "mine" / "red").mkdir(parents=True)
    (tmp_path / "mine" / "red" / "a.png").write_bytes(picture("red"))
    with fails(ValueError, "red"):
        open_benchmark(tmp_path / "mine")


def test_what_is_called_like_one_of_the_suite_is_not_taken_for_it(tmp_path):
    folder = class_folder(tmp_path).rename(tmp_path / "imagenet1k")
    assert open_benchmark(folder).name == "imagenet1k (own)"


def test_training_measures_on_any_of_them(tmp_path):
    evaluate = evaluation_hook([class_folder(tmp_path)])
    metrics = evaluate(randomised(SMALL), 1)
    assert set(metrics) == {"mine/acc1", "mine/mean_per_class_recall", "mine/num_skipped"}


def test_a_folder_beside_a_model_is_what_it_is_evaluated_on(tmp_path, small_file, capsys):
    folder = class_folder(tmp_path)
    folded = tmp_path / "folded.safetensors"
    save_model(reparameterize(randomised(SMALL)), folded)
    status, out, err = run(
        capsys, "eval", f"whole={small_file}", folded, f"{folder}/", "--output", tmp_path / "out", "--device", "cpu"
    )
    assert (status, "not evaluated" in err) == (0, False)
    assert "whole" in out
    results = {path.parent.name[:-9]: read_results(path)["mine"] for path in tmp_path.glob("out/*/results.jsonl")}
    assert results["whole"].metrics == pytest.approx(results["folded"].metrics)


def test_of_own_data_it_says_that_nothing_is_published(tmp_path, small_file, capsys):
    options = ("--compare-published", "mobileclip_s1", "--output", tmp_path / "out", "--device", "cpu")
    status, out, err = run(capsys, "eval", f"own={small_file}", f"{class_folder(tmp_path)}/", *options)
    assert status == 0
    (said,) = [line for line in (out + err).splitlines() if "mobileclip_s1" in line and "mine" in line]
    assert "mobileclip_s1" in said
    assert "mine" in said


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("a/model.safetensors", "b/model.safetensors", "mine"), "'model'"),
        (("a/model.safetensors", "a/model.safetensors", "mine"), "a/model.safetensors"),
        (("a/model.safetensors", "lost/"), "lost/"),
        (("a/model.safetensors", "--datasets", "vtab/pest"), "'vtab/pets'"),
        (("lost.pt", "mine"), "lost.pt"),
        (("mobileclip_s9", "mine"), "'mobileclip_s9'"),
        (("mobileclip_s3=lost.pt", "mine"), "lost.pt"),
        (("=lost.pt", "mine"), "LABEL=FILE"),
        (("label=", "mine"), "LABEL=FILE"),
        (("a/model.safetensors", "empty"), "empty"),
        (("a/model.safetensors", "mine", "--device", "warp"), "'warp'"),
        (("a/model.safetensors", "mine", "--output", "a/model.safetensors"), "a/model.safetensors"),
        (("a/model.safetensors", "mine", "--compare-published", "mobileclip_s9"), "mobileclip_s9"),
        (("a/model.safetensors", "mine", "mine"), "mine"),
        ((), ""),
        (("open_clip:ViT-B-33/openai", "mine"), "'ViT-B-32"),
        (("open_clip:ViT-B-32/nobody", "mine"), "openai"),
        (("open_clip:ViT-B-32=lost.pt", "mine"), "lost.pt"),
    ],
)
def test_what_cannot_be_had_is_said_before_the_work(capsys, place, arguments, word):
    status, out, err = run(capsys, "eval", "run", *arguments)
    assert (status, out) == (2, "")
    told(err, word)
    assert not (place / "outputs").exists()


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("mobileclip_s2", "mobileclip_s2"),
        ("runs/model.pt", "model"),
        ("lr=1/model.pt", "model"),
        ("runs/lr=2/model.pt", "model"),
        ("mobileclip_s2=runs/model.pt", "model"),
        ("mine=mobileclip_s2=runs/model.pt", "mine"),
        ("mine=open_clip:ViT-B-32=a.pt", "mine"),
        ("open_clip:ViT-B-32=a.pt", "open_clip:ViT-B-32=a"),
        ("hf-hub:a/b", "hf-hub:a/b"),
    ],
)
def test_labels_and_names_of_models(tmp_path, monkeypatch, text, name):
    """Two of one name are refused by it, before anything is read."""
    monkeypatch.chdir(tmp_path)
    for path in ("a.pt", "runs/model.pt", "lr=1/model.pt", "runs/lr=2/model.pt"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    with fails(ValueError, f"'{name}'"):
        evaluate_models([text, text], EvaluationSpec())


@pytest.mark.parametrize("label", ["", "mine="])
def test_the_name_in_front_of_a_file_says_what_it_holds(small_file, label):
    with fails(CheckpointError, small_file.name):
        open_candidate(f"{label}mobileclip_s2={small_file}")


def test_two_published_models_have_two_names():
    with fails(FileNotFoundError, "lost/"):
        evaluate_models(["mobileclip_s0", "mobileclip_s1", "hf-hub:a/b"], EvaluationSpec(datasets=("lost/",)))
