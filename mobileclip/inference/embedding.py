"""Embeddings of many files: pictures, data sets of pictures, and texts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path

import attrs
import numpy as np

from mobileclip.data.images.transform import require_decode
from mobileclip.data.skips import Skip, SkipReport
from mobileclip.datasets.sources import RowOptions, as_source
from mobileclip.hardware.precision import FastPrecision
from mobileclip.inference.archive import Embeddings, no_embeddings
from mobileclip.inference.encoding import Picture, encode_pictures
from mobileclip.inference.identity import ModelIdentity
from mobileclip.inference.image_text_model import ImageTextModel
from mobileclip.inference.quickening import quickened
from mobileclip.inputs import Decode
from mobileclip.progress import Progress
from mobileclip.strict import split_lines
from mobileclip.terminal import console

# Texts stand in an array as wide as the longest; a model reads no more than some eighty words of one.
_MAX_TEXT_LENGTH = 10_000


@attrs.frozen(kw_only=True)
class EmbeddingInputs:
    """The images and texts to embed.

    Args:
        paths: of image files.
        data: data sets whose pictures are embedded, see `as_source`.
        texts: texts.
        rows: how rows of `.jsonl` files and of tables among the data sets are read.
    """

    paths: tuple[Path, ...] = ()
    data: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    rows: RowOptions = attrs.field(factory=RowOptions)

    def without(self, embeddings: Embeddings) -> EmbeddingInputs:
        """Return the image files and texts that are not among these embeddings, and the data sets."""
        paths, texts = set(embeddings.image_paths), set(embeddings.texts)
        return attrs.evolve(
            self,
            paths=tuple(path for path in self.paths if str(path) not in paths),
            texts=tuple(text for text in self.texts if text not in texts),
        )


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
    """Return the embeddings of what is not embedded yet, and why each image that was left out was, naming it.

    Args:
        clip: the model.
        model: what identifies it.
        inputs: what is to be embedded.
        before: embeddings that are there already; what is among them is not encoded again.
        precision: what the image tower may compute in; see `quickened`, which hundreds of image files are worth.
        batch_size: images or texts encoded at once.
        num_workers: processes that read and decode images; see `encode_pictures`.
        decode: how much of a JPEG is decoded, `exact` or `fast`; see `read_tower_image`.
    """
    before = before or Embeddings(model=model)
    new, known = inputs.without(before), set(before.image_paths)
    clip = quickened(clip, new.paths, len(new.paths), precision=precision, show_progress=True)
    report = SkipReport(log=False)
    gathered = (one for data in new.data for one in gathered_pictures(data, report, rows=new.rows))
    files: Iterator[tuple[str, Path | bytes]] = ((str(path), path) for path in new.paths)
    pictures = chain(files, (one for one in gathered if one[0] not in known))
    count = None if new.data else len(new.paths)
    embeddings, skipped = embed_files(
        clip,
        model,
        pictures,
        new.texts,
        num_pictures=count,
        batch_size=batch_size,
        num_workers=num_workers,
        decode=decode,
    )
    skips = (skip for named in report.named.values() for skip in named)
    return embeddings, skipped + [f"{skip.key} of {skip.shard}: {skip.detail}" for skip in skips]


def read_texts(path: Path) -> list[str]:
    """Return the lines of a file that are not blank.

    Raises:
        ValueError: if it is not UTF-8, or a line is no text to embed but a file by mistake.
        OSError: if it cannot be read.
    """
    try:
        lines = split_lines(path.read_text(encoding="utf-8-sig"))
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
    rows: RowOptions = RowOptions(),  # noqa: B008  frozen
) -> Iterator[tuple[str, bytes]]:
    """Yield the pictures of a data set, each with a name: `DATA/KEY`.

    Args:
        data: see `as_source`.
        report: counts what was read and what was left out.
        rows: how rows of `.jsonl` files and of tables are read.
    """
    for unit in as_source(data, rows=rows).units():
        for sample in unit.read(report):
            if sample.image is None:
                report.num_read -= 1
                report.add(Skip(reason="no_image", key=sample.key, shard=data, detail="there is a text alone"))
            else:
                yield f"{data.rstrip('/')}/{sample.key}", sample.image


def embed_files(
    clip: ImageTextModel,
    model: ModelIdentity,
    pictures: Iterable[tuple[str, Path | bytes]],
    texts: Sequence[str],
    *,
    num_pictures: int | None = None,
    batch_size: int = 32,
    num_workers: int = 1,
    decode: Decode = "exact",
) -> tuple[Embeddings, list[str]]:
    """Return the unit-length embeddings of images and texts, and why each image that was left out was, naming it.

    Args:
        clip: the model.
        model: what identifies it.
        pictures: names and images, which are read batch by batch; those that cannot be read are left out.
        texts: texts.
        num_pictures: how many there are; None where nobody knows.
        batch_size: images or texts encoded at once.
        num_workers: processes that read and decode images; see `encode_pictures`.
        decode: how much of a JPEG is decoded, `exact` or `fast`; see `read_tower_image`.
    """
    skipped: list[str] = []
    kept: list[str] = []
    rows = []
    named = (Picture(key=source, name=name, source=source) for name, source in pictures)
    reduced = require_decode(decode) == "fast"
    encoded = encode_pictures(clip, named, reduced=reduced, batch_size=batch_size, num_workers=num_workers)
    with Progress(
        "encoding images", total=num_pictures, unit="images", console=console(shown=num_pictures != 0)
    ) as bar:
        for one in encoded:
            if one.embedding is None:
                skipped.append(str(one.read))
            else:
                kept.append(one.picture.name)
                rows.append(one.embedding)
            bar.advance()
    embeddings = Embeddings(
        model=model,
        image=np.stack(rows) if rows else no_embeddings(),
        image_paths=tuple(kept),
        text=clip.encode_text(texts, batch_size=batch_size, progress=True).numpy() if texts else no_embeddings(),
        texts=tuple(texts),
    )
    return embeddings, skipped
