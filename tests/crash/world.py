"""Every command that writes, on inputs so small that it takes a second: what is killed, and compared afterwards."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import attrs
from PIL import Image

from mobileclip.encoders import save_model
from tests.collections.pictures import draw, telling
from tests.crash.compared import contents
from tests.encoders.small import SMALL, randomised
from tests.preloaded import Ended, preloaded
from tests.survives import Moment

MODEL = "model.safetensors"
_COLOURS = ("red", "green", "blue")
_CLASSES = ("circle", "square", "bar")
SECONDS = 300.0


@attrs.frozen(kw_only=True)
class Command:
    """A command that writes.

    Args:
        arguments: what is typed behind `mobileclip`; or what is given to `function`.
        prepare: makes its input in an empty folder.
        function: that is called in place of the console command.
        before: command lines that have been run before, on the same folder.
        change: what a person has changed since.
    """

    arguments: tuple[str, ...]
    prepare: Callable[[Path], None]
    function: str = "tests.preloaded:command"
    before: tuple[tuple[str, ...], ...] = ()
    change: Callable[[Path], None] | None = None

    def make(self, folder: Path) -> None:
        """Fill an empty folder with what there is before the command is run."""
        self.prepare(folder)
        for line in self.before:
            ended = preloaded().call("tests.preloaded:command", *line, folder=folder, seconds=SECONDS)
            assert ended.status == 0, ended.output
        if self.change is not None:
            self.change(folder)

    def contents(self, folder: Path) -> Mapping[str, str]:
        """Return what there is afterwards."""
        return contents(folder)

    def run(self, folder: Path, moment: Moment | None = None) -> Ended:
        """Run it there, and kill it before an operation."""
        return preloaded().call(
            self.function,
            *self.arguments,
            folder=folder,
            watched=folder,
            kill_before=0 if moment is None else moment.operation,
            seconds=SECONDS,
            environment={"HOME": str(folder / "home"), "XDG_CACHE_HOME": str(folder / "home" / "cache")},
        )


def _pictures(folder: Path) -> None:
    save_model(telling(), folder / MODEL)
    for number in range(6):
        draw(folder / "photos" / f"{number}.png", number)
    shutil.copy(folder / "photos" / "1.png", folder / "photos" / "copy.png")


def _two_models(folder: Path) -> None:
    _texts_and_images(folder)
    save_model(telling(3), folder / "other.safetensors")


def _texts_and_images(folder: Path) -> None:
    _texts(folder)
    _pictures(folder)


def _moved_pictures(folder: Path) -> None:
    """Remove, rename, change and add pictures."""
    photos = folder / "photos"
    (photos / "0.png").unlink()
    (photos / "2.png").rename(photos / "moved.png")
    draw(photos / "3.png", 30)
    draw(photos / "new.png", 31)
    for path in photos.iterdir():
        os.utime(path, (1_700_000_000, 1_700_000_000))


def _classes(folder: Path) -> None:
    save_model(telling(), folder / MODEL)
    for place, name in enumerate(_CLASSES):
        (folder / "classes" / name).mkdir(parents=True)
        for number in range(4):
            colour = tuple(60 * (place + 1) + 10 * number if side == place else 20 * number for side in range(3))
            Image.new("RGB", (40, 40), colour).save(folder / "classes" / name / f"{number}.png")


def _classes_to_train(folder: Path) -> None:
    _classes(folder)
    save_model(randomised(SMALL, seed=0), folder / MODEL)  # the other's weights are too large to train


def _captions(folder: Path) -> None:
    for number in range(3):
        draw(folder / "captions" / f"{number}.png", number)
        (folder / "captions" / f"{number}.txt").write_text(f"a red kite over {number} old hills", encoding="utf-8")


def _model(folder: Path) -> None:
    save_model(telling(), folder / MODEL)


def _texts(folder: Path) -> None:
    _model(folder)
    (folder / "texts.txt").write_text("a red kite\nan old hill\n", encoding="utf-8")


def _known(folder: Path) -> None:
    _model(folder)
    output = {"model": "telling", "source": "a test", "texts": ["a cat"], "first": [0.5], "tolerance": 2.0}
    (folder / "known.json").write_text(json.dumps({"outputs": [output]}), encoding="utf-8")


def _reinforced(folder: Path) -> None:
    from tests.training.program import write_data

    write_data(folder / "data")


def _to_reinforce(folder: Path) -> None:
    from tests.reinforce.program import write_spec

    write_spec(folder, num_shards=2, num_samples=3)


def _to_join(folder: Path) -> None:
    from tests.datasets.joining.world import Data

    Data(folder)


_INDEX = ("index", "photos", "-i", "idx", "-m", MODEL, "-j", "1", "--quiet")
_TAG = ("tag", "--index", "idx", "--vocabulary", "texts.txt", "--quiet")
_CONCEPT = ("concept", "add", "my own", "--positive", "photos/1.png", "--index", "idx")
_FILTER = ("data", "filter", "scores", "-o", "kept.npy", "--share", "0.5", "--overwrite")
_SCORE = ("data", "score", "data/{00000000..00000003}.tar", "-o", "scores", "--keep-vectors", "-j", "1", "--quiet")
_EXPORT = ("export", MODEL, "--tower", "text", "-o", "out", "--overwrite", "--target")
_ONNX = (*_EXPORT, "onnx")
_SAVE = ("hub", "save", MODEL, "-o", "saved", "--license", "mit", "--overwrite")

COMMANDS = {
    "index": Command(prepare=_pictures, arguments=_INDEX),
    "index again": Command(prepare=_pictures, before=(_INDEX,), change=_moved_pictures, arguments=_INDEX),
    "upgrade": Command(
        prepare=_two_models,
        before=(_INDEX, _TAG, _CONCEPT),
        arguments=("upgrade", "--index", "idx", "--to", "other.safetensors", "--quiet"),
    ),
    "tag": Command(
        prepare=_texts_and_images,
        before=(_INDEX,),
        arguments=_TAG,
    ),
    "concept": Command(
        prepare=_pictures,
        before=(_INDEX,),
        arguments=_CONCEPT,
    ),
    "dedup": Command(
        prepare=_pictures,
        arguments=(
            *("dedup", "photos", "-i", "idx", "-m", MODEL, "-j", "1", "--quiet", "--threshold", "0.9"),
            *("-o", "double.jsonl", "-o", "double.html", "--overwrite"),
        ),
    ),
    "embed": Command(prepare=_pictures, arguments=("embed", "photos", "-o", "a/e.npz", "-m", MODEL, "--overwrite")),
    "reinforce": Command(
        prepare=_to_reinforce, arguments=("spec.json", "inline", "1"), function="tests.reinforce.program:main"
    ),
    "data join": Command(
        prepare=_to_join,
        arguments=(
            *("data", "join", "reinforced/{00000..00002}.tar", "images/{00000..00003}.tar", "-o", "joined"),
            *("--quiet", "-j", "1"),
        ),
    ),
    "data score": Command(prepare=_reinforced, arguments=_SCORE),
    "data filter": Command(prepare=_reinforced, before=(_SCORE,), arguments=_FILTER),
    "train": Command(
        prepare=_reinforced, arguments=("data", "trained", "6", "0"), function="tests.training.program:main"
    ),
    "distil": Command(
        prepare=_texts,
        arguments=(
            *("train", "distil_text", "-m", MODEL, "--data", "texts.txt", "--kind", "teacher"),
            *("--steps", "2", "--batch-size", "2", "-o", "out", "--device", "cpu", "--quiet"),
        ),
    ),
    "finetune": Command(
        prepare=_classes_to_train,
        arguments=(
            *("finetune", "--checkpoint", MODEL, "--data", "classes", "--epochs", "1", "--batch-size", "4"),
            *("--held-out", "0.3", "--output", "tuned", "--device", "cpu", "--alphas", "0", "1"),
        ),
    ),
    "eval": Command(prepare=_classes, arguments=("eval", MODEL, "classes", "--output", "results", "--report")),
    "eval orders": Command(prepare=_captions, arguments=("eval", "orders", "captions", "--output", "results")),
    "export": Command(prepare=_model, arguments=_ONNX),
    "export over": Command(prepare=_model, before=(_ONNX,), arguments=_ONNX),
    "convert": Command(
        prepare=_model, arguments=("convert", MODEL, "-o", "b/model.pt", "--to", "official", "--overwrite")
    ),
    "check-weights": Command(
        prepare=_known,
        arguments=(
            "check-weights",
            "telling",
            "-c",
            MODEL,
            "--known",
            "known.json",
            "-o",
            "b/weights.json",
            "--overwrite",
        ),
    ),
    "hub save": Command(prepare=_model, arguments=_SAVE),
    "hub save over": Command(prepare=_model, before=(_SAVE,), arguments=_SAVE),
}

# Written by libraries of their own, each in its own way.
EXPORTS = {
    f"export {target}": Command(prepare=_model, arguments=(*_EXPORT, target))
    for target in ("torch", "openvino", "executorch")
}
