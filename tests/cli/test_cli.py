"""The console command, run as people run it."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mobileclip.cli import COMMANDS
from mobileclip.data import Tokenizer, read_text_input
from mobileclip.encoders import save_model
from mobileclip.encoders.checkpoints import read_checkpoint
from mobileclip.extras import VERSION
from tests.build.commands import IMAGES, refused, run, worked
from tests.encoders.small import SMALL, randomised
from tests.errors import told

LABELS = ("a cat", "ein Café")


@pytest.mark.slow
def test_a_photo_above_the_limit_of_pixels_is_read_and_a_bomb_is_where_the_environment_says_so(
    capsys, small_file, tmp_path
):
    photo, bomb = tmp_path / "photo.jpg", tmp_path / "bomb.png"
    Image.new("RGB", (13_000, 9_600), (9, 90, 200)).save(photo, quality=30)
    Image.new("1", (13_000, 9_600)).save(bomb)

    def commands(name):
        yield "classify", name, *LABELS, "-m", small_file
        yield "embed", name, "-o", f"{name}.npz", "-m", small_file, "--overwrite"
        yield "index", name, "-i", f"{name}.index", "-m", small_file

    for command in commands(photo):
        worked(capsys, *command)
    for command in commands(bomb):
        status, _, err = run(capsys, *command)
        assert (status > 0, "MOBILECLIP_MAX_PIXELS" in err) == (True, True)
    # It is read when the library is imported.
    for most, expected in (("130000000", [0, 0, 0]), ("many", [2, 2, 2])):
        code = "import json, sys; from tests.build.commands import statuses; statuses(json.loads(sys.argv[1]))"
        lines = json.dumps([[str(word) for word in command] for command in commands(bomb)])
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "MOBILECLIP_MAX_PIXELS": most}
        command = [sys.executable, "-c", code, lines]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=True)
        assert json.loads(done.stdout.splitlines()[-1]) == expected, done.stderr
        assert "Traceback" not in done.stderr


def test_one_image_or_several_are_classified(capsys, small_file, tmp_path):
    names = [f"{IMAGES}/chelsea.png", f"{IMAGES}/coffee.png"]
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    line = ("classify", *names, tmp_path / "broken.jpg", names[0], *LABELS, "-m", small_file)
    status, out, err = run(capsys, *line, "--json")
    assert (status, "1 of 3" in err) == (0, True)
    found = json.loads(out)
    assert list(found) == names
    for name in names:
        alone = [worked(capsys, "classify", name, *LABELS, flag, small_file, "--json") for flag in ("-m", "--model")]
        assert alone[0] == alone[1]
        assert found[name] == pytest.approx(json.loads(alone[0]), rel=1e-5)
        assert (set(found[name]), sum(found[name].values())) == (set(LABELS), pytest.approx(1, abs=1e-4))
    lines = worked(capsys, *line).splitlines()
    assert ([one for one in lines if "%" not in one], len(lines)) == (names, 6)
    lines = [one.split(maxsplit=1) for one in worked(capsys, "classify", names[0], *line[5:]).splitlines()]
    assert {label: float(percent.rstrip("%")) for percent, label in lines} == pytest.approx(
        {label: 100 * share for label, share in found[names[0]].items()}, abs=0.01
    )
    assert run(capsys, *line, "--strict")[0] == 1
    assert run(capsys, *line[:2], *LABELS, "-m", f"mobileclip_s0={small_file}")[2] != ""


def test_embed_images_and_texts(capsys, small_file, tmp_path):
    (tmp_path / "captions.txt").write_text("a cat\n\na cup of coffee\n", encoding="utf-8")
    output = tmp_path / "made" / "embeddings.npz"
    line = ("embed", IMAGES, "--texts", tmp_path / "captions.txt", "-o", output, "-m", small_file, "--batch-size", 2)
    status, out, err = run(capsys, *line)
    assert (status, "3 image and 2 text embeddings" in out, "encoding images: 3/3" in err) == (0, True, True)
    assert run(capsys, *line, "--overwrite", "--quiet")[2] == ""
    with np.load(output, allow_pickle=False) as file:
        assert [Path(path).name for path in file["image_path"]] == ["astronaut.png", "chelsea.png", "coffee.png"]
        assert (file["image_embedding"].shape, file["text_embedding"].shape) == ((3, 24), (2, 24))
        assert file["text"].tolist() == ["a cat", "a cup of coffee"]
        np.testing.assert_allclose(np.linalg.norm(file["image_embedding"], axis=1), 1, rtol=1e-6)


def test_embed_names_what_it_leaves_out(capsys, small_file, tmp_path):
    photos, output = tmp_path / "photos", tmp_path / "embeddings.npz"
    photos.mkdir()
    for name in ("a.psd", "b.PSD", ".hidden.png", "notes.txt"):
        (photos / name).write_bytes(b"x")
    (tmp_path / "torn.png").write_bytes(b"\x89PNG\r\n")
    status, out, err = run(capsys, "embed", tmp_path / "torn.png", "-o", output, "-m", small_file)
    assert (status, out, "nothing was written" in err, output.exists()) == (1, "", True, False)
    Image.new("RGB", (1, 200_000)).save(photos / "line.png")  # out of shape: nothing is lost to it
    given = ("embed", IMAGES, photos, tmp_path / "torn.png", "-o", output, "-m", small_file)
    assert run(capsys, *given, "--strict")[0] == 1
    status, out, err = run(capsys, *given, "--overwrite")
    assert (status, "3 image" in out) == (0, True)
    told(err, "left out 2 of 5", "torn.png", "left out 4 files of the folders", "1 hidden files: .png (1)")
    told(err, "3 names without an image extension: .psd (2), .txt (1)", "line.png' is 1 x 200000")
    with np.load(output) as file:
        assert len(file["image_path"]) == len(file["image_embedding"]) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("embed",), "nothing to embed"),
        (("embed", "nothing", "-o", "new.npz"), "there is no nothing; expected an image file"),
        (("embed", "phtos", "-o", "new.npz"), "did you mean 'phtoos'?"),
        (("embed", "a.jpg", "-o", "kept.npz"), "kept.npz already exists; choose another name, or replace it with"),
        (("embed", "a.jpg", "-o", "e.csv"), "must end with .npz"),
        (("embed", "a.jpg", "--batch-size", "0"), "--batch-size is 0, expected at least 1"),
        (("embed", "a.jpg", "--device", "tpu"), "the device 'tpu' is not available"),
        (("embed", "a.jpg", "--overwrite", "--append"), "--overwrite replaces the archive"),
        (("embed", "a.jpg", "-m", "mobileclip_s9"), "unknown model 'mobileclip_s9'"),
        (("embed", "a.jpg", "-m", "lost.pt"), "no checkpoint at lost.pt"),
        (("embed", "phtoos"), "phtoos contains no images"),
        (("embed", "--texts", "lost.txt"), "there is no lost.txt; expected a file with one text per line"),
        (("classify", "lost.jpg", "a"), "there is no lost.jpg; expected an image file"),
        (("classify",), "expected an image file"),
        (("classify", "a.jpg", "a cat", "a.jpg"), "a.jpg is a file after the first label"),
        (("classify", "a.jpg", "lost.jpg", "a cat"), "there is no lost.jpg"),
        (("classify", "a.jpg"), "a list of at least one text"),
        (("classify", "a.jpg", "a", "a"), "given twice: a"),
        (("classify", "a.jpg", "a", " "), "blank"),
        (("classify", "a.jpg", "a", "--template", "photo"), "has no {} for the label"),
        (("classify", "kept.npz", "a"), "kept.npz"),
        (("classify", "a.jpg", "a", "-m", "mci0"), "no published weights"),
        (("classify", "phtoos", "a"), "phtoos is a folder; expected an image file"),
        (("convert", "a.jpg", "-o", "kept.npz", "--to", "official"), "must end with .safetensors or .pt"),
        (("convert", "mobileclip_s9=a.jpg", "-o", "b.safetensors"), "did you mean"),
        (("convert", "a.pt", "-o", "a.pt", "--to", "official", "--overwrite"), "a.pt is also the output"),
        (("convert", "a.pt", "-o", "out.pt"), "safetensors"),
        (("convert", "a.pt", "-o", "./a.pt", "--to", "official"), "a.pt already exists"),
        (("info", "phtoos"), "phtoos holds no checkpoint (.safetensors, .bin, .pt)"),
        (("info", "lost.pt"), "no checkpoint at lost.pt"),
    ],
)
def test_arguments_are_looked_at_before_anything_else(capsys, monkeypatch, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("a.jpg")
    Path("phtoos").mkdir()
    for name in ("a.pt", "kept.npz"):
        Path(name).write_bytes(b"the work of hours")
    for name in ("huggingface_hub.hf_hub_download", "huggingface_hub.list_repo_files", "torch.load"):
        monkeypatch.setattr(name, lambda *_, **__: pytest.fail("a model was read before the arguments were looked at"))
    assert refused(capsys, message, *arguments).count("\n") == 1
    assert Path("a.pt").read_bytes() == Path("kept.npz").read_bytes() == b"the work of hours"
    assert {path.name for path in tmp_path.iterdir()} == {"a.jpg", "a.pt", "kept.npz", "phtoos"}


def test_embeddings_are_added_to_and_never_mixed(capsys, small_file, tmp_path):
    from mobileclip.inference.embedding import read_embeddings  # `statuses` imports this module first

    output, other = tmp_path / "e.npz", tmp_path / "other.safetensors"
    given = ("embed", f"{IMAGES}/coffee.png", "-o", output, "-m")
    worked(capsys, *given, small_file)
    assert "added 2 image" in worked(capsys, "embed", IMAGES, "-o", output, "-m", small_file, "--append")
    read = read_embeddings(output)
    assert [Path(path).name for path in read.image_paths] == ["coffee.png", "astronaut.png", "chelsea.png"]
    save_model(randomised(SMALL, seed=1), other)
    before = output.read_bytes()
    refused(capsys, "cannot be compared", *given, other, "--append")
    assert output.read_bytes() == before
    worked(capsys, *given, other, "--overwrite")
    assert len(read_embeddings(output).image) == 1
    assert read_embeddings(output).model != read.model


def test_pictures_of_a_data_set_are_embedded_by_their_keys(capsys, small_file, tmp_path):
    from mobileclip.inference.embedding import read_embeddings  # `statuses` imports this module first
    from tests.datasets.test_opening import captioned_shard, lines, public_layout

    places = [captioned_shard(tmp_path), lines(tmp_path, labels=False), public_layout(tmp_path)]
    output = tmp_path / "e.npz"
    out = worked(capsys, "embed", *places, f"{IMAGES}/coffee.png", "-o", output, "-m", small_file)
    assert "wrote 19 image" in out
    read = read_embeddings(output)
    assert read.image_paths[:2] == (f"{IMAGES}/coffee.png", f"{places[0]}/blue0")
    for first in (7, 13):  # the same picture in three forms
        np.testing.assert_allclose(read.image[1:7], read.image[first : first + 6], rtol=1e-5, atol=1e-6)


def test_what_a_list_may_name_is_let_in_by_flags_that_refusals_name(capsys, small_file, tmp_path):
    from tests.datasets.test_opening import picture
    from tests.stores import web_server

    listed = tmp_path / "list" / "mine.jsonl"
    listed.parent.mkdir()
    (tmp_path / "red.png").write_bytes(picture("red", 0))
    given = ("embed", listed, "-o", tmp_path / "e.npz", "-m", small_file)
    flags = ("--no-inside", "--hosts", "127.0.0.1")
    with web_server() as site:
        site.files["/blue.png"] = picture("blue", 0)
        images = ["../red.png", f"{site.url}/blue.png", "s3://bucket/green.png"]
        lines = [json.dumps({"image": image, "text": "x"}) + "\n" for image in images]
        listed.write_text("".join(lines))
        status, _, err = run(capsys, *given)
        assert status == 1
        told(err, "(--no-inside)", "(--hosts)", "name s3 in `schemes` (--schemes)")
        status, out, err = run(capsys, *given, *flags)
        assert (status, "wrote 2 image" in out, "(--schemes)" in err) == (0, True, True)
        listed.write_text("".join(lines[:2]))
        worked(capsys, *given, "--overwrite", *flags)


def test_convert_says_what_it_wrote_from_what(capsys, small_file, tmp_path):
    folded, half = tmp_path / "folded.safetensors", tmp_path / "text.safetensors"
    official = ("--to", "official", "--precision", "float16")
    for source, output, flags, said in (
        (small_file, folded, ("--fold",), "mobileclip layout, folded, float32"),
        (small_file, tmp_path / "official.pt", official, "official layout, in training form, float16"),
        (folded, tmp_path / "a.safetensors", ("--precision", "bfloat16"), "mobileclip layout, folded, bfloat16"),
    ):
        out = worked(capsys, "convert", source, "-o", output, *flags)
        assert out == f"wrote {output}: {said}, from the mobileclip layout\n"
    assert read_checkpoint(folded).form == "folded"
    worked(capsys, "convert", small_file, "-o", half, "--tower", "text", "--precision", "float16")
    stored = read_checkpoint(half)
    assert stored.spec == read_checkpoint(small_file).spec.text
    assert {str(tensor.dtype) for tensor in stored.tensors.values()} == {"torch.float16"}


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_tokenizer_is_trained_on_lines_and_tables(capsys, monkeypatch, tmp_path, kind):
    monkeypatch.chdir(tmp_path)
    Path("texts.txt").write_text("a red heart\ntwo blue stars\nein Baum", encoding="utf-8")
    Path("more.tsv").write_text("name\tlanguage\nun cœur\tfr\n\ten\n", encoding="utf-8")
    line = ("tokenizer", "train", "-o", "a/t.json", "--vocab-size", 300, "--kind", kind)
    status, out, _ = run(capsys, *line, "more.tsv", "more.tsv", "--text-column", "name", "--strict")
    assert (status, "a tokenizer of 2 texts" in out) == (1, True)  # a row of each has no text
    told(worked(capsys, *line, "texts.txt", "--overwrite"), "mobileclip train distil_text --tokenizer a/t.json")
    trained = Tokenizer(read_text_input("a/t.json"))
    assert (trained.vocab_size <= 300, trained.decode(trained.encode("a red heart")).strip()) == (True, "a red heart")
    for texts in ((), ("missing.txt",)):
        refused(capsys, "".join(texts), *line, *texts, "--overwrite")


def test_it_is_a_module_too(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["mobileclip", "--version"])
    runpy.run_module("mobileclip", run_name="__main__")
    assert capsys.readouterr().out == f"mobileclip {VERSION}\n"


def test_a_signal_is_told_by_the_name_of_the_command_with_what_is_kept():
    code = """
