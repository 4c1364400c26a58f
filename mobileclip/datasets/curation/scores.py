"""Scores the captions of a reinforced data set by cosine similarity with the image, for each teacher."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import attrs
import numpy as np
import numpy.typing as npt

from mobileclip import storage
from mobileclip.data.loading.uids import PAIR, Uids, uid_of
from mobileclip.data.samples.limits import SAMPLE_LIMITS, SampleLimits
from mobileclip.data.samples.members import parse_reinforced_sample
from mobileclip.data.samples.readers import Embeddings
from mobileclip.data.samples.sample import ReinforcedSample
from mobileclip.data.shards.files import Shards, expand_shards, parse, read_shard
from mobileclip.data.shards.sidecars import card_of_shards
from mobileclip.data.skips import CONNECTION_FAILED, Skip
from mobileclip.datasets.sources.shards import ShardUnit
from mobileclip.datasets.sources.tables import read_keys, text_column
from mobileclip.engines import Engine, FunctionWork, ResultCallback, SetAside, held
from mobileclip.extras import needed
from mobileclip.machine import raise_machine_fault
from mobileclip.progress import Progress
from mobileclip.registry import nearest
from mobileclip.strict import strict
from mobileclip.terminal import console, get_logger

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq


_TINY = np.finfo(np.float32).tiny


@attrs.frozen(kw_only=True, eq=False)
class Similarities:
    """Cosine similarities between a sample's image and its captions, as the mean over the stored augmentations.

    Shape:
        real, synthetic, best: (teachers,), float32.

    Args:
        real: similarity of the first real caption.
        synthetic: mean similarity of the synthetic captions; NaN if the sample has no synthetic captions.
        best: similarity of each teacher's best-matching synthetic caption; NaN if the sample has no synthetic captions.
    """

    real: Embeddings
    synthetic: Embeddings
    best: Embeddings


def columns_of(dims: Iterable[int]) -> tuple[slice, ...]:
    """Return the columns of each teacher in the stored embeddings."""
    stops = np.cumsum([0, *dims])
    return tuple(slice(int(start), int(stop)) for start, stop in itertools.pairwise(stops))


def similarities(sample: ReinforcedSample, teachers: Sequence[slice]) -> Similarities:
    """Return the similarities between a sample's captions and its image.

    Args:
        sample: sample with all its embeddings.
        teachers: columns of each teacher, see `columns_of`.
    """
    synthetic = [row for rows in sample.syn_text_emb.values() for row in rows]
    real = np.empty(len(teachers), np.float32)
    mean, best = np.full(len(teachers), np.nan, np.float32), np.full(len(teachers), np.nan, np.float32)
    for number, columns in enumerate(teachers):
        # The mean of the cosines equals the dot product with the mean of the unit vectors.
        image = _unit(sample.image_emb[:, columns]).mean(0)
        real[number] = _unit(sample.text_emb[:1, columns])[0] @ image
        if synthetic:
            fits = _unit(np.stack([row[columns] for row in synthetic])) @ image
            mean[number], best[number] = fits.mean(), fits.max()
    return Similarities(real=real, synthetic=mean, best=best)


def image_vector(sample: ReinforcedSample, teachers: Sequence[slice]) -> Embeddings:
    """Return a unit vector for an image; the dot product of two image vectors is the teachers' mean cosine similarity.

    Each teacher contributes the mean direction of the embeddings of the stored augmentations.

    Shape:
        (D,), float32.

    Args:
        sample: sample with all its embeddings.
        teachers: columns of each teacher, see `columns_of`.
    """
    parts = [_unit(_unit(sample.image_emb[:, columns]).mean(0, keepdims=True))[0] for columns in teachers]
    vector: Embeddings = np.concatenate(parts) * np.float32(len(parts) ** -0.5)
    return vector


def _unit(rows: Embeddings) -> Embeddings:
    unit: Embeddings = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), _TINY).astype(np.float32)
    return unit


Caption = Literal["real", "synthetic", "best"]
CAPTIONS: tuple[Caption, ...] = ("real", "synthetic", "best")
MEAN = "mean"
"""Teacher name that selects the mean over all teachers."""

logger = get_logger(__name__)

_ABOUT = "scores.json"
_SUFFIX = ".parquet"
# The next run retries a shard if an earlier run read none of it or an unknown share of it.
_FAILURES = ("unreadable_shard", "truncated_shard", CONNECTION_FAILED)


@attrs.frozen(kw_only=True, field_transformer=strict)
class ScoreSpec:
    """The settings of scoring: shards, and output folder.

    Args:
        shards: reinforced shards, with images or without: paths, URLs or patterns.
        output: local folder for the scores.
        vectors: whether to also store a float16 vector per image for near-duplicate search; a vector has the total dim
            of the teachers' embeddings.
        sample_limits: limits for reading a sample.
    """

    shards: Shards
    output: Path
    vectors: bool = False
    sample_limits: SampleLimits = SAMPLE_LIMITS


@attrs.frozen(kw_only=True)
class ScoreReport:
    """The result of scoring: samples with scores, skips by reason, and shards that failed.

    Args:
        num_samples: number of samples with scores, from this run and earlier runs.
        skipped: number of samples that this run skipped, by reason.
        failed: path and error message of every truncated or unreadable shard; the next run retries these shards.
    """

    num_samples: int
    skipped: Mapping[str, int]
    failed: tuple[tuple[str, str], ...]


@attrs.frozen(kw_only=True, eq=False)
class ShardScores:
    """The scores of the samples of one shard, read from disk on each access.

    Args:
        shard: path or URL of the shard.
        path: path of the Parquet file with the scores.
        teachers: names of the teachers.
    """

    shard: str
    path: Path
    teachers: tuple[str, ...]

    @property
    def uids(self) -> Uids:
        """Uids of the samples, in the shard's order."""
        texts = self._column("uid").combine_chunks()
        digits = bytes.fromhex(texts.buffers()[2].to_pybytes().decode()) if len(texts) else b""
        return np.frombuffer(digits, ">u8").astype("u8").view(PAIR)

    @property
    def keys(self) -> list[str]:
        """Keys of the samples, in the shard's order."""
        return read_keys(self._column("key"))

    def __len__(self) -> int:
        """Return the number of samples."""
        with self._opened() as file:
            return int(file.metadata.num_rows)

    def similarity(self, caption: Caption, teacher: str = MEAN) -> npt.NDArray[np.float32]:
        """Return the similarity between each sample's caption and image; NaN without a caption of the given kind.

        Shape:
            (samples,).

        Args:
            caption: `real`, `synthetic` for the mean over synthetic captions, or `best` for the best synthetic caption.
            teacher: name of a teacher, or `mean` for the mean over all teachers.

        Raises:
            ValueError: if the teacher is unknown, or the file is damaged.
        """
        if teacher == MEAN:
            means: npt.NDArray[np.float32] = self._column(caption).to_numpy()
            return means
        if teacher not in self.teachers:
            raise ValueError(
                f"there is no teacher {teacher!r}{nearest(teacher, self.teachers)}; expected {', '.join(self.teachers)}"
            )
        values = self._column(f"{caption}_by_teacher").combine_chunks().flatten().to_numpy()
        own: npt.NDArray[np.float32] = values.reshape(-1, len(self.teachers))[:, self.teachers.index(teacher)]
        return own

    @property
    def vectors(self) -> npt.NDArray[np.float16]:
        """Memory-mapped unit vectors of the images.

        Shape:
            (samples, D).

        Raises:
            ValueError: if the vectors are missing, or the numbers of vectors and samples differ.
        """
        path = _vectors_path(self.path)
        if not path.exists():
            raise ValueError(
                f"{path} is missing; score the shards with vectors: mobileclip data score ... --keep-vectors"
            )
        found: npt.NDArray[np.float16] = np.load(path, mmap_mode="r", allow_pickle=False)
        if found.ndim != 2 or len(found) != len(self):
            raise ValueError(
                f"{path} does not have one vector for each sample of {self.path}; delete both files and score the "
                "shard again"
            )
        return found

    @contextmanager
    def _opened(self) -> Iterator[pq.ParquetFile]:
        with needed(f"the scores {self.path}", "parquet"):
            import pyarrow as pa
            import pyarrow.parquet as pq
        try:
            with pq.ParquetFile(self.path) as file:
                yield file
        except (pa.ArrowException, OSError, ValueError, KeyError) as error:
            raise_machine_fault(error)
            raise ValueError(f"{self.path} is damaged ({error}); delete the file and score the shard again") from None

    def _column(self, name: str) -> pa.ChunkedArray:
        """Return a column without caching, because a data set may have a billion rows."""
        with self._opened() as file:
            return file.read([name])[name]


