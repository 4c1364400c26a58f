"""Embeddings of many files, into one archive."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from mobileclip import storage
from mobileclip.data.image import ImageError, load_image
from mobileclip.pipeline import ImageTextModel
from mobileclip.progress import Progress, console


def embed_files(
    clip: ImageTextModel, paths: Sequence[Path], texts: Sequence[str], output: Path, *, batch_size: int = 32
) -> list[str]:
    """Write the unit-length embeddings of images and texts to a NumPy archive; it appears whole or not at all.

    Args:
        clip: the model.
        paths: image files; those that cannot be read are left out.
        texts: texts.
        output: the archive, with `image_embedding` (images, dim) and `image_path`, `text_embedding` (texts, dim) and
            `text`, as far as there are any.
        batch_size: images or texts encoded at once.

    Returns:
        Why each image that was left out was, naming it.
    """
    arrays: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]] = {}
    skipped: list[str] = []
    if paths:
        kept, embeddings = [], []
        with Progress("encoding images", total=len(paths), unit="images", console=console()) as bar:
            for start in range(0, len(paths), batch_size):
                images = {path: _readable(path, skipped) for path in paths[start : start + batch_size]}
                readable = {str(path): image for path, image in images.items() if image is not None}
                kept += list(readable)
                embeddings.append(clip.encode_image(list(readable.values()), batch_size=batch_size).numpy())
                bar.advance(min(batch_size, len(paths) - start))
        arrays |= {"image_embedding": np.concatenate(embeddings), "image_path": np.array(kept, dtype=np.str_)}
    if texts:
        embedding = clip.encode_text(texts, batch_size=batch_size, progress=True).numpy()
        arrays |= {"text_embedding": embedding, "text": np.array(texts, dtype=np.str_)}
    output.parent.mkdir(parents=True, exist_ok=True)
    with storage.atomic_write(output) as stream:
        np.savez(stream, **arrays)  # type: ignore[arg-type]  # numpy's stub has the array names among its options
    return skipped


def _readable(path: Path, skipped: list[str]) -> Image.Image | None:
    try:
        return load_image(path)
    except ImageError as error:
        skipped.append(str(error))
        return None
