"""The model that comes with the package: it is whole, small and free, and every command takes it by its name."""

import json
import re

import pytest
import torch
from PIL import Image, ImageDraw, ImageOps

import mobileclip
from mobileclip.cli.models import listed_rows
from mobileclip.data.text.ngrams import pack_ngrams
from mobileclip.encoders import TextTransformerSpec, load_model, save_model
from mobileclip.encoders.checkpoints import COMPANIONS, PACKAGED, TrainingProvenance, licence_of
from mobileclip.evaluation import Session, open_candidate
from mobileclip.export import ExportSpec, export_model
from mobileclip.inference import space_of
from mobileclip.inference.catalogue import describe, rows
from mobileclip.inputs import TextInput
from mobileclip.reparam import is_folded
from tests.build.commands import run, worked
from tests.encoders.small import randomised


@pytest.fixture(scope="module")
def clip():
    return mobileclip.load("icons")


@pytest.fixture
def drawings(tmp_path):
    """Files of an arrow to the right and of a ring."""
    arrow, ring = (Image.new("RGB", (96, 96), "white") for _ in range(2))
    pen = ImageDraw.Draw(arrow)
    pen.line((16, 48, 76, 48), fill="black", width=8)
    pen.line((54, 26, 78, 48, 54, 70), fill="black", width=8, joint="curve")
    ImageDraw.Draw(ring).ellipse((18, 18, 78, 78), outline="black", width=8)
    arrow.save(tmp_path / "arrow.png")
    ring.save(tmp_path / "ring.png")
    return tmp_path / "arrow.png", tmp_path / "ring.png"


def test_it_is_small_and_loads_folded_without_a_file_or_a_network(clip, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert PACKAGED["icons"].stat().st_size < 10_000_000
    assert is_folded(clip.model)
    assert {parameter.dtype for parameter in clip.model.parameters()} == {torch.float32}


def test_it_tells_drawings_apart_on_nothing_as_on_white(clip, drawings, tmp_path, capsys):
    """Drawing programs save black below what is transparent."""
    names = ("arrow right", "circle", "cat", "house", "cloud")
    assert "arrow right" in worked(capsys, "classify", drawings[0], *names, "-m", "icons").splitlines()[0]
    for name, drawing in zip(names, drawings, strict=False):
        expected = clip.classify(drawing, names)
        assert next(iter(expected)) == name
        ink = ImageOps.invert(Image.open(drawing).convert("L"))
        for mode in ("RGBA", "LA", "P"):
            path = tmp_path / f"{drawing.stem}_{mode}.png"
            nothing = Image.new("RGB", ink.size).convert("RGBA")
            nothing.putalpha(ink)
            (nothing.quantize(256) if mode == "P" else nothing.convert(mode)).save(path)
            scores = clip.classify(path, names)
            assert next(iter(scores)) == name, path.name
            assert scores == pytest.approx(expected, abs=0.02), path.name


def test_its_card_has_figures_for_every_part_and_names_whoever_drew():
    card = PACKAGED["icons"].with_suffix(".md").read_text(encoding="utf-8")
    figures = re.findall(r"^\| .+ \| [\d,]+ \| [\d,]+ \| (\d+\.\d) \| (\d+\.\d) \| (\d+\.\d) \|$", card, re.MULTILINE)
    assert len(figures) == 13
    assert all(0 < float(first) < float(five) < 100 for first, five, _ in figures)
    drawn = re.findall(
        r"^\| (.+) \| \[.+\]\(https?://.+\) \| (.+) \| `@iconify-json/.+@[\d.]+` \|$", card, re.MULTILINE
    )
    assert len(drawn) == 20
    assert {licence for _, licence in drawn} <= {"MIT", "ISC", "Apache 2.0", "CC BY 3.0", "CC BY 4.0"}
    assert "photographs" in card


def test_an_export_of_it_carries_its_licence(tmp_path):
    export_model("icons", ExportSpec(output=str(tmp_path / "out"), target="torch", tower="image"))
    contract, said = json.loads((tmp_path / "out" / "mobileclip.json").read_text()), describe("icons")
    assert contract["name"] == "icons"
    assert contract["licence"] == said["licence"] == licence_of("icons")
    assert said["card"] == str(PACKAGED["icons"].with_suffix(".md"))


def test_a_file_of_its_name_is_that_file_and_a_folder_is_not(tmp_path, monkeypatch, clip):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "icons").mkdir()
    image = Image.new("RGB", (40, 40), "white")
    assert torch.equal(mobileclip.load("icons").encode_image(image), clip.encode_image(image))
    (tmp_path / "icons").rmdir()
    other = load_model("icons", fold=False)
    with torch.no_grad():
        for parameter in other.image_encoder.parameters():
            parameter.mul_(1.5)
    save_model(other, tmp_path / "other.safetensors")
    (tmp_path / "other.safetensors").rename(tmp_path / "icons")
    found = load_model("icons", fold=False).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in other.state_dict().items())


