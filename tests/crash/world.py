"""Every command that writes, on inputs so small that it takes a second: what is killed, and compared afterwards."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import attrs
from PIL import Image

from mobileclip.encoders import save_model
from tests.collections.pictures import draw, telling
from tests.crash.compared import contents
from tests.datasets.joining.world import Data
from tests.encoders.small import SMALL, randomised
from tests.preloaded import Ended, preloaded
from tests.reinforce.program import write_spec
from tests.survives import Moment
from tests.training.program import write_data

MODEL = "model.safetensors"
SECONDS = 300.0


@attrs.frozen
class Command:
    """A command that writes.

    Args:
        prepare: makes its input in an empty folder.
        arguments: what is typed behind `mobileclip`; or what is given to `function`.
        before: command lines that have been run before, on the same folder.
        change: what a person has changed since.
        function: that is called in place of the console command.
    """

    prepare: Callable[[Path], object]
    arguments: list[str] = attrs.field(converter=str.split)
    before: tuple[str, ...] = ()
    change: Callable[[Path], object] | None = None
    function: str = "tests.preloaded:command"
    contents = staticmethod(contents)

    def make(self, folder: Path) -> None:
        """Fill an empty folder with what there is before the command is run."""
        self.prepare(folder)
        for line in self.before:
            ended = preloaded().call("tests.preloaded:command", *line.split(), folder=folder, seconds=SECONDS)
            assert ended.status == 0, ended.output
        if self.change is not None:
            self.change(folder)

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


def _model(folder: Path) -> None:
    save_model(telling(), folder / MODEL)


def _texts(folder: Path) -> None:
    _model(folder)
    (folder / "texts.txt").write_text("a red kite\nan old hill\n", encoding="utf-8")


def _pictures(folder: Path) -> None:
    _texts(folder)
    for number in range(6):
        draw(folder / "photos" / f"{number}.png", number)
    shutil.copy(folder / "photos" / "1.png", folder / "photos" / "copy.png")


def _two_models(folder: Path) -> None:
    _pictures(folder)
    save_model(telling(3), folder / "other.safetensors")


def _move_pictures(folder: Path) -> None:
    """Remove, rename, change and add pictures."""
    photos = folder / "photos"
    (photos / "0.png").unlink()
    (photos / "2.png").rename(photos / "moved.png")
    draw(photos / "3.png", 30)
    draw(photos / "new.png", 31)
    for path in photos.iterdir():
        os.utime(path, (1_700_000_000, 1_700_000_000))


def _classes(folder: Path) -> None:
    _model(folder)
    for place, name in enumerate(("circle", "square", "bar")):
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


def _known(folder: Path) -> None:
    _model(folder)
    output = {"model": "telling", "source": "a test", "texts": ["a cat"], "first": [0.5], "tolerance": 2.0}
    (folder / "known.json").write_text(json.dumps({"outputs": [output]}), encoding="utf-8")


def _reinforced(folder: Path) -> None:
    write_data(folder / "data")


_INDEX = f"index photos -i idx -m {MODEL} -j 1 --quiet"
_TAG = "tag --index idx --vocabulary texts.txt --quiet"
_CONCEPT = "concept add mine --positive photos/1.png --index idx"
_UPGRADE = "upgrade --index idx --to other.safetensors --quiet"
_DEDUP = f"dedup photos -i idx -m {MODEL} -j 1 --quiet --threshold 0.9 -o double.jsonl -o double.html --overwrite"
_JOIN = "data join reinforced/{00000..00002}.tar images/{00000..00003}.tar -o joined --quiet -j 1"
_SCORE = "data score data/{00000000..00000003}.tar -o scores --keep-vectors -j 1 --quiet"
_DISTIL = f"train distil_text -m {MODEL} --data texts.txt --kind teacher -o out --device cpu --quiet"
_FINETUNE = f"finetune --checkpoint {MODEL} --data classes --epochs 1 --batch-size 4 --held-out 0.3 --output tuned"
_EXPORT = f"export {MODEL} --tower text -o out --overwrite --target"
_SAVE = f"hub save {MODEL} -o saved --license mit --overwrite"

COMMANDS = {
    "index": Command(_pictures, _INDEX),
    "index again": Command(_pictures, _INDEX, before=(_INDEX,), change=_move_pictures),
    "upgrade": Command(_two_models, _UPGRADE, before=(_INDEX, _TAG, _CONCEPT)),
    "tag": Command(_pictures, _TAG, before=(_INDEX,)),
    "concept": Command(_pictures, _CONCEPT, before=(_INDEX,)),
    "dedup": Command(_pictures, _DEDUP),
    "embed": Command(_pictures, f"embed photos -o a/e.npz -m {MODEL} --overwrite"),
    "reinforce": Command(
        partial(write_spec, num_shards=2, num_samples=3), "spec.json inline 1", function="tests.reinforce.program:main"
    ),
    "data join": Command(Data, _JOIN),
    "data score": Command(_reinforced, _SCORE),
    "data filter": Command(_reinforced, "data filter scores -o kept.npy --share 0.5 --overwrite", before=(_SCORE,)),
    "train": Command(_reinforced, "data trained 6 0", function="tests.training.program:main"),
    "distil": Command(_texts, f"{_DISTIL} --steps 2 --batch-size 2"),
    "finetune": Command(_classes_to_train, f"{_FINETUNE} --device cpu --alphas 0 1"),
    "eval": Command(_classes, f"eval {MODEL} classes --output results --report"),
    "eval orders": Command(_captions, "eval orders captions --output results"),
    "export": Command(_model, f"{_EXPORT} onnx"),
    "export over": Command(_model, f"{_EXPORT} onnx", before=(f"{_EXPORT} onnx",)),
    "convert": Command(_model, f"convert {MODEL} -o b/model.pt --to official --overwrite"),
    "check-weights": Command(
        _known, f"check-weights telling -c {MODEL} --known known.json -o b/weights.json --overwrite"
    ),
    "hub save": Command(_model, _SAVE),
    "hub save over": Command(_model, _SAVE, before=(_SAVE,)),
}

# Written by libraries of their own, each in its own way.
EXPORTS = {f"export {target}": Command(_model, f"{_EXPORT} {target}") for target in ("torch", "openvino", "executorch")}