@attrs.frozen(kw_only=True, eq=False)
class Scores:
    """The scores in a folder, by shard.

    Args:
        folder: folder of the scores.
        teachers: name and dim of each teacher.
        shards: scored shards.
    """

    folder: Path
    teachers: tuple[tuple[str, int], ...]
    shards: tuple[ShardScores, ...]

    @staticmethod
    def open(folder: Path) -> Scores:
        """Open the scores in a folder.

        Raises:
            ValueError: if the folder has no scores, or the scores cannot be read.
        """
        about = _read_about(folder)
        if about is None:
            raise ValueError(f"{folder} holds no {_ABOUT}; make scores: `mobileclip data score SHARDS -o {folder}`")
        teachers = tuple(about["teachers"])
        names = tuple(name for name, _ in teachers)
        places = {shard: folder / f"{name}{_SUFFIX}" for name, shard in sorted(about["shards"].items())}
        there = ((shard, path) for shard, path in places.items() if path.exists())
        found = tuple(ShardScores(shard=shard, path=path, teachers=names) for shard, path in there)
        if not found:
            raise ValueError(f"{folder} has no scores of any shard; run `mobileclip data score` again")
        if len(found) < len(places):
            logger.warning("%d of %d shards in %s have no scores yet", len(places) - len(found), len(places), folder)
        return Scores(folder=folder, teachers=teachers, shards=found)


