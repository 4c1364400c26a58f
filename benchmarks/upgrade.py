"""What an index finds while it is brought to another model: recall over the share of pictures that are encoded anew.

Command:   python -m benchmarks upgrade --old icons@24 OLD.safetensors --output outputs/upgrade.json
Hardware:  any CPU; one thread
Time:      some minutes on one core for each old model
Result:    recall by the share, by how that was chosen and by the shortlist; beside it `.jsonl`, a line each, and `.png`

The drawings are those of `python -m examples.icons` that training never saw, and each is asked for by its name. A half
of the names is asked in a random order, and each query has pictures encoded anew and kept; the recall is that of the
other half. Or names are drawn by Zipf's law, both those that are asked before and those that count. Beside use, the
share is chosen by chance, in the index's order, by how often pictures are in shortlists of names, and over clusters.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from itertools import chain, zip_longest
from pathlib import Path
from typing import ClassVar

import attrs
import numpy as np
from attrs import validators
from numpy.typing import NDArray
from PIL import Image

import mobileclip
from benchmarks.harness import Bench, Case, Row, Value
from benchmarks.harness.results import Results
from benchmarks.upgrade_curve import DRAWN_WAYS, draw, write_lines
from examples.quickstart.spec import student
from mobileclip.collections.UNKNOWN import depth, joined, query_map, shortlisted
from mobileclip.data.images.transform import ImageSource
from mobileclip.data.shards.files import read_shard
from mobileclip.data.skips import SkipReport
from mobileclip.encoders import save_model
from mobileclip.inference.image_text_model import ImageTextModel

_PARTS = ("test_set", "test_names", "test_pictures")
_FIRST = 5
_HALF = 0.5
# As the library has it: the map of queries, from so many pictures on, made anew when there are so many times more.
_FEWEST, _GROWN = 100, 1.125
# Of the pictures, use chooses no more: the last few take as many queries as all others.
_MOST = 0.75
Matrix = NDArray[np.float32]
Places = NDArray[np.int64]
Mask = NDArray[np.bool_]


@attrs.frozen(kw_only=True)
class UpgradeBenchSpec(Bench):
    """What is measured.

    Args:
        data: what `python -m examples.icons` has made.
        old: models of before: checkpoints, such as the study trains, or NAME@PIXELS for a model on smaller pictures.
        new: name of the other model.
        shares: of the pictures that are encoded anew, at which the recall is told.
        shortlist: pictures of a query that are encoded anew for it.
        kept: pictures that each query of the stream has encoded anew.
        num_asked: names whose recall is told, for each seed.
        num_seeds: orders of the queries.
    """

    data: Path = Path("outputs/icons")
    old: tuple[str, ...] = ("icons@24",)
    new: str = "icons"
    shares: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    shortlist: int = attrs.field(default=50, validator=validators.gt(0))
    kept: int = attrs.field(default=20, validator=validators.gt(0))
    num_asked: int = attrs.field(default=200, validator=validators.gt(0))
    num_seeds: int = attrs.field(default=3, validator=validators.gt(0))
    threads: int | None = 1

    smallest: ClassVar[Mapping[str, object]] = {"shares": (0.0, 0.5, 1.0), "shortlist": 5, "num_seeds": 1}

    def cases(self) -> Iterator[Case]:
        """Yield each old model."""
        for old in self.old:
            yield Case(labels={"old": Path(old).stem}, measure=partial(measure, self, old))

    def finish(self, results: Results) -> None:
        """Write the lines and the picture."""
        if self.output is not None:
            write_lines(self.output.with_suffix(".jsonl"), results.rows)
            draw(self.output.with_suffix(".jsonl"), self.output.with_suffix(".png"))


@attrs.frozen(kw_only=True, eq=False)
class Space:
    """Embeddings of the pictures and of the different names in one space, of unit length."""

    images: Matrix
    texts: Matrix

    @cached_property
    def scores(self) -> Matrix:
        """Similarity of each name with each picture."""
        similar: Matrix = self.texts @ self.images.T
        return similar

    @cached_property
    def order(self) -> Places:
        """Places of the pictures, for each name, the nearest first."""
        return np.argsort(-self.scores, axis=1, kind="stable")


@attrs.frozen(kw_only=True, eq=False)
class Spaces:
    """Both spaces, and which pictures have which name."""

    old: Space
    new: Space
    relevant: Mask

    def shortlist(self, name: int, done: Mask, count: int, mapping: Matrix | None) -> Places:
        """Return what a query has encoded anew, as the library proposes it; by the old query alone without a map."""
        most = depth(count, done)
        rankings = [self.old.order[name, :most]]
        if mapping is not None:
            rankings.append(np.argsort(-(self.old.images @ (mapping @ self.new.texts[name])))[:most])
        return shortlisted(rankings, done, count)

    def mapping(self, done: Mask) -> Matrix | None:
        """Return the map of queries that some pictures give; none of few."""
        if np.count_nonzero(done) < _FEWEST:
            return None
        return query_map(self.old.images[done], self.new.images[done])

    def found(self, name: int, done: Mask) -> Places:
        """Return the first pictures."""
        order, proposed = self.new.order[name], self.old.order[name, :_FIRST]
        ranked = order[done[order]][:_FIRST]
        both = ((ranked, self.new.scores[name, ranked]), (proposed, self.old.scores[name, proposed]))
        return joined(*both, done, _FIRST)[0]

    def recalls(self, asked: Places, done: Mask, count: int, *, is_curve: bool) -> dict[str, float]:
        """Return the share of names of which a picture is among the first, in per cent, by the shortlist.

        Args:
            asked: names.
            done: pictures that are encoded anew.
            count: of the shortlist, which is encoded anew too.
            is_curve: whether the shortlists that curves are drawn of are enough.
        """
        fitted = self.mapping(done)
        shortlists: dict[str, Callable[[int], Places]] = {
            "none": lambda _: np.empty(0, np.int64),
            f"first {count}": lambda name: self.old.order[name, :count],
            **({} if is_curve else {f"{count} more": lambda name: self.shortlist(name, done, count, None)}),
            f"{count} more, by both queries": lambda name: self.shortlist(name, done, count, fitted),
        }
        told = {}
        for title, shortlist in shortlists.items():
            hits = 0
            for name in asked:
                now = done.copy()
                now[shortlist(name)] = True
                hits += self.relevant[name, self.found(name, now)].any()
            told[title] = 100 * hits / len(asked)
        return told

    def mapped(self, asked: Places, done: Mask) -> dict[str, float]:
        """Return the recall where pictures that are not encoded anew have the score of a mapped query in its place."""
        if np.count_nonzero(done) < _FEWEST:
            return {}
        x, y = (space.images[done] for space in (self.old, self.new))
        left, _, right = np.linalg.svd((x - x.mean(0)).T @ (y - y.mean(0)))
        told = {}
        for title, matrix in (("none, rotated query", left @ right), ("none, affine query", query_map(x, y))):
            moved = (self.old.images - x.mean(0)) @ matrix + y.mean(0)
            moved /= np.linalg.norm(moved, axis=1, keepdims=True)
            scores = np.where(done, self.new.scores[asked], self.new.texts[asked] @ moved.T)
            first = np.argsort(-scores, axis=1, kind="stable")[:, :_FIRST]
            told[title] = 100 * float(self.relevant[asked[:, None], first].any(1).mean())
        return told


def measure(spec: UpgradeBenchSpec, old: str) -> Iterator[Row]:
    """Yield the recall by the share that is encoded anew, and the means over the seeds."""
    spaces = _drawn() if spec.tiny else _encoded(spec, old)
    num_names, num_pictures = spaces.relevant.shape
    found: dict[tuple[str, str, float, str], list[float]] = {}
    for seed in range(spec.num_seeds):
        chance = np.random.default_rng(seed)
        stream, asked = np.array_split(chance.permutation(num_names), 2)
        zipf = chance.permutation(1 / np.arange(1, num_names + 1))
        zipf /= zipf.sum()
        often, wanted = (chance.choice(num_names, size, p=zipf) for size in (num_pictures, spec.num_asked))
        ways = {("new names", way): order for way, order in _orders(spaces, stream, spec.kept, chance).items()}
        for mapped, way in ((False, "use, old query"), (True, "use, both queries")):
            ways["Zipf", way] = _by_use(spaces, often, spec.kept, mapped=mapped)
        ways["Zipf", "chance"] = ways["new names", "chance"]
        for (queries, way), order in ways.items():
            names = asked[: spec.num_asked] if queries == "new names" else wanted
            for share in spec.shares:
                # Of no pictures and of all, it does not matter what chooses them.
                is_drawn = share == _HALF or way == "chance" or (way in DRAWN_WAYS and 0 < share < 1)
                if not is_drawn or len(order) < round(share * num_pictures):
                    continue
                done = np.zeros(num_pictures, bool)
                done[order[: round(share * num_pictures)]] = True
                told = spaces.recalls(names, done, spec.shortlist, is_curve=share != _HALF)
                told |= spaces.mapped(names, done) if way == "chance" and share == _HALF else {}
                for shortlist, recall in told.items():
                    found.setdefault((queries, way, share, shortlist), []).append(recall)
    for (queries, way, share, shortlist), recalls in found.items():
        case = {"pictures": f"{num_pictures:,}", "queries": queries, "chosen by": way, "share": f"{share:.0%}"}
        value = Value(number=float(np.mean(recalls)), unit="%", low=min(recalls), high=max(recalls))
        yield Row(case={**case, "shortlist": shortlist}, values={"recall": value})


def _orders(spaces: Spaces, stream: Places, kept: int, chance: np.random.Generator) -> dict[str, Places]:
    """Return orders in which pictures are encoded anew, by what chooses them."""
    num_pictures = spaces.relevant.shape[1]
    use = _by_use(spaces, stream, kept, mapped=True)
    random = chance.permutation(num_pictures)
    often = np.bincount(spaces.old.order[stream, : 2 * kept].ravel(), minlength=num_pictures)
    mixed = dict.fromkeys(chain.from_iterable(zip(use.tolist(), random.tolist(), strict=False)))
    return {
        "use, old query": _by_use(spaces, stream, kept, mapped=False),
        "use, both queries": use,
        "chance": random,
        "use and chance": np.array(list(mixed), np.int64),
        "order of the index": np.arange(num_pictures),
        "shortlists of names": np.argsort(-(often + chance.random(num_pictures)), kind="stable"),
        "clusters": _over_clusters(spaces.old.images, chance),
    }


def _by_use(spaces: Spaces, stream: Places, kept: int, *, mapped: bool) -> Places:
    """Return the pictures that queries have encoded anew, in their order."""
    done = np.zeros(spaces.relevant.shape[1], bool)
    order: list[int] = []
    mapping, fitted = None, 0
    for name in stream:
        if mapped and len(order) >= max(_FEWEST, _GROWN * fitted):
            mapping, fitted = spaces.mapping(done), len(order)
        places = spaces.shortlist(name, done, kept, mapping)
        done[places] = True
        order += places.tolist()
        if len(order) >= _MOST * len(done):
            break
    return np.array(order, np.int64)


def _over_clusters(images: Matrix, chance: np.random.Generator, count: int = 50) -> Places:
    """Return pictures in turn of each cluster of k-means."""
    centres = images[chance.permutation(len(images))[:count]]
    for _ in range(10):
        nearest = np.argmax(images @ centres.T, axis=1)
        centres = np.stack(
            [images[nearest == one].sum(0) if (nearest == one).any() else centres[one] for one in range(len(centres))]
        )
        centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    clusters = [chance.permutation(np.flatnonzero(nearest == one)).tolist() for one in range(len(centres))]
    return np.array([one for turn in zip_longest(*clusters) for one in turn if one is not None], np.int64)


def _encoded(spec: UpgradeBenchSpec, old: str) -> Spaces:
    """Return the spaces of drawings and their names."""
    drawings, names = unseen_drawings(spec.data)
    name, _, pixels = old.partition("@")
    before = mobileclip.load(name, image_size=int(pixels)) if pixels else mobileclip.load(checkpoint=old)
    return _spaces((before, mobileclip.load(spec.new)), drawings, names)


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
    """Return the spaces of a few squares."""
    with tempfile.TemporaryDirectory() as folder:
        save_model(student().build(), Path(folder) / "model.safetensors")
        clip = mobileclip.load(checkpoint=Path(folder) / "model.safetensors")
    squares = [Image.new("RGB", (48, 48), (20 * number, 0, 90)) for number in range(12)]
    return _spaces((clip, clip), squares, [f"square {number}" for number in range(12)])


def _spaces(
    clips: tuple[ImageTextModel, ImageTextModel], drawings: Sequence[ImageSource], names: Sequence[str]
) -> Spaces:
    different = sorted(set(names))
    texts = [f"a drawing of {name}" for name in different]
    old, new = (
        Space(images=clip.encode_image(drawings).numpy(), texts=clip.encode_text(texts).numpy()) for clip in clips
    )
    return Spaces(old=old, new=new, relevant=np.array(different)[:, None] == np.array(names))
