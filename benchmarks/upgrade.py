"""What an index finds while it is upgraded by use: recall over the share of its pictures that are encoded anew.

Command:   python -m benchmarks upgrade --old OLD.safetensors        (data of `python -m examples.icons`)
Hardware:  any CPU; one thread
Time:      four minutes on one core, most of them to encode 2,500 drawings
Result:    recall of the old model, the new one, and of both spaces, by the share that is encoded anew and the shortlist

The drawings are those that training never saw. Each is asked for by its name. A half of the names is asked in a random
order, and each query has the first pictures of the old model encoded anew and kept; the recall is that of the other
half, whose own shortlist is encoded anew too. Beside it, the same share is chosen by chance.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar

import attrs
import numpy as np
from attrs import validators
from numpy.typing import NDArray
from PIL import Image

import mobileclip
from benchmarks.harness import Bench, Case, Row, Value
from examples.quickstart.spec import student
from mobileclip.collections.searching.two_spaces import joined
from mobileclip.data.images.transform import ImageSource
from mobileclip.data.shards.files import read_shard
from mobileclip.data.skips import SkipReport
from mobileclip.encoders import save_model
from mobileclip.inference.image_text_model import ImageTextModel

_PARTS = ("test_set", "test_names", "test_pictures")
_FIRST = 5
Matrix = NDArray[np.float32]


@attrs.frozen(kw_only=True)
class UpgradeBenchSpec(Bench):
    """What is measured.

    Args:
        data: what `python -m examples.icons` has made.
        old: the checkpoint of the model of before; one that the quickstart trains, for instance.
        new: name of the other model.
        shares: of the pictures that are encoded anew, at which the recall is told.
        shortlists: pictures of a query that are encoded anew for it.
        kept: pictures that each query of the stream has encoded anew.
        num_seeds: orders of the queries.
    """

    data: Path = Path("outputs/icons")
    old: Path = Path("outputs/quickstart/model.safetensors")
    new: str = "icons"
    shares: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
    shortlists: tuple[int, ...] = (0, 50, 100)
    kept: int = attrs.field(default=20, validator=validators.gt(0))
    num_seeds: int = attrs.field(default=3, validator=validators.gt(0))
    threads: int | None = 1

    smallest: ClassVar[Mapping[str, object]] = {"shares": (0.0, 0.5, 1.0), "shortlists": (5,), "num_seeds": 1}

    def cases(self) -> Iterator[Case]:
        """Yield all of it."""
        yield Case(labels={"old": str(self.old), "new": self.new}, measure=partial(measure, self))


@attrs.frozen(kw_only=True, eq=False)
class Spaces:
    """Similarities of the pictures' names and the pictures, in both spaces; several pictures may have one name."""

    names: NDArray[np.str_]
    old: Matrix
    new: Matrix

    def recall(self, asked: NDArray[np.int64], done: NDArray[np.bool_], shortlist: int) -> float:
        """Return the share of names of which a picture is among the first.

        Args:
            asked: pictures whose names are asked for.
            done: pictures that are encoded anew.
            shortlist: of the old model, which is encoded anew too.
        """
        hits = 0
        for name in asked:
            nearest = np.argsort(-self.old[name], kind="stable")[: max(_FIRST, shortlist)]
            now = done.copy()
            now[nearest[:shortlist]] = True
            ranked = np.flatnonzero(now)
            ranked = ranked[np.argsort(-self.new[name, ranked], kind="stable")[:_FIRST]]
            proposed = nearest, self.old[name, nearest]
            found, _ = joined((ranked, self.new[name, ranked]), proposed, now, _FIRST)
            hits += self.names[name] in self.names[found]
        return hits / len(asked)


def measure(spec: UpgradeBenchSpec) -> Iterator[Row]:
    """Yield the recall by the share that is encoded anew, and the means over the seeds."""
    spaces = _drawn() if spec.tiny else _encoded(spec)
    found: dict[tuple[str, float, int], list[float]] = {}
    for seed in range(spec.num_seeds):
        draw = np.random.default_rng(seed)
        _, different = np.unique(spaces.names, return_index=True)
        stream, asked = np.array_split(draw.permutation(different), 2)
        by_chance = draw.permutation(len(spaces.old))
        for share in spec.shares:
            wanted = round(share * len(spaces.old))
            ways = {"by use": _by_use(spaces, stream, spec.kept, wanted), "by chance": by_chance[:wanted]}
            for way, places in ways.items():
                if len(places) < wanted:
                    continue  # the stream has found no more
                done = np.zeros(len(spaces.old), bool)
                done[places] = True
                for shortlist in spec.shortlists:
                    recall = spaces.recall(asked, done, shortlist)
                    found.setdefault((way, share, shortlist), []).append(100 * recall)
    for (way, share, shortlist), recalls in found.items():
        case = {"pictures": f"{len(spaces.old):,}", "chosen": way, "encoded anew": f"{share:.0%}"}
        value = Value(number=float(np.mean(recalls)), unit="%", low=min(recalls), high=max(recalls))
        yield Row(case={**case, "shortlist": str(shortlist)}, values={"recall": value})


def _by_use(spaces: Spaces, stream: NDArray[np.int64], kept: int, wanted: int) -> NDArray[np.int64]:
    """Return the pictures that queries have encoded anew until these are so many."""
    found: dict[int, None] = {}
    for name in stream:
        if len(found) >= wanted:
            break
        found.update(dict.fromkeys(np.argsort(-spaces.old[name], kind="stable")[:kept].tolist()))
    return np.array(list(found), np.int64)[:wanted]


def _encoded(spec: UpgradeBenchSpec) -> Spaces:
    """Return the similarities of drawings and their names."""
    drawings, names = unseen_drawings(spec.data)
    if not spec.old.is_file():
        raise SystemExit(f"there is no {spec.old}: run `make quickstart`, or give another with --old")
    models = (mobileclip.load(checkpoint=spec.old), mobileclip.load(spec.new))
    old, new = (_similar(clip, drawings, names) for clip in models)
    return Spaces(names=np.array(names), old=old, new=new)


def unseen_drawings(data: Path) -> tuple[list[bytes], list[str]]:
    """Return the drawings that training never saw, as they are encoded, and their names.

    Args:
        data: what `python -m examples.icons` has made.

    Raises:
        SystemExit: if there are none.
    """
    drawings: list[bytes] = []
    names: list[str] = []
    for shard in sorted(path for part in _PARTS for path in (data / part).glob("*.tar")):
        for raw in read_shard(str(shard), SkipReport(log=False).add):
            if raw.image is not None:
                drawings.append(raw.image)
                names.append(json.loads(raw.members["json"])["label"])
    if not drawings:
        raise SystemExit(f"there are no drawings in {data}: run `python -m examples.icons`")
    return drawings, names


def _drawn() -> Spaces:
    """Return the similarities of a few squares."""
    with tempfile.TemporaryDirectory() as folder:
        save_model(student().build(), Path(folder) / "model.safetensors")
        clip = mobileclip.load(checkpoint=Path(folder) / "model.safetensors")
    names = [f"square {number}" for number in range(12)]
    squares = [Image.new("RGB", (48, 48), (20 * number, 0, 90)) for number in range(12)]
    similar = _similar(clip, squares, names)
    return Spaces(names=np.array(names), old=similar, new=similar)


def _similar(clip: ImageTextModel, drawings: Sequence[ImageSource], names: Sequence[str]) -> Matrix:
    images = clip.encode_image(drawings).numpy()
    similar: Matrix = clip.encode_text([f"a drawing of {name}" for name in names]).numpy() @ images.T
    return similar