def score_shards(spec: ScoreSpec, *, engine: Engine | None = None, show_progress: bool = True) -> ScoreReport:
    """Score all samples of all shards that have no scores yet.

    The function adds unreadable shards to the list of failed units, `set_aside.jsonl` in the output folder.

    Args:
        spec: the options.
        engine: engine that scores the shards; None for this process.
        show_progress: whether to show a bar with speed and remaining time.

    Raises:
        ValueError: if there are no shards, another job uses the folder, or the folder has scores of different teachers.
        OSError: if the scores cannot be written.
        ImportError: if Apache Arrow is not installed (extra `parquet`).
    """
    with needed("scores", "parquet"):
        import pyarrow as pa  # noqa: F401 - before anything is read
    names = expand_shards(spec.shards)
    card = card_of_shards(names)
    teachers = [(one.name, one.dim) for one in card.teachers] if card else []
    teachers = teachers or _whole(names, spec.sample_limits)
    places = {_place(name): name for name in names}
    _claim(spec.output, teachers, places)
    scored = partial(_score_shard, spec=spec, columns=columns_of(dim for _, dim in teachers))
    units = [ShardUnit(name=name, path=shard) for name, shard in places.items() if not _has_scores(spec, name)]
    num_done = len(places) - len(units)
    skipped, screen = Counter[str](), console(shown=show_progress and bool(units))

    def take(_: ShardUnit, result: dict[str, int] | SetAside) -> None:
        if not isinstance(result, SetAside):
            skipped.update(result)
        progress.advance(count=not isinstance(result, SetAside))

    with (
        held(str(spec.output), engine) as run,
        Progress("scoring", total=len(places), done=num_done, unit="shards", console=screen) as progress,
    ):
        run.begin("scoring", num_units=len(places), num_done_before=num_done)
        run.do(FunctionWork(function=scored), units, ResultCallback[ShardUnit, dict[str, int]](take))
    failed = tuple((places[aside.unit], aside.reason) for aside in run.set_aside)
    num_samples = sum(map(len, Scores.open(spec.output).shards)) if len(failed) < len(places) else 0
    return ScoreReport(num_samples=num_samples, skipped=dict(skipped), failed=failed)


