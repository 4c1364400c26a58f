"""A linear probe on any data set of classes: with a part to fit to, and without."""

import pytest

from mobileclip.evaluation import EvaluationSpec, TaskOptions, candidate_of, evaluate_models, find_task
from mobileclip.evaluation.tasks.probe import split_folders
from tests.encoders.small import SMALL, randomised
from tests.errors import fails
from tests.evaluation.models import COLOURS, ColourModel, NameTower, session_of, tokenize
from tests.evaluation.tasks.choices.data import write
from tests.evaluation.tasks.test_evaluate import encoded

NUM_EACH = 12


def write_classes(folder, *, seed=0, names=("red", "green", "blue")):
    """A folder of pictures for each colour; every fourth is of no colour at all."""
    for place, name in enumerate(names):
        colours = [(0.5, 0.5, 0.5) if number % 4 == 0 else COLOURS[name] for number in range(NUM_EACH)]
        seeds = range(1000 * seed + 100 * place, 1000 * seed + 100 * place + NUM_EACH)
        images = [encoded(colour, noise=20, seed=one) for colour, one in zip(colours, seeds, strict=True)]
        write(folder / name, {f"{seed}-{number:02d}.png": image for number, image in enumerate(images)})
    return folder


def evaluated(name, **options):
    """Evaluate a model to which all texts are alike."""
    deaf = NameTower(lambda texts: tokenize(["red"] * len(texts)))
    return find_task(name).open(TaskOptions()).evaluate(session_of(ColourModel(text=deaf), **options))


def test_fitted_to_one_folder_and_tested_on_another(tmp_path):
    root = tmp_path / "colours"
    for seed, part in enumerate(("train", "val"), 1):
        write_classes(root / part, seed=seed)
    assert split_folders(str(root)) == (str(root / "train"), str(root / "val"))
    found = evaluated(f"probe:{root}")
    assert (found.key, found.dataset, found.num_images) == ("probe/colours", "colours, linear probe", 3 * NUM_EACH)
    # Three in four have a colour, and of grey ones a third is right by chance.
    assert 0.74 < found.metrics["acc1"] < 1
    assert float(found.outcomes.values.mean()) == pytest.approx(found.main_metric)
    assert evaluated(str(root / "val")).metrics["acc1"] == pytest.approx(1 / 3), "zero-shot"


def test_without_a_part_to_fit_to_no_image_is_fitted_to_itself(tmp_path):
    root = write_classes(tmp_path / "colours")
    assert split_folders(str(root)) is None
    first, again = evaluated(f"probe:{root}"), evaluated(f"probe:{root}", batch_size=3)
    assert first.num_images == 3 * NUM_EACH
    assert 0.74 < first.metrics["acc1"] < 1
    assert again.metrics == pytest.approx(first.metrics)
    # Labels that say nothing are not found again, as they would be where an image is fitted to itself.
    mixed = tmp_path / "mixed"
    for place, path in enumerate(sorted(root.rglob("*.png"))):
        write(mixed, {f"{'ab'[place % 2]}/{path.parent.name}-{path.name}": path.read_bytes()})
    assert evaluated(f"probe:{mixed}").metrics["acc1"] < 0.75


def test_a_run_keeps_it_and_goes_on(tmp_path):
    root = write_classes(tmp_path / "colours")
    spec = EvaluationSpec(datasets=(f"probe:{root}", str(root)), output=tmp_path / "out", batch_size=8)
    candidate = candidate_of(randomised(SMALL), name="small")
    run = evaluate_models([candidate], spec)
    records = run.models[0].results
    assert (run.failures, list(records)) == ((), ["probe/colours", "colours"])
    probe = records["probe/colours"]
    assert probe.interval.low < probe.main_metric
    assert evaluate_models([candidate], spec).models[0].results == records
    write(root, {"red/new.png": encoded((0, 0, 0), size=(8, 8))})
    assert evaluate_models([candidate], spec).models[0].results["probe/colours"] != probe


def test_what_has_no_classes_is_refused(tmp_path):
    write(tmp_path / "captions", {"a.png": encoded(COLOURS["red"]), "a.txt": "a red thing"})
    with fails(ValueError):
        find_task(f"probe:{tmp_path / 'captions'}").open(TaskOptions())
    (tmp_path / "winogavil").mkdir()
    with fails(ValueError, "WinoGAViL"):
        find_task("probe:misc/winogavil", str(tmp_path))
    root = tmp_path / "colours"
    write_classes(root / "train")
    write_classes(root / "test", names=("red", "blue"))
    with fails(ValueError, "green", "train", "test"):
        find_task(f"probe:{root}").open(TaskOptions())
