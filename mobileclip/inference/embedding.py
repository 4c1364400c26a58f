"""Embeds image files, data sets and texts, and reads and writes archives of embeddings."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from mobileclip import storage
from mobileclip.data.images.transform import require_decode
from mobileclip.data.skips import Skip, SkipReport
from mobileclip.datasets.sources import RowOptions, as_source
from mobileclip.hardware import FastPrecision
from mobileclip.inference.bulk_encoding import ImageItem, encode_images
from mobileclip.inference.identity import ModelIdentity
from mobileclip.inference.image_text_model import ImageTextModel
from mobileclip.inference.optimizing import select_backend
from mobileclip.inputs import Decode
from mobileclip.progress import Progress
from mobileclip.strict import split_lines
from mobileclip.terminal import console

if TYPE_CHECKING:
    from numpy.typing import NDArray


SUFFIXES = (".npz",)
"""File name suffixes of an archive of embeddings."""

_MODEL = "model"


def no_embeddings() -> NDArray[np.float32]:
    """Return empty embeddings, `(0, 0)`."""
    return np.zeros((0, 0), dtype=np.float32)


@attrs.frozen(kw_only=True, eq=False)
class Embeddings:
    """Unit-length embeddings of one model.

    Shape:
        image: `(images, dim)`; text: `(texts, dim)`.

    Args:
        model: identity of the model.
        image: embeddings of images, float32.
        image_paths: paths of the images, one per row.
        text: embeddings of texts, float32.
        texts: embedded texts, one per row.

    Raises:
        ValueError: if the number of rows differs from the number of paths or texts, the embedding dimensions of images
            and texts differ, or a value is not finite.
    """

    model: ModelIdentity
    image: NDArray[np.float32] = attrs.field(factory=no_embeddings)
    image_paths: tuple[str, ...] = ()
    text: NDArray[np.float32] = attrs.field(factory=no_embeddings)
    texts: tuple[str, ...] = ()

    def __attrs_post_init__(self) -> None:
        for kind, rows, names in (("image", self.image, self.image_paths), ("text", self.text, self.texts)):
            if rows.ndim != 2 or rows.dtype != np.float32 or len(rows) != len(names):
                raise ValueError(
                    f"{kind} embeddings are {rows.dtype} of shape {rows.shape} for {len(names)} {kind}s, expected one "
                    "float32 row for each"
                )
            if not np.isfinite(rows).all():
                raise ValueError(f"a value of the {kind} embeddings is not finite")
        if len(self.image) and len(self.text) and self.image.shape[1] != self.text.shape[1]:
            raise ValueError(
                f"image embeddings have {self.image.shape[1]} dimensions, but text embeddings have {self.text.shape[1]}"
            )

    def joined(self, other: Embeddings, *, here: str, there: str) -> Embeddings:
        """Return the concatenation of these embeddings and further embeddings of the same model.

        Args:
            other: embeddings to append.
            here: noun for these embeddings, for messages.
            there: noun for the other embeddings, for messages.

        Raises:
            ValueError: if the other embeddings belong to a different model.
        """
        self.model.require_same(other.model, here=here, there=there)
        return Embeddings(
            model=self.model,
            image=_stacked(self.image, other.image),
            image_paths=self.image_paths + other.image_paths,
            text=_stacked(self.text, other.text),
            texts=self.texts + other.texts,
        )


def write_embeddings(path: Path, embeddings: Embeddings, *, overwrite: bool = False) -> None:
    """Write embeddings to a NumPy archive, atomically.

    The archive holds `image_embedding` and `image_path` for images, `text_embedding` and `text` for texts, and `model`,
    the identity of the model as JSON.

    Args:
        path: path of the archive, `*.npz`.
        embeddings: embeddings to write, at least one.
        overwrite: whether to replace an existing archive.

    Raises:
        ValueError: if `embeddings` is empty, or the suffix is not `.npz`.
        OSError: if the file exists and `overwrite` is False, or the file cannot be written.
    """
    storage.require_output(path, overwrite=overwrite, suffixes=SUFFIXES)
    arrays: dict[str, NDArray[Any]] = {_MODEL: np.array(embeddings.model.to_json())}
    if embeddings.image_paths:
        paths = np.array(embeddings.image_paths, dtype=np.str_)
        arrays |= {"image_embedding": embeddings.image, "image_path": paths}
    if embeddings.texts:
        arrays |= {"text_embedding": embeddings.text, "text": np.array(embeddings.texts, dtype=np.str_)}
    if len(arrays) == 1:
        raise ValueError(f"there are no embeddings to write to {path}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with storage.atomic_write(path) as stream:
        np.savez(stream, **arrays)  # type: ignore[arg-type]  # numpy's stub has the array names among its options


def read_embeddings(path: Path) -> Embeddings:
    """Read an archive from `write_embeddings`, with no more memory than the file size.

    Raises:
        ValueError: if the file is not an uncompressed archive of embeddings, or lacks the identity of the model.
        OSError: if the file cannot be read.
    """
    try:
        return _of_archive(path)
    except ValueError as error:
        raise ValueError(f"{path} is not a usable archive of embeddings: {error}") from None


def _of_archive(path: Path) -> Embeddings:
    """Return the content of an archive; raise an error if the content is larger than the file."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
        with np.load(path, allow_pickle=False) as stored:
            is_short = sum(member.file_size for member in members) <= path.stat().st_size
            arrays = {name: stored[name] for name in stored.files} if is_short else None
    except (zipfile.BadZipFile, NotImplementedError, EOFError, MemoryError) as error:
        raise ValueError(f"the file is damaged: {error}") from None
    if arrays is None:
        raise ValueError("the file is compressed, but archives of embeddings are uncompressed")
    if any(member.comment for member in members):
        raise ValueError("the file is damaged: the archive's members have comments")
    if _MODEL not in arrays:
        raise ValueError("the file does not name the model; embed the images and texts again")
    return Embeddings(
        model=ModelIdentity.from_json(str(arrays[_MODEL].item())),
        image=arrays.get("image_embedding", no_embeddings()),
        image_paths=tuple(map(str, arrays.get("image_path", np.array(())).tolist())),
        text=arrays.get("text_embedding", no_embeddings()),
        texts=tuple(map(str, arrays.get("text", np.array(())).tolist())),
    )


