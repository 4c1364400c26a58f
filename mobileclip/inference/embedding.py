"""Embeddings of many files, and the archive that keeps them together with the model that they are of."""

from __future__ import annotations

import io
import math
import zlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import attrs
import numpy as np
from numpy.lib import format as npy
from PIL import Image

from mobileclip import storage
from mobileclip.data.images.transform import ImageError, ImageSource
from mobileclip.data.skips import Skip, SkipReport
from mobileclip.data.sources import LineAccess, as_source
from mobileclip.inference.identity import ModelIdentity
from mobileclip.inference.zero_shot import ImageTextModel
from mobileclip.progress import Progress
from mobileclip.tensor_files.zips import Member, members
from mobileclip.terminal import console

if TYPE_CHECKING:
    from numpy.typing import NDArray

SUFFIXES = (".npz",)
"""How the name of an archive ends."""

_MODEL = "model"
# Texts stand in an array as wide as the longest; a model reads no more than some eighty words of one.
_MAX_TEXT_LENGTH = 10_000


def _nothing() -> NDArray[np.float32]:
    return np.zeros((0, 0), dtype=np.float32)


@attrs.frozen(kw_only=True, eq=False)
class Embeddings:
    """Unit-length embeddings of one model.

    Shape:
        image: `(images, dim)`; text: `(texts, dim)`.

    Args:
        model: that they are of.
        image: embeddings of images, float32.
        image_paths: where the images are, one a row.
        text: embeddings of texts, float32.
        texts: one a row.

    Raises:
        ValueError: if rows and names differ in number, dims differ, or a value is not finite.
    """

    model: ModelIdentity
    image: NDArray[np.float32] = attrs.field(factory=_nothing)
    image_paths: tuple[str, ...] = ()
    text: NDArray[np.float32] = attrs.field(factory=_nothing)
    texts: tuple[str, ...] = ()

    def __attrs_post_init__(self) -> None:
        for kind, rows, names in (("image", self.image, self.image_paths), ("text", self.text, self.texts)):
            if rows.ndim != 2 or rows.dtype != np.float32 or len(rows) != len(names):
                raise ValueError(
                    f"{kind} embeddings are {rows.dtype} of shape {rows.shape} for {len(names)} {kind}s, expected a "
                    "row of float32 for each"
                )
            if not np.isfinite(rows).all():
                raise ValueError(f"an {kind} embedding is not finite")
        if len(self.image) and len(self.text) and self.image.shape[1] != self.text.shape[1]:
            raise ValueError(f"images have {self.image.shape[1]} numbers each, texts {self.text.shape[1]}")

    def joined(self, other: Embeddings, *, here: str, there: str) -> Embeddings:
        """Return these embeddings and others of the same model.

        Args:
            other: whose rows come after these.
            here: what these are, for a message.
            there: what the others are.

        Raises:
            ValueError: if they are of another model.
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
    """Write embeddings to a NumPy archive, which appears whole or not at all.

    It holds `image_embedding` with `image_path`, `text_embedding` with `text`, as far as there are any, and `model`,
    the model's identity as JSON.

    Args:
        path: the archive, `*.npz`.
        embeddings: at least one.
        overwrite: whether an archive that is there is replaced.

    Raises:
        ValueError: if there is nothing to write, or the name ends otherwise.
        OSError: if it is there already, or cannot be written.
    """
    storage.require_output(path, overwrite=overwrite, suffixes=SUFFIXES)
    arrays: dict[str, NDArray[Any]] = {_MODEL: np.array(embeddings.model.to_json())}
    if embeddings.image_paths:
        paths = np.array(embeddings.image_paths, dtype=np.str_)
        arrays |= {"image_embedding": embeddings.image, "image_path": paths}
    if embeddings.texts:
        arrays |= {"text_embedding": embeddings.text, "text": np.array(embeddings.texts, dtype=np.str_)}
    if len(arrays) == 1:
        raise ValueError(f"there is not one embedding to write to {path}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with storage.atomic_write(path) as stream:
        np.savez(stream, **arrays)  # type: ignore[arg-type]  # numpy's stub has the array names among its options


def read_embeddings(path: Path) -> Embeddings:
    """Return the embeddings in an archive that `write_embeddings` wrote; no more is read than the file is long.

    Raises:
        ValueError: if it is no such archive, or does not say which model it is of.
        OSError: if it cannot be read.
    """
    try:
        return _of_arrays(_read_arrays(path))
    except ValueError as error:
        raise ValueError(f"{path} is no archive of embeddings that can be used: {error}") from None


def read_texts(path: Path) -> list[str]:
    """Return the lines of a file that are not blank.

    Raises:
        ValueError: if it is not UTF-8, or a line is no text to embed but a file by mistake.
        OSError: if it cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file {path}; expected one text a line") from None
    except IsADirectoryError:
        raise IsADirectoryError(f"{path} is a folder; expected a file with one text a line") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error}); expected one text a line") from None
    for number, line in enumerate(lines, 1):
        if len(line) > _MAX_TEXT_LENGTH:
            raise ValueError(
                f"{path}, line {number} has {len(line):,} characters; expected one text a line, of up to "
                f"{_MAX_TEXT_LENGTH:,}"
            )
    return [line for line in lines if line.strip()]


