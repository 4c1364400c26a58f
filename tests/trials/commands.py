"""Command lines with a slip in them: each is refused by one message, at once, and nothing is lost by it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch

# What commands import when they are called: once here, not in every process that tries one.
from mobileclip.inference.embedding import read_embeddings
from tests.datasets.made_videos import film
from tests.trials.command_world import WRITTEN, accepted, contents, enter, refused, template
from tests.trials.harness import Case, Outcome, run_command

SMALL = ("-m", "small.safetensors")
LONG = "x" * 300

# Whatever is no file that can be read, where one is asked for.
NO_FILES = (
    "lost.jpg", "", ".", "/", "photos", "empty", "loop", "pipe", "a.jpg/x", "/dev/null", "/dev/zero", "\udcff.jpg",
    f"{LONG}.jpg", "x/" * 2000, "s3:/x", "~nobody/a.jpg", "a.jpg\n", "\x1b[2J.jpg", "--", "link.jpg",
)  # fmt: skip
NO_IMAGES = (*NO_FILES, "empty.jpg", "text.jpg", "torn.png", "kept.npz", "small.safetensors", "captions.txt")
NO_CHECKPOINTS = (
    "lost.pt", "empty.pt", "text.pt", "torn.safetensors", "photos", "", "tower.safetensors", "hf-hub:", "hf-hub:x",
    "/dev/null", "/dev/zero", "pipe", "loop", "a.jpg", "kept.npz", "captions.txt", f"{LONG}.pt", "\udcff.pt",
)  # fmt: skip
NO_MODELS = ("mobileclip_s22", "MobileCLIP_S0", "mobileclip-s0", "vit_l14", "mci0", " ", "mobileclip_s0 ")
NUMBERS = ("0", "-1", "1e9", "nan", "inf", "ten", "", "1.5", "0x10")
DEVICES = ("gpu", "cuda:99", "cuda:-1", "", "cud a", "meta", "mps:7", "xla", "cpu:x")
OUTPUTS = (
    "kept{}", "kept_folder", "a.jpg/x{}", "", ".", "/", "e.csv", "e", "e{}.gz", "link{}", "/proc/x{}", "s3://bucket/x{}",
    f"{LONG}{{}}", "loop/x{}", "pipe/x{}", "{}",
)  # fmt: skip
NO_FOLDERS = (
    "kept_folder", "a.jpg", "a.jpg/x", "", ".", "/", "/proc/x", "s3://bucket/x", LONG, "loop/x", "pipe/x", "photos",
)  # fmt: skip
NO_LICENCES = ("", " ", "MIT", "mit license", "m\n---", "\x1b[2J", "x" * 100, "-", "--")
NO_REPOSITORIES = ("name", "", "/", "owner/", "a/b/c", "owner/name ", "hf-hub:owner/name", "owner/\udcff", "o/n\n# x")
NO_DATA = (
    "lost/", "lost.jsonl", "lost.tar", "empty", "notes", "flat", "one_class", "torn_shards", "torn.tar", "table.csv/",
    "bad.jsonl", "{0..3}.tar", "{0..", "gopher://a/b", "pipe:", "kept_folder", "loop/", "loop.tar", "/dev/",
    "deep.jsonl",
)  # fmt: skip

COMMANDS = {
    "classify": ("classify", "a.jpg", "a cat", *SMALL),
    "embed": ("embed", "a.jpg", "-o", "new.npz", *SMALL),
    "index": ("index", "a.jpg", "-i", "new", *SMALL),
    "search": ("search", "a cat", "-i", "new"),
    "dedup": ("dedup", "-i", "new"),
    "merge": ("merge", "new", "-i", "all"),
    "convert": ("convert", "small.safetensors", "-o", "new.safetensors"),
    "list": ("list",),
    "info": ("info", "small.safetensors"),
    "export": ("export", "small.safetensors", "--target", "torch", "-o", "new"),
    "verify": ("verify", "kept_export"),
    "data join": ("data", "join", "reinforced.tar", "torn.tar", "new"),
    "data inspect": ("data", "inspect", "reinforced.tar"),
    "data verify": ("data", "check", "photos"),
    "hub save": ("hub", "save", "small.safetensors", "-o", "new", "--license", "mit"),
    "hub push": ("hub", "push", "small.safetensors", "owner/name", "--license", "mit"),
    "eval": ("eval", "run", "small.safetensors", "classes"),
    "eval report": ("eval", "report", "results.jsonl"),
    "eval orders": ("eval", "orders", "photos"),
}

# These may stand alone, or fall back on what the person who runs this has.
NO_ARGUMENTS = ("list", "embed", "eval", "eval report", "index", "search", "dedup")

# What is no slip after all.
RIGHT = (
    ("data", "check", "photos", "--samples", "0"),
    ("info", "tower.safetensors"),
)


def cases() -> Iterator[Case]:
    """Yield the cases."""
    # Processes that are forked have no threads of their parent's.
    torch.set_num_threads(1)
    template()
    for command in COMMANDS.values():
        # What is kept from one to the next is kept for all.
        run_command([*command, "--nonsense"])
    for number, (arguments, told) in enumerate((*_slips(), *_special())):
        shown = " ".join(one if len(one) <= 60 else f"{one[:20]}..." for one in map(ascii, arguments))
        yield Case(name=f"{number:03d} {shown}", attempt=partial(_refused, arguments=list(arguments), told=told))
    for name, attempt in _right():
        yield Case(name=name, attempt=attempt, seconds=30.0)


def _refused(folder: Path, *, arguments: list[str], told: str) -> Outcome:
    refused(folder, arguments, told)
    return "refused"


def _slips() -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield every kind of slip at every kind of place where it can be made."""
    lines: list[tuple[str, ...]] = [(*command, "--nonsense") for command in COMMANDS.values()]
    lines += [tuple(name.split()) for name in COMMANDS if name not in NO_ARGUMENTS]
    lines += [("classify", image, "a cat", *SMALL) for image in NO_IMAGES]
    lines += [("embed", image, "-o", "new.npz", *SMALL) for image in NO_FILES if image not in (".", "/", "photos")]
    no_files = [image for image in NO_FILES if image not in (".", "/", "photos")]
    lines += [("index", image, "-i", "new", *SMALL) for image in no_files]
    lines += [("dedup", image, "-i", "new", *SMALL) for image in no_files]
    lines += [("dedup", "a.jpg", "-i", "new", *SMALL, "--threshold", number) for number in NUMBERS]
    videos = ("0", "-1", "nan", "ten", "", "0x10", "0.99")
    lines += [("index", "a.jpg", "-i", "new", *SMALL, "--video-seconds", number) for number in videos]
    lines += _in_turn(NO_FOLDERS, ("search", "a cat", "-i", "?"), ("merge", "?", "-i", "new"))
    lines += _in_turn(
        NO_CHECKPOINTS,
        ("classify", "a.jpg", "a cat", "-m", "?"),
        ("index", "a.jpg", "-i", "new", "-m", "?"),
        ("convert", "?", "-o", "new.safetensors", "--tower", "text"),
        ("embed", "a.jpg", "-o", "new.npz", "-m", "?"),
        ("export", "?", "--target", "torch", "-o", "new", "--tower", "text"),
        ("info", "?"),
        ("hub", "save", "?", "-o", "new", "--license", "mit", "--tower", "text"),
    )
    save = ("hub", "save", "small.safetensors")
    lines += _in_turn(NO_FOLDERS, (*save, "?", "--license", "mit", "--overwrite"))
    lines += _in_turn(NO_LICENCES, (*save, "new", "--license", "?"))
    lines += _in_turn(
        NO_REPOSITORIES,
        (*save, "new", "--license", "mit", "--repository", "?"),
        ("hub", "push", "small.safetensors", "?", "--license", "mit"),
    )
    lines += _in_turn(NO_IMAGES, (*save, "new", "--license", "mit", "--results", "?"))
    lines += _in_turn(
        NO_MODELS,
        ("classify", "a.jpg", "a cat", "-m", "?"),
        ("embed", "a.jpg", "-o", "new.npz", "-m", "?"),
        ("export", "?", "--target", "torch", "-o", "new", "--tower", "text"),
        ("eval", "?", "classes"),
        ("convert", "small.safetensors", "-o", "new.safetensors", "--model", "?"),
    )
    for suffix, line in (
        (".npz", ("embed", "a.jpg", *SMALL, "-o", "?")),
        (".safetensors", ("convert", "small.safetensors", "-o", "?")),
        (".jsonl", ("dedup", "-i", "new", "-o", "?")),
        (".jsonl", ("dedup", "a.jpg", "-i", "new", *SMALL, "-o", "?")),
        (".html", ("dedup", "a.jpg", "-i", "new", *SMALL, "-o", "?")),
        (".safetensors", ("index", "a.jpg", "-i", "new", *SMALL, "--web", "?")),
        (".png", ("data", "inspect", "reinforced.tar", "-o", "?")),
    ):
        assert suffix in WRITTEN, f"there is no kept{suffix} to be replaced by mistake"
        lines += _in_turn([output.format(suffix) for output in OUTPUTS], line)
    lines += _in_turn(
        NUMBERS,
        ("embed", "a.jpg", *SMALL, "-o", "new.npz", "--batch-size", "?"),
        ("index", "a.jpg", *SMALL, "-i", "new", "--num-workers", "?"),
        ("search", "a cat", "-i", "new", "-k", "?"),
        ("eval", "small.safetensors", "classes", "--batch-size", "?"),
        ("data", "join", "reinforced.tar", "reinforced.tar", "new", "--num-workers", "?"),
        ("export", "small.safetensors", "--target", "torch", "-o", "new", "--max-images", "?"),
        ("data", "check", "photos", "--samples", "?"),
    )
    lines += _in_turn(
        DEVICES,
        ("classify", "a.jpg", "a cat", *SMALL, "--device", "?"),
        ("embed", "a.jpg", *SMALL, "-o", "new.npz", "--device", "?"),
        ("index", "a.jpg", *SMALL, "-i", "new", "--device", "?"),
        ("eval", "small.safetensors", "classes", "--device", "?"),
        ("data", "check", "photos", "--device", "?"),
    )
    lines += [("eval", "small.safetensors", "--datasets", data) for data in NO_DATA]
    lines += [("export", "small.safetensors", "--target", "torch", "-o", "new", "--data", data) for data in NO_DATA]
    return ((line, "") for line in lines if line not in RIGHT)