def _stacked(one: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.concatenate([one, other]) if len(one) and len(other) else one if len(one) else other


# The array of texts is as wide as the longest text; a model reads at most about eighty words of a text.
_MAX_TEXT_LENGTH = 10_000


@attrs.frozen(kw_only=True)
class EmbeddingInputs:
    """The images and texts to embed.

    Args:
        paths: paths of image files.
        data: paths or URLs of data sets of images, see `as_source`.
        texts: texts to embed.
        rows: column names of `.jsonl` files and tables.
    """

    paths: tuple[Path, ...] = ()
    data: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    rows: RowOptions = attrs.field(factory=RowOptions)


def embed_inputs(
    clip: ImageTextModel,
    model: ModelIdentity,
    inputs: EmbeddingInputs,
    *,
    before: Embeddings | None = None,
    precision: FastPrecision = "float32",
    batch_size: int = 32,
    num_workers: int = 1,
    decode: Decode = "exact",
) -> tuple[Embeddings, list[str]]:
    """Return the embeddings of new inputs, and one message per skipped image.

    Args:
        clip: image-text model.
        model: identity of the model.
        inputs: image files, data sets of images, and texts.
        before: existing embeddings; the function skips their images and texts. None without existing embeddings.
        precision: lowest allowed precision of the image tower, for hundreds of images or more; see `select_backend`.
        batch_size: images or texts per batch.
        num_workers: number of processes that decode images; see `encode_images`.
        decode: JPEG decoding, `exact` or `fast`; see `read_tower_image`.
    """
    before = before or Embeddings(model=model)
    known = set(before.image_paths)
    paths = [path for path in inputs.paths if str(path) not in known]
    known_texts = set(before.texts)
    texts = tuple(text for text in inputs.texts if text not in known_texts)
    clip = select_backend(clip, paths, len(paths), precision=precision, show_progress=True)
    report = SkipReport(log=False)
    gathered = (one for data in inputs.data for one in gathered_images(data, report, rows=inputs.rows))
    named = chain(
        (ImageItem(key=None, name=str(path), source=path) for path in paths),
        (ImageItem(key=None, name=name, source=source) for name, source in gathered if name not in known),
    )
    reduced = require_decode(decode) == "fast"
    skipped: list[str] = []
    kept: list[str] = []
    rows = []
    total = None if inputs.data else len(paths)
    with Progress("encoding images", total=total, unit="images", console=console(shown=total != 0)) as bar:
        for one in encode_images(clip, named, reduced=reduced, batch_size=batch_size, num_workers=num_workers):
            if one.embedding is None:
                skipped.append(str(one.read))
            else:
                kept.append(one.item.name)
                rows.append(one.embedding)
            bar.advance()
    embeddings = Embeddings(
        model=model,
        image=np.stack(rows) if rows else no_embeddings(),
        image_paths=tuple(kept),
        text=clip.encode_text(texts, batch_size=batch_size, progress=True).numpy() if texts else no_embeddings(),
        texts=texts,
    )
    skips = (skip for several in report.named.values() for skip in several)
    return embeddings, skipped + [f"{skip.key} of {skip.shard}: {skip.detail}" for skip in skips]


def read_texts(path: Path) -> list[str]:
    """Return the non-blank lines of a text file.

    Raises:
        ValueError: if the file is not UTF-8, or a line has more than 10,000 characters.
        OSError: if the file cannot be read.
    """
    try:
        lines = split_lines(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file {path}; expected a file with one text per line") from None
    except IsADirectoryError:
        raise IsADirectoryError(f"{path} is a folder; expected a file with one text per line") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error}); expected one text per line") from None
    for number, line in enumerate(lines, 1):
        if len(line) > _MAX_TEXT_LENGTH:
            raise ValueError(
                f"{path}, line {number} has {len(line):,} characters; expected one text per line, of up to "
                f"{_MAX_TEXT_LENGTH:,}"
            )
    return [line for line in lines if line.strip()]


def gathered_images(
    data: str,
    report: SkipReport,
    *,
    rows: RowOptions = RowOptions(),  # noqa: B008  frozen
) -> Iterator[tuple[str, bytes]]:
    """Yield the images of a data set, each with a name: `DATA/KEY`.

    Args:
        data: path or URL of the data set, see `as_source`.
        report: report in which the function counts read and skipped samples.
        rows: column names of `.jsonl` files and tables.
    """
    for unit in as_source(data, rows=rows).units():
        for sample in unit.read(report):
            if sample.image is None:
                report.num_read -= 1
                report.add(Skip(reason="no_image", key=sample.key, shard=data, detail="the row has no image"))
            else:
                yield f"{data.rstrip('/')}/{sample.key}", sample.image
