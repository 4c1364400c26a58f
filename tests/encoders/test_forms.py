"""Every form and layout of a checkpoint through every command that takes one: it works, or says what to do."""

import json

import pytest
from PIL import Image

from mobileclip.blocks import models
from mobileclip.cli import main
from mobileclip.encoders import DualEncoder, load_model, save_model
from mobileclip.encoders.checkpoints import in_form
from mobileclip.reinforce import CheckpointTeacher
from mobileclip.tensor_files import CheckpointError
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


def ended(capsys, arguments):
    """Run a command; return its status and what it said."""
    status = 0
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as leaving:
        status = leaving.code
    said = capsys.readouterr()
    return status, said.out, said.err


@pytest.mark.parametrize(("form", "layout"), DUAL)
class TestDual:
    def test_classify_and_embed(self, form, layout, files, tmp_path, capsys):
        path = files[form, layout]
        status, out, err = ended(
            capsys, ["classify", files["image"], "red", "blue", "-m", named(layout, path), "--json"]
        )
        assert (status, set(json.loads(out))) == (0, {"red", "blue"}), err
        output = tmp_path / "e.npz"
        status, _, err = ended(capsys, ["embed", files["image"], "-m", named(layout, path), "-o", output])
        assert status == 0, err
        assert output.exists()

    def test_info_and_convert(self, form, layout, files, tmp_path, capsys):
        path = files[form, layout]
        if layout == "mobileclip":
            status, out, err = ended(capsys, ["info", path])
            assert (status, json.loads(out)["form"]) == (0, form), err
        # Where it comes from does not decide what can be written, the form does.
        for to in ("mobileclip", "official", "open_clip") if layout == "mobileclip" else ("mobileclip",):
            output = tmp_path / f"{to}.safetensors"
            status, _, err = ended(capsys, ["convert", named(layout, path), "-o", output, "--to", to])
            assert status == 0, err
            assert isinstance(load_model(output, SMALL), DualEncoder)

    def test_teach(self, form, layout, files):
        path = files[form, layout]
        teacher = CheckpointTeacher(checkpoint=path, model=None if layout == "mobileclip" else NAME).build()
        assert teacher.encode_texts(["a cat"]).shape == (1, 24)

    def test_start_of_training(self, form, layout, files):
        if form == "training":
            assert load_model(files[form, layout], SMALL, fold=False).spec == SMALL
        else:
            with fails(CheckpointError):
                load_model(files[form, layout], SMALL, fold=False)


@pytest.mark.parametrize(("form", "layout"), EACH)
def test_evaluate(form, layout, files, tmp_path, capsys):
    path = files[form, layout]
    model = path if layout == "mobileclip" else f"{NAME}={path}"
    command = ["eval", "run", model, "--datasets", files["classes"], "--output", tmp_path / "results"]
    status, out, err = ended(capsys, command)
    assert status == 0, err
    assert "results" in out


@pytest.mark.parametrize(("form", "layout"), EACH)
def test_export(form, layout, files, tmp_path, capsys):
    path, out = files[form, layout], tmp_path / "out"
    command = ["export", named(layout, path), "--target", "torch", "--tower", "text", "-o", out]
    status, _, err = ended(capsys, command)
    assert status == 0, err
    assert (out / "mobileclip.json").exists()


@pytest.mark.parametrize(("tower", "form"), TOWERS)
class TestTowers:
    def test_info_convert_and_export(self, tower, form, files, tmp_path, capsys):
        path = files[tower, form]
        status, out, err = ended(capsys, ["info", path])
        assert (status, json.loads(out)["form"]) == (0, form), err
        assert ended(capsys, ["convert", path, "-o", tmp_path / "again.safetensors"])[0] == 0
        if (tower, form) != ("image", "training"):  # either is exported in another row
            command = ["export", path, "--target", "torch", "--tower", tower, "-o", tmp_path / "out"]
            status, _, err = ended(capsys, command)
            assert status == 0, err

    def test_what_needs_both_towers_says_so(self, tower, form, files, tmp_path, capsys):
        path = files[tower, form]
        for command in (
            ["classify", files["image"], "red", "blue", "-m", path],
            ["embed", files["image"], "-m", path, "-o", tmp_path / "e.npz"],
        ):
            status, _, err = ended(capsys, command)
            assert status == 2
            assert "one tower" in err
        with fails(ValueError):
            CheckpointTeacher(checkpoint=path).build()
