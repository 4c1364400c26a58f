"""The archive that keeps embeddings together with the model that they are of."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from mobileclip import storage
from mobileclip.inference.identity import ModelIdentity

if TYPE_CHECKING:
    from numpy.typing import NDArray

SUFFIXES = (".npz",)
"""How the name of an archive ends."""

_MODEL = "model"


def no_embeddings() -> NDArray[np.float32]:
    """Return embeddings of nothing, `(0, 0)`."""
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
    image: NDArray[np.float32] = attrs.field(factory=no_embeddings)
    image_paths: tuple[str, ...] = ()
    text: NDArray[np.float32] = attrs.field(factory=no_embeddings)
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


def _stacked(one: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.concatenate([one, other]) if len(one) and len(other) else one if len(one) else other


def _names(arrays: dict[str, NDArray[Any]], name: str) -> tuple[str, ...]:
    return tuple(map(str, arrays[name].tolist())) if name in arrays else ()


def _of_arrays(arrays: dict[str, NDArray[Any]]) -> Embeddings:
    if _MODEL not in arrays:
        raise ValueError("it does not say which model it is of; embed the files again")
    return Embeddings(
        model=ModelIdentity.from_json(str(arrays[_MODEL].item())),
        image=arrays.get("image_embedding", no_embeddings()),
        image_paths=_names(arrays, "image_path"),
        text=arrays.get("text_embedding", no_embeddings()),
        texts=_names(arrays, "text"),
    )


def _read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Return the arrays of an archive; one that would take more memory than its file is long is refused."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
        if sum(member.file_size for member in members) > path.stat().st_size:
            raise ValueError("it is compressed, as embeddings are never written")
        if any(member.comment for member in members):
            raise ValueError("it is damaged: its directory holds comments, as none is written")
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except (zipfile.BadZipFile, NotImplementedError, EOFError, MemoryError) as error:
        raise ValueError(f"it is damaged: {error}") from None
