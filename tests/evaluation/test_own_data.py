"""`mobileclip eval MODEL my_classes/`: any data set, any form of a checkpoint, results with names of their own."""

import shutil

import attrs
import pytest
import torch

from mobileclip import evaluation, reparameterize
from mobileclip.datasets import RowOptions
from mobileclip.encoders import CheckpointError, save_model
from mobileclip.evaluation import EvaluationSpec, evaluate_models, evaluation_hook, open_candidate
from tests.build.commands import run
from tests.datasets.test_opening import FORMS, class_folder, lines, picture
from tests.encoders.small import SMALL, randomised
from tests.errors import fails, told
from tests.evaluation.models import ColourModel
from tests.evaluation.tasks.choices.data import write


@pytest.fixture
def colours():
    """A model that knows colours, and one that takes red for green."""
    sees, confused = ColourModel(), ColourModel()
    with torch.no_grad():
        confused.text_encoder.table[:2] = sees.text_encoder.table[[1, 0]]
    return evaluation.candidate_of(sees, name="sees"), evaluation.candidate_of(confused, name="confused")


def spec_of(tmp_path, data, **options):
    return EvaluationSpec(datasets=(str(data),), output=tmp_path / "out", device="cpu", **options)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_numbers(tmp_path, colours, form):
    made, _, kind = FORMS[form]
    spec = spec_of(tmp_path, made(tmp_path), batch_size=2)
    done, again = evaluate_models(colours, spec), evaluate_models(colours, spec)
    assert (done.failures, again.failures) == ((), ())
    sees, confused = (model.results["mine"] for model in done.models)
    assert sees.num_images == confused.num_images == 6
    if kind == "classes":
        assert (sees.metrics["acc1"], confused.metrics["acc1"]) == pytest.approx((1, 1 / 3))
    else:
        assert sees.metrics["mean_recall@1"] > confused.metrics["mean_recall@1"]
    assert [model.results for model in again.models] == [model.results for model in done.models]


def outside(root):
    """A list in a folder of its own, beside that of its pictures."""
    written = lines(root, labels=True).read_text(encoding="utf-8")
    write(root, {"list/mine.jsonl": written.replace("images/", "../images/")})
    return str(root / "list" / "mine.jsonl")


def test_a_list_that_is_trusted_names_pictures_elsewhere(tmp_path, colours):
    path = outside(tmp_path)
    spec = spec_of(tmp_path, path)
    with fails(ValueError, "6 refused_address", "(--no-inside)"):
        evaluate_models(colours[:1], spec)
    trusted = attrs.evolve(spec, rows=RowOptions(inside=False))
    assert evaluate_models(colours[:1], trusted).models[0].results["mine"].main_metric == 1
    with fails(ValueError, "6 refused_address"):
        evaluation_hook([path])
    assert callable(evaluation_hook([path], rows=RowOptions(inside=False)))


def test_a_picture_in_another_class_is_another_result(tmp_path, colours):
    folder = class_folder(tmp_path)
    (before,) = evaluate_models(colours[:1], spec_of(tmp_path, folder)).models
    shutil.move(folder / "red" / "red0.png", folder / "green")
    (after,) = evaluate_models(colours[:1], spec_of(tmp_path, folder)).models
    assert [model.results["mine"].main_metric for model in (before, after)] == pytest.approx([1, 5 / 6])


def test_names_of_data_sets_and_of_what_is_measured_in_training(tmp_path):
    folder = class_folder(tmp_path)
    metrics = evaluation_hook([folder])(randomised(SMALL), 1)
    assert set(metrics) == {"mine/acc1", "mine/mean_per_class_recall", "mine/num_skipped"}
    assert evaluation.open_benchmark(folder.rename(tmp_path / "imagenet1k")).name == "imagenet1k (own)"
    write(tmp_path, {"mine/red/a.png": picture("red")})
    with fails(ValueError, "red"):  # one class leaves nothing to choose
        evaluation.open_benchmark(tmp_path / "mine")


