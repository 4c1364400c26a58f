"""Every form and layout of a checkpoint through every command that takes one: it works, or says what to do."""

import json

import pytest
from PIL import Image

from mobileclip.blocks import models
from mobileclip.encoders import DualEncoder, load_model, save_model
from mobileclip.encoders.checkpoints import in_form
from mobileclip.reinforce import CheckpointTeacher
from mobileclip.tensor_files import CheckpointError
from tests.build.commands import refused, worked
from tests.encoders.small import SMALL
from tests.errors import fails
from tests.reinforce.conftest import attentive

NAME = "small_of_this_test"
DUAL = [
    ("training", "mobileclip"),
    ("branches_folded", "mobileclip"),
    ("folded", "mobileclip"),
    ("training", "official"),
    ("branches_folded", "official"),
    ("training", "open_clip"),
    ("branches_folded", "open_clip"),
]
# By default each form and each layout once.
ONCE = {("folded", "mobileclip"), ("branches_folded", "official"), ("training", "open_clip")}
EACH = [pytest.param(*one, marks=[pytest.mark.slow] * (one not in ONCE)) for one in DUAL]
TOWERS = [("image", "training"), ("image", "folded"), ("text", "training")]


@pytest.fixture(scope="module", autouse=True)
def known_by_name():
    """The small model under a name, as a package would register its own."""
    models.add(NAME, SMALL)
    yield
    del models._values[NAME]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Checkpoints by form and layout, and by tower and form; an image; a folder of two classes."""
    folder = tmp_path_factory.mktemp("forms")
    model, found = attentive(SMALL, 0), {}
    for form, layout in DUAL:
        found[form, layout] = folder / f"{layout}-{form}.safetensors"
        save_model(in_form(model, form), found[form, layout], layout=layout)
    for tower, form in TOWERS:
        found[tower, form] = folder / f"{tower}-{form}.safetensors"
        save_model(in_form(getattr(model, f"{tower}_encoder"), form), found[tower, form])
    for place, colour in (("red", (200, 0, 0)), ("blue", (0, 0, 200))):
        (folder / "classes" / place).mkdir(parents=True)
        Image.new("RGB", (80, 70), colour).save(folder / "classes" / place / "a.png")
    found["image"], found["classes"] = folder / "classes" / "red" / "a.png", folder / "classes"
    return found


def named(layout, path):
    """Return what names a file on the command line, whose model it says itself or not."""
    return path if layout == "mobileclip" else f"{NAME}={path}"


@pytest.mark.parametrize(("form", "layout"), DUAL)
class TestDual:
    def test_classify_and_embed(self, form, layout, files, tmp_path, capsys):
        given = ("-m", named(layout, files[form, layout]))
        assert set(json.loads(worked(capsys, "classify", files["image"], "red", "blue", *given, "--json"))) == {
            "red",
            "blue",
        }
        worked(capsys, "embed", files["image"], *given, "-o", tmp_path / "e.npz")
        assert (tmp_path / "e.npz").exists()

    def test_info_and_convert(self, form, layout, files, tmp_path, capsys):
        path = files[form, layout]
        if layout == "mobileclip":
            assert json.loads(worked(capsys, "info", path))["form"] == form
        # Where it comes from does not decide what can be written, the form does.
        for to in ("mobileclip", "official", "open_clip") if layout == "mobileclip" else ("mobileclip",):
            output = tmp_path / f"{to}.safetensors"
            worked(capsys, "convert", named(layout, path), "-o", output, "--to", to)
            assert isinstance(load_model(output, SMALL), DualEncoder)

    def test_teach_and_start_training(self, form, layout, files):
        path = files[form, layout]
        teacher = CheckpointTeacher(checkpoint=path, model=None if layout == "mobileclip" else NAME).build()
        assert teacher.encode_texts(["a cat"]).shape == (1, 24)
        if form == "training":
            assert load_model(path, SMALL, fold=False).spec == SMALL
        else:
            with fails(CheckpointError):
                load_model(path, SMALL, fold=False)


@pytest.mark.parametrize(("form", "layout"), EACH)
def test_evaluate_and_export(form, layout, files, tmp_path, capsys):
    given, out = named(layout, files[form, layout]), tmp_path / "out"
    command = ("eval", "run", given, "--datasets", files["classes"], "--output", tmp_path / "results")
    assert "results" in worked(capsys, *command)
    worked(capsys, "export", given, "--target", "torch", "--tower", "text", "-o", out)
    assert (out / "mobileclip.json").exists()


@pytest.mark.parametrize(("tower", "form"), TOWERS)
def test_a_tower_alone(tower, form, files, tmp_path, capsys):
    path = files[tower, form]
    assert json.loads(worked(capsys, "info", path))["form"] == form
    worked(capsys, "convert", path, "-o", tmp_path / "again.safetensors")
    if (tower, form) != ("image", "training"):  # either is exported in another row
        worked(capsys, "export", path, "--target", "torch", "--tower", tower, "-o", tmp_path / "out")
    for command in (("classify", files["image"], "red"), ("embed", files["image"], "-o", tmp_path / "e.npz")):
        refused(capsys, "one tower", *command, "-m", path)
    with fails(ValueError):
        CheckpointTeacher(checkpoint=path).build()
