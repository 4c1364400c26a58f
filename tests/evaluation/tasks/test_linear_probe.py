"""A linear probe on any data set of classes: with a part to fit to, and without."""

import shutil

import pytest
import torch
from PIL import Image

from mobileclip.evaluation import EvaluationSpec, TaskOptions, evaluate_models, find_task
from mobileclip.evaluation.tasks.probe import split_folders
from tests.encoders.small import SMALL, randomised
from tests.errors import fails
from tests.evaluation.models import COLOURS, ColourModel, NameTower, session_of
from tests.evaluation.tasks.test_evaluate import encoded

NUM_EACH = 12


class Deaf(NameTower):
    """Hears every text alike."""

    def forward(self, tokens):
        return torch.ones(len(tokens), 3)


def write_classes(folder, *, seed=0, names=("red", "green", "blue")):
    """A folder of pictures for each colour; every fourth is of no colour at all."""
    for place, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for number in range(NUM_EACH):
            colour = (0.5, 0.5, 0.5) if number % 4 == 0 else COLOURS[name]
            picture = encoded(colour, noise=20, seed=1000 * seed + 100 * place + number)
            (folder / name / f"{seed}-{number:02d}.png").write_bytes(picture)
    return folder


def evaluated(name, **options):
    session = session_of(ColourModel(text=Deaf()), **options)
    return find_task(name).open(TaskOptions()).evaluate(session)


def test_fitted_to_one_folder_and_tested_on_another(tmp_path):
    root = tmp_path / "colours"
    write_classes(root / "train", seed=1)
    write_classes(root / "val", seed=2)
    assert split_folders(str(root)) == (str(root / "train"), str(root / "val"))
    evaluation = evaluated(f"probe:{root}")
    result = evaluation
    assert (result.key, result.dataset, result.num_images) == ("probe/colours", "colours, linear probe", 3 * NUM_EACH)
    # Three in four have a colour, and of grey ones a third is right by chance.
    assert 0.74 < result.metrics["acc1"] < 1
    assert float(evaluation.outcomes.values.mean()) == pytest.approx(result.main_metric)
    zero_shot = find_task(str(root / "val")).open(TaskOptions())
    session = session_of(ColourModel(text=Deaf()))
    assert zero_shot.evaluate(session).metrics["acc1"] == pytest.approx(1 / 3)


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
        target = mixed / ("a", "b")[place % 2]
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target / f"{path.parent.name}-{path.name}")
    assert evaluated(f"probe:{mixed}").metrics["acc1"] < 0.75


def test_a_run_keeps_it_and_goes_on(tmp_path):
    from mobileclip.evaluation import candidate_of

    root = write_classes(tmp_path / "colours")
    candidate = candidate_of(randomised(SMALL), name="small")
    spec = EvaluationSpec(datasets=(f"probe:{root}", str(root)), output=tmp_path / "out", batch_size=8)
    run = evaluate_models([candidate], spec)
    assert run.failures == ()
    records = run.models[0].results
    assert list(records) == ["probe/colours", "colours"]
    assert evaluate_models([candidate], spec).models[0].results == records
    assert records["probe/colours"].interval.low < records["probe/colours"].main_metric
    Image.new("RGB", (8, 8)).save(root / "red" / "new.png")
    assert evaluate_models([candidate], spec).models[0].results["probe/colours"] != records["probe/colours"]


def test_what_has_no_classes_is_refused(tmp_path):
    captions = tmp_path / "captions"
    captions.mkdir()
    (captions / "a.png").write_bytes(encoded(COLOURS["red"]))
    (captions / "a.txt").write_text("a red thing")
    with fails(ValueError):
        find_task(f"probe:{captions}").open(TaskOptions())
    (tmp_path / "winogavil").mkdir()
    with fails(ValueError, "WinoGAViL"):
        find_task("probe:misc/winogavil", str(tmp_path))
    root = tmp_path / "colours"
    write_classes(root / "train")
    write_classes(root / "test", names=("red", "blue"))
    with fails(ValueError, "green", "train", "test"):
        find_task(f"probe:{root}").open(TaskOptions())