def _score_shard(unit: ShardUnit, spec: ScoreSpec, columns: tuple[slice, ...]) -> dict[str, int]:
    """Write a shard's scores, and return the number of skipped samples by reason.

    Raises:
        ValueError: if the shard cannot be read to its end.
        StorageError: if the shard cannot be read because of a temporary error.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    shard = unit.path
    skips: list[Skip] = []
    uids, keys, vectors = [], [], []
    table: dict[Caption, list[npt.NDArray[np.float32]]] = {caption: [] for caption in CAPTIONS}
    width = columns[-1].stop
    for raw in read_shard(shard, skips.append, spec.sample_limits):
        sample = parse(raw, partial(parse_reinforced_sample, limits=spec.sample_limits), skips.append)
        if sample is None:
            continue
        if sample.dim != width:
            skips.append(Skip(reason="wrong_dim", key=raw.key, shard=shard, detail=f"{sample.dim}, expected {width}"))
            continue
        found = similarities(sample, columns)
        uids.append(uid_of(raw.key, raw.members))
        keys.append(raw.key)
        for caption in CAPTIONS:
            table[caption].append(getattr(found, caption))
        if spec.vectors:
            vectors.append(image_vector(sample, columns).astype(np.float16))
    failure = next((skip for skip in skips if skip.reason in _FAILURES), None)
    if failure is not None:
        raise failure.error(f"{shard}: {failure.reason}: {failure.detail}")
    path = spec.output / f"{unit.name}{_SUFFIX}"
    path.parent.mkdir(parents=True, exist_ok=True)
    if spec.vectors:
        with storage.atomic_write(_vectors_path(path)) as stream:
            np.save(stream, np.stack(vectors) if vectors else np.empty((0, width), np.float16), allow_pickle=False)
    digits = [f"{upper:016x}{lower:016x}" for upper, lower in uids]
    scored: dict[str, Any] = {"uid": text_column(digits), "key": text_column(keys)}
    for caption, rows in table.items():
        values = np.stack(rows) if rows else np.empty((0, len(columns)), np.float32)
        scored[caption] = values.mean(1)
        scored[f"{caption}_by_teacher"] = pa.FixedSizeListArray.from_arrays(values.reshape(-1), len(columns))
    # This file is written last, because it marks the shard as done.
    with storage.atomic_write(path) as stream:
        pq.write_table(pa.table(scored), stream)
    return dict(Counter(skip.reason for skip in skips))


def _has_scores(spec: ScoreSpec, name: str) -> bool:
    path = spec.output / f"{name}{_SUFFIX}"
    return path.exists() and (not spec.vectors or _vectors_path(path).exists())


def _vectors_path(path: Path) -> Path:
    return path.with_name(path.name.removesuffix(path.suffix) + ".vectors.npy")


def _place(shard: str) -> str:
    """Return the name of a shard's scores: the shard's path or URL without suffix."""
    whole = shard if storage.is_remote(shard) else Path(storage.absolute_path(shard)).as_posix()
    parts = [part for part in whole.removesuffix(".tar").replace(":", "/").split("/") if part not in ("", ".", "..")]
    return "/".join(parts)


def _whole(shards: Sequence[str], limits: SampleLimits) -> list[tuple[str, int]]:
    """Return one teacher with all columns of the first readable sample, for shards without a card."""
    skips: list[Skip] = []
    for shard in shards:
        for raw in read_shard(shard, skips.append, limits):
            sample = parse(raw, partial(parse_reinforced_sample, limits=limits), skips.append)
            if sample is not None:
                return [("teachers", sample.dim)]
    reason = f"{skips[0].shard}: {skips[0].reason}: {skips[0].detail}" if skips else "the shards are empty"
    raise ValueError(f"the shards hold no reinforced sample ({reason})")


def _claim(folder: Path, teachers: list[tuple[str, int]], places: Mapping[str, str]) -> None:
    """Record the teachers and shards in the score folder; raise if the folder has scores of different teachers."""
    about = _read_about(folder)
    known: dict[str, str] = {} if about is None else about["shards"]
    if about is not None and about["teachers"] != teachers:
        raise ValueError(
            f"{folder} has scores of the teachers {about['teachers']}, but the shards have {teachers}; choose "
            "another folder, because a folder cannot mix teachers"
        )
    folder.mkdir(parents=True, exist_ok=True)
    content = {"teachers": teachers, "shards": {**known, **places}}
    storage.write_text(folder / _ABOUT, json.dumps(content, indent=1) + "\n")


def _read_about(folder: Path) -> dict[str, Any] | None:
    path = folder / _ABOUT
    if not path.exists():
        return None
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        return {"teachers": [(str(name), int(dim)) for name, dim in about["teachers"]], "shards": {**about["shards"]}}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise_machine_fault(error)
        raise ValueError(f"{path} cannot be read ({error}); delete the folder and score again") from None