import signal
from mobileclip.cli import COMMANDS, main
type(COMMANDS).run = lambda *_: signal.raise_signal(signal.SIGTERM)
main(["list"])
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (143, "")
    assert ended.stderr.startswith("mobileclip: interrupted by SIGTERM; finished work is saved")


def test_list(capsys):
    rows = {row["name"]: row for row in map(json.loads, worked(capsys, "list", "--json").splitlines())}
    assert [rows["mobileclip_s0"][column] for column in ("image", "text")] == ["mci 11.4M", "mct 42.4M"]
    assert (rows["mci2"]["text"], rows["icons"]["weights"]) == (None, "in the package")
    assert [rows[name]["GMACs"] for name in ("mobileclip_s0", "mci2")] == ["2.4 + 1.3", "7.8"]
    told(worked(capsys, "list"), *rows)


def test_info_of_a_name_and_of_a_file(capsys, small_file):
    about = json.loads(worked(capsys, "info", "mobileclip2_s3"))
    assert (about["input"]["image"]["size"], about["spec"]["text"]["width"]) == (256, 768)
    assert about["multiply-accumulates"] == {"image": 14_812_004_352, "text": 6_649_841_664}
    about = json.loads(worked(capsys, "info", small_file))
    assert (about["layout"], about["form"]) == ("mobileclip", "training")
    assert about["parameters"]["image"]["folded"] < about["parameters"]["image"]["training"]


def test_of_a_mistake_that_quotes_much_both_ends_are_told(capsys, monkeypatch):
    monkeypatch.setattr("sys.path", [*sys.path])
    err = refused(capsys, "mobileclip: aaa", "--import", 5000 * "a", "list")
    assert err.endswith(f"aaa' in {Path.cwd()}\n")
    assert 1000 < len(err) < 1700


def test_help_has_every_example_on_a_line_of_its_own(capsys):
    lines = {line.strip() for line in worked(capsys, "serve", "--help").splitlines()}
    assert {"mobileclip serve", "mobileclip serve --index photos.index --port 0"} <= lines


def test_a_pipe_that_breaks_inside_is_an_error(capsys, monkeypatch):
    """One to a process or to a store, say; silence, with 0, is for a reader of standard output that has gone."""

    class Broken:
        def run(self, *_):
            raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setitem(COMMANDS.groups["use a model"], "list", Broken())
    refused(capsys, "[Errno 32] Broken pipe", "list")