FRENCH = ("flèche rouge", "cœur bleu", "maison")


@pytest.fixture
def multilingual(tmp_path, monkeypatch):
    """A packaged model with a second text tower, drawn at random."""
    text = TextInput(context_length=8, vocab_size=900)
    spec = TextTransformerSpec(width=16, num_heads=2, depth=0, embedding_dim=256, pool="mean", input=text)
    tower = randomised(spec)
    tower.provenance = TrainingProvenance(space=space_of("icons").to_json(), ngrams=pack_ngrams(FRENCH))
    save_model(tower.half(), tmp_path / "second.safetensors")
    monkeypatch.setitem(COMPANIONS, "icons-multilingual", tmp_path / "second.safetensors")
    monkeypatch.setitem(PACKAGED, "icons-multilingual", PACKAGED["icons"])
    return mobileclip.load("icons-multilingual")


def test_a_second_text_tower_has_the_texts_that_it_was_taught(multilingual, clip, tmp_path):
    english = ["red arrow", "a house with a garden"]
    assert torch.equal(multilingual.encode_text(english), clip.encode_text(english))
    assert not torch.allclose(multilingual.encode_text(FRENCH), clip.encode_text(FRENCH), atol=0.1)
    alone = mobileclip.load("icons", text_model=tmp_path / "second.safetensors")
    torch.testing.assert_close(multilingual.encode_text(FRENCH), alone.encode_text(FRENCH))
    torch.testing.assert_close(
        mobileclip.load("icons", text_model="icons-multilingual").encode_text(FRENCH), alone.encode_text(FRENCH)
    )
    image = Image.new("RGB", (40, 40), "white")
    assert torch.equal(multilingual.encode_image(image), clip.encode_image(image))


def test_an_index_of_either_name_is_searched_in_any_language(multilingual, drawings, tmp_path, capsys):
    scores = (multilingual.encode_image(drawings) @ multilingual.encode_text(FRENCH[0])[0]).tolist()
    for name in ("icons", "icons-multilingual"):
        worked(capsys, "index", *drawings, "-i", tmp_path / name, "-m", name)
        found = json.loads(worked(capsys, "search", FRENCH[0], "-i", tmp_path / name, "--json"))
        assert [match["score"] for match in found] == pytest.approx(sorted(scores, reverse=True), abs=2e-3)
    again = worked(capsys, "index", *drawings, "-i", tmp_path / "icons", "-m", "icons-multilingual")
    assert "2 images in the index" in again


def test_its_name_is_taken_where_a_model_is(multilingual, drawings, tmp_path, capsys):
    out = worked(capsys, "classify", drawings[0], *FRENCH, "-m", "icons-multilingual", "--json")
    assert json.loads(out) == pytest.approx(multilingual.classify(drawings[0], FRENCH), abs=1e-5)
    assert "icons-multilingual" in mobileclip.list_models("icons*", pretrained=True)
    said = describe("icons-multilingual")
    assert said["second text tower"]["input"]["context_length"] == 8
    assert said["card"].endswith("icons-multilingual.md")
    (row,) = rows(known={row["name"] for row in listed_rows()} - {"icons-multilingual"})
    assert (row["tokens"], row["weights"]) == ("24, 8", "in the package")
    command = ("export", "icons-multilingual", "-o", tmp_path / "out", "--max-images", "1")
    assert f"mobileclip export {tmp_path / 'second.safetensors'}" in run(capsys, *command)[2]
    candidate = open_candidate("icons-multilingual")
    assert candidate.name == "icons-multilingual"
    assert candidate.fingerprint != open_candidate("icons").fingerprint
    embedded = Session.of(candidate, batch_size=4, show_progress=False).encode_texts(FRENCH)
    torch.testing.assert_close(torch.nn.functional.normalize(embedded), multilingual.encode_text(FRENCH))