def test_a_folder_beside_models_is_what_they_are_evaluated_on(tmp_path, small_file, capsys):
    folded = tmp_path / "folded.safetensors"
    save_model(reparameterize(randomised(SMALL)), folded)
    options = ("--compare-published", "mobileclip_s1", "--output", tmp_path / "out", "--device", "cpu")
    status, out, err = run(capsys, "eval", f"whole={small_file}", folded, f"{class_folder(tmp_path)}/", *options)
    assert (status, "not evaluated" in err, "whole" in out) == (0, False, True)
    one, other = (evaluation.read_results(path)["mine"] for path in tmp_path.glob("out/*/results.jsonl"))
    assert one.metrics == pytest.approx(other.metrics)
    said = [line for line in (out + err).splitlines() if "mobileclip_s1" in line and "mine" in line]
    assert len(said) == 1, "nothing is published of own data"


TORN = "a/model.safetensors"


REFUSED = [
    ((TORN, "b/model.safetensors", "mine"), "'model'"),
    ((TORN, TORN, "mine"), TORN),
    ((TORN, "lost/"), "lost/"),
    ((TORN, "--datasets", "vtab/pest"), "'vtab/pets'"),
    (("lost.pt", "mine"), "lost.pt"),
    (("mobileclip_s9", "mine"), "'mobileclip_s9'"),
    (("mobileclip_s3=lost.pt", "mine"), "lost.pt"),
    (("=lost.pt", "mine"), "LABEL=FILE"),
    (("label=", "mine"), "LABEL=FILE"),
    ((TORN, "empty"), "empty"),
    ((TORN, "mine", "--device", "warp"), "'warp'"),
    ((TORN, "mine", "--output", TORN), TORN),
    ((TORN, "mine", "--compare-published", "mobileclip_s9"), "mobileclip_s9"),
    ((TORN, "mine", "mine"), "mine"),
    ((), ""),
    (("open_clip:ViT-B-33/openai", "mine"), "'ViT-B-32"),
    (("open_clip:ViT-B-32/nobody", "mine"), "openai"),
    (("open_clip:ViT-B-32=lost.pt", "mine"), "lost.pt"),
]


@pytest.mark.parametrize(("arguments", "word"), REFUSED)
def test_what_cannot_be_had_is_said_before_the_work(capsys, tmp_path, monkeypatch, arguments, word):
    """Beside data, there are two checkpoints of one name, neither of which can be read."""
    monkeypatch.chdir(tmp_path)
    class_folder(tmp_path)
    (tmp_path / "empty").mkdir()
    write(tmp_path, dict.fromkeys((TORN, "b/model.safetensors"), b"torn"))
    status, out, err = run(capsys, "eval", "run", *arguments)
    assert (status, out) == (2, "")
    told(err, word)
    assert not (tmp_path / "outputs").exists()


NAMED = [
    ("mobileclip_s2", "mobileclip_s2"),
    ("runs/model.pt", "model"),
    ("lr=1/model.pt", "model"),
    ("runs/lr=2/model.pt", "model"),
    ("mobileclip_s2=runs/model.pt", "model"),
    ("mine=mobileclip_s2=runs/model.pt", "mine"),
    ("mine=open_clip:ViT-B-32=a.pt", "mine"),
    ("open_clip:ViT-B-32=a.pt", "open_clip:ViT-B-32=a"),
    ("hf-hub:a/b", "hf-hub:a/b"),
]


@pytest.mark.parametrize(("text", "name"), NAMED)
def test_labels_and_names_of_models(tmp_path, monkeypatch, text, name):
    """Two of one name are refused by it, before anything is read."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path, dict.fromkeys(("a.pt", "runs/model.pt", "lr=1/model.pt", "runs/lr=2/model.pt"), b""))
    with fails(ValueError, f"'{name}'"):
        evaluate_models([text, text], EvaluationSpec())


def test_a_name_in_front_of_a_file_says_what_it_holds_and_published_models_have_two(small_file):
    for label in ("", "mine="):
        with fails(CheckpointError, small_file.name):
            open_candidate(f"{label}mobileclip_s2={small_file}")
    with fails(FileNotFoundError, "lost/"):
        evaluate_models(["mobileclip_s0", "mobileclip_s1", "hf-hub:a/b"], EvaluationSpec(datasets=("lost/",)))