def gathered_pictures(
    data: str,
    report: SkipReport,
    *,
    lines: LineAccess = LineAccess(),  # noqa: B008  frozen
) -> Iterator[tuple[str, ImageSource]]:
    """Yield the pictures of a data set, each with a name: `DATA/KEY`.

    Args:
        data: see `as_source`.
        report: counts what was read and what was left out.
        lines: what the lines of a `.jsonl` file may name.
    """
    for unit in as_source(data, lines=lines).units():
        for sample in unit.read(report):
            if sample.image is None:
                report.num_read -= 1
                report.add(Skip(reason="no_image", key=sample.key, shard=data, detail="there is a text alone"))
            else:
                yield f"{data.rstrip('/')}/{sample.key}", sample.image


def embed_files(
    clip: ImageTextModel,
    model: ModelIdentity,
    pictures: Iterable[tuple[str, ImageSource]],
    texts: Sequence[str],
    *,
    num_pictures: int | None = None,
    batch_size: int = 32,
) -> tuple[Embeddings, list[str]]:
    """Return the unit-length embeddings of images and texts, and why each image that was left out was, naming it.

    Args:
        clip: the model.
        model: what identifies it.
        pictures: names and images, which are read batch by batch; those that cannot be read are left out.
        texts: texts.
        num_pictures: how many there are; None where nobody knows.
        batch_size: images or texts encoded at once.
    """
    skipped: list[str] = []
    kept: list[str] = []
    rows = []
    shown = console(shown=num_pictures != 0)
    remaining = iter(pictures)
    with Progress("encoding images", total=num_pictures, unit="images", console=shown) as bar:
        while batch := list(islice(remaining, batch_size)):
            readable = [(name, image) for name, source in batch if (image := _readable(clip, name, source, skipped))]
            kept += [name for name, _ in readable]
            if readable:
                rows.append(clip.encode_image([image for _, image in readable], batch_size=batch_size).numpy())
            bar.advance(len(batch))
    embeddings = Embeddings(
        model=model,
        image=np.concatenate(rows) if rows else _nothing(),
        image_paths=tuple(kept),
        text=clip.encode_text(texts, batch_size=batch_size, progress=True).numpy() if texts else _nothing(),
        texts=tuple(texts),
    )
    return embeddings, skipped


def _readable(clip: ImageTextModel, name: str, source: ImageSource, skipped: list[str]) -> Image.Image | None:
    """Return the part of an image that the model sees, or nothing where it cannot be read or is out of all shape."""
    try:
        return Image.fromarray(clip.transform.read_pixels(source))
    except ImageError as error:
        skipped.append(str(error) if isinstance(source, Path) else f"{name}: {error}")
        return None


def _stacked(one: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.concatenate([one, other]) if len(one) and len(other) else one if len(one) else other


def _names(arrays: dict[str, NDArray[Any]], name: str) -> tuple[str, ...]:
    return tuple(map(str, arrays[name].tolist())) if name in arrays else ()


def _of_arrays(arrays: dict[str, NDArray[Any]]) -> Embeddings:
    if _MODEL not in arrays:
        raise ValueError("it does not say which model it is of; embed the files again")
    return Embeddings(
        model=ModelIdentity.from_json(str(arrays[_MODEL].item())),
        image=arrays.get("image_embedding", _nothing()),
        image_paths=_names(arrays, "image_path"),
        text=arrays.get("text_embedding", _nothing()),
        texts=_names(arrays, "text"),
    )


def _read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    with path.open("rb") as stream:
        found = members(stream, path.stat().st_size)
        return {name.removesuffix(".npy"): _array(stream, name, member) for name, member in found.items()}


def _array(stream: IO[bytes], name: str, member: Member) -> NDArray[Any]:
    """Return an array as long as its header says, once that agrees with the archive and the archive with the file."""
    if member.is_deflated:
        raise ValueError(f"{name} is compressed, as embeddings are never written")
    stream.seek(member.start)
    content = stream.read(member.size)
    if zlib.crc32(content) != member.checksum:
        raise ValueError(f"{name} is damaged: its checksum differs")
    start = io.BytesIO(content)
    if npy.read_magic(start) != (1, 0):
        raise ValueError(f"{name} is no array of numpy's first format")
    shape, in_columns, dtype = npy.read_array_header_1_0(start)
    if in_columns or dtype.hasobject or dtype.kind not in "fU":
        raise ValueError(f"{name} holds {dtype}, expected float32 or texts, row by row")
    if start.tell() + math.prod(shape) * dtype.itemsize != len(content):
        raise ValueError(f"{name} has another size than its header says")
    return np.frombuffer(content, dtype=dtype, offset=start.tell()).reshape(shape)