def _in_turn(values: Sequence[str], *lines: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Return every value in two of the lines, or in the one, at the place of the question mark."""
    chosen = (
        (value, lines[(number + further) % len(lines)])
        for number, value in enumerate(values)
        for further in range(min(2, len(lines)))
    )
    return [tuple(value if part == "?" else part for part in line) for value, line in chosen]


def _special() -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield slips of one command alone, and what must be said of them."""
    many = [f"label {number}" for number in range(20_000)]
    yield ("classify", "a.jpg", *SMALL), "at least one text"
    yield ("classify", "a.jpg", "a", "a", *SMALL), "given twice: a"
    yield ("classify", "a.jpg", "", *SMALL), "blank"
    yield ("classify", "a.jpg", *many, "label 7", *SMALL), "given twice: label 7"
    yield ("classify", "a.jpg", *many, *many, *SMALL), "given twice"
    yield ("classify", "a.jpg", "a", "--template", "a photo", *SMALL), "no {} for the label"
    yield ("classify", "a.jpg"), "at least one text"
    yield ("classify", "lost.jpg", "a"), "there is no lost.jpg"
    yield ("embed", "lost.jpg"), "there is no lost.jpg"
    yield ("embed", "phtos", "-o", "kept.npz"), "kept.npz is there already"
    yield ("embed", "phtos"), "did you mean 'photos'?"
    yield ("embed", "photos", "-o", "e.csv", *SMALL), "must end with .npz"
    yield ("embed", *SMALL), "nothing to embed"
    yield ("embed", "empty", *SMALL), "holds no images"
    yield ("embed", "notes", *SMALL), "holds no images"
    yield ("embed", "--texts", "latin.txt", *SMALL), "not UTF-8"
    yield ("embed", "--texts", "blank.txt", *SMALL), "nothing to embed"
    yield ("embed", "--texts", "long.txt", *SMALL), "20,000 characters"
    yield ("embed", "--texts", "photos", *SMALL), "is a folder"
    yield ("embed", "--texts", "pipe", *SMALL), "is a pipe"
    yield ("embed", "--texts", "/dev/zero", *SMALL), "is a pipe or a device"
    yield ("embed", "a.jpg", "-o", "kept.npz", "--append", *SMALL), "archive of embeddings"
    yield ("embed", "a.jpg", "-o", "new.npz", "--append", "--overwrite", *SMALL), "give one of them"
    yield ("index", "photos", "-i", "kept_folder", *SMALL), "is not replaced"
    yield ("index", "empty", "-i", "new", *SMALL), "holds no pictures"
    yield ("index", "phtos", "-i", "new", *SMALL), "expected pictures"
    yield ("search", "a cat", "-i", "new", "--where", "__import__('os')"), "is no condition"
    yield ("search", "a cat", "-i", "new", "--image", "lost.jpg"), "there is no lost.jpg"
    yield (
        ("convert", "small.safetensors", "-o", "small.safetensors", "--overwrite"),
        "would be replaced by what is made",
    )
    yield ("convert", "small.safetensors", "-o", "new.safetensors", "--to", "torch"), ""
    yield ("convert", "small.safetensors", "-o", "new.safetensors", "--precision", "int8"), ""
    yield ("convert", "small.safetensors", "-o", "new.safetensors", "--tower", "audio"), ""
    yield ("convert", "small.safetensors", "-o", "new.pt"), "must end with .safetensors"
    yield ("convert", "tower.safetensors", "-o", "new.safetensors", "--tower", "text"), "not the text tower"
    yield ("convert", "small.safetensors", "-o", "new.npz", "--to", "official"), "must end with"
    yield ("export", "small.safetensors", "--target", "onx", "-o", "new"), "did you mean"
    yield ("export", "small.safetensors", "--target", "torch"), ""
    yield ("export", "small.safetensors", "--target", "torch", "-o", "kept_folder"), "there already"
    yield ("export", "small.safetensors", "--target", "torch", "-o", "kept_export"), "--overwrite"
    yield ("export", "small.safetensors", "--target", "torch", "-o", "kept_folder", "--overwrite"), "not replaced"
    yield ("export", "small.safetensors", "--target", "torch", "-o", "a.jpg"), "is a file"
    yield ("export", "small.safetensors", "--target", "torch", "-o", "a.jpg/x"), "is no folder"
    yield ("export", "small.safetensors", "--target", "torch", "-o", "new", "--precision", "fp8"), ""
    yield ("export", "tower.safetensors", "--target", "torch", "-o", "new", "--tower", "text"), "no text tower"
    for folder in ("lost", "a.jpg", "empty", "photos", "kept_export", "", "pipe", "loop"):
        yield ("verify", folder), ""
    for directory in ("lost", "a.jpg", "empty", "", "pipe", "loop"):
        yield ("data", "check", directory), ""
    for shard in ("lost.tar", "torn.tar", "photos", "a.jpg", "", "pipe", "loop", "/dev/null", "gopher://a/b.tar"):
        yield ("data", "inspect", shard), ""
    yield ("data", "inspect", "reinforced.tar", "--key", "nobody"), ""
    for reinforced, images, output in (
        ("lost.tar", "reinforced.tar", "new"),
        ("reinforced.tar", "lost.tar", "new"),
        ("reinforced.tar", "reinforced.tar", "."),
        ("reinforced.tar", "reinforced.tar", "a.jpg"),
        ("reinforced.tar", "reinforced.tar", "torn_shards"),
        ("reinforced.tar", "reinforced.tar", "a.jpg/x"),
        ("{0..", "reinforced.tar", "new"),
        ("gopher://a/b.tar", "reinforced.tar", "new"),
    ):
        yield ("data", "join", reinforced, images, output, "--quiet"), ""
    yield ("data", "join", "reinforced.tar", "reinforced.tar", "new", "--placeholder-threshold", "1"), "at least 2"
    yield ("data", "join", "reinforced.tar", "reinforced.tar", "new", "--placeholder-threshold", "nan"), ""
    yield ("eval", "small.safetensors", "small.safetensors", "classes"), "two models would be called 'small'"
    yield ("eval", "x=small.safetensors", "x=folded.safetensors", "classes"), "two models would be called 'x'"
    yield ("eval", "classes"), "no model to evaluate"
    yield ("eval", "small.safetensors", "classes", "classes"), "repeated: classes"
    yield ("eval", "small.safetensors", "vtab/pest"), ""
    yield ("eval", "small.safetensors", "--datasets", "vtab/pest"), "did you mean 'vtab/pets'"
    yield ("eval", "small.safetensors", "--datasets", "vtab/pets", "--data", "lost"), "vtab/pets is not in lost"
    yield ("eval", "small.safetensors", "--suite", "slow"), ""
    yield ("eval", "small.safetensors", "--suite", "quick", "--data", "photos"), "is not in photos"
    yield ("eval", "small.safetensors", "classes", "--compare-published", "mobileclip_s9"), "mobileclip_s9"
    yield ("eval", "small.safetensors", "classes", "--output", "a.jpg"), "is no folder"
    yield ("eval", "small.safetensors", "classes", "--output", "s3://bucket/x"), ""
    yield ("eval", "small.safetensors", "classes", "--precision", "float8"), ""
    for results in ("lost.jsonl", "nan.jsonl", "keyless.jsonl", "list.jsonl", "deep.jsonl", "photos", "pipe", "a.jpg"):
        yield ("eval", "report", results), ""
    yield ("eval", "report", "-m", "mobileclip_s9"), "mobileclip_s9"
    yield ("nonsense",), ""
    yield ("data", "nonsense"), ""
    yield ("",), ""


def _right() -> Iterator[tuple[str, Callable[[Path], Outcome]]]:
    yield "classify a picture", _classify
    yield "embed a folder with a torn picture", _embed
    yield "embed a picture whose name is no UTF-8", _embed_bytes
    yield "convert a folded checkpoint", _convert
    yield "index a folder with torn videos", _index_videos
    yield "list and describe", _describe


def _classify(folder: Path) -> Outcome:
    done = accepted(folder, ["classify", "a.jpg", "a cat", "\x1b[2J", "--device", "auto", "-m", "folded.safetensors"])
    assert "\x1b" not in done.output
    assert len(done.output.splitlines()) == 2
    return "accepted"


def _embed(folder: Path) -> Outcome:
    done = accepted(folder, ["embed", "photos", "-o", "new.npz", *SMALL], new="new.npz", status=1)
    assert "left out 1 of 3 images" in done.errors
    assert "torn.png" in done.errors
    read = read_embeddings(folder / "new.npz")
    assert [Path(path).name for path in read.image_paths] == ["a.jpg", "b.png"]
    assert len(read.image) == 2
    return "accepted"


def _embed_bytes(folder: Path) -> Outcome:
    name = os.fsdecode(b"caf\xe9.png")
    accepted(folder, ["embed", name, "-o", "new.npz", *SMALL], new="new.npz")
    assert read_embeddings(folder / "new.npz").image_paths == (name,)
    return "accepted"


def _convert(folder: Path) -> Outcome:
    accepted(folder, ["convert", "folded.safetensors", "-o", "new.safetensors"], new="new.safetensors")
    return "accepted"


def _index_videos(folder: Path) -> Outcome:
    before = enter(folder)
    film(folder / "films" / "whole.mp4", [1, 2])
    whole = (folder / "films" / "whole.mp4").read_bytes()
    for name, content in (
        ("torn.mp4", whole[:200]),
        ("text.mkv", b"no video"),
        ("empty.mov", b""),
        ("\x1b[2J.avi", b"x"),
    ):
        (folder / "films" / name).write_bytes(content)
    done = run_command(["index", "films", "-i", "new", "--video-seconds", "2", *SMALL])
    assert done.status == 1
    assert "2 pictures in the index: 2 encoded, 4 cannot be read" in done.output
    assert "Traceback" not in done.errors
    assert "\x1b[2J.avi" not in done.errors
    assert all(name in done.errors for name in ("torn.mp4", "text.mkv", "empty.mov"))
    assert {name: one for name, one in contents(folder).items() if name in before} == before
    return "accepted"


def _describe(folder: Path) -> Outcome:
    assert "mobileclip_s2" in accepted(folder, ["list"]).output
    return "accepted"
