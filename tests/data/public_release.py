"""The published layouts, made small: DataCompDR, DataComp-12M, and what img2dataset makes of their URLs.

A sample of DataCompDR has its uid for a key, no image and no real caption; its augmentations are a list in a string.
DataComp-12M has the captions, in shards of the same names. img2dataset numbers the pictures that it could download,
encodes them anew, and writes beside each the hash and the size of the download.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Collection
from pathlib import Path

import attrs
import numpy as np
from PIL import Image

from mobileclip.data import augmentation_rng, datacompdr_augmentation, hash_image
from mobileclip.data.augmentation.policy import compress
from mobileclip.data.samples.readers import write_npz
from tests.build.image_files import encoded, noise
from tests.data.made_samples import write_raw

SIZE = (64, 48)


@attrs.frozen
class Pair:
    """One picture of the web with its caption, and the picture as it can be downloaded.

    Args:
        number: tells it from the others.
    """

    number: int

    @property
    def uid(self) -> str:
        return hashlib.md5(b"%d" % self.number, usedforsecurity=False).hexdigest()

    @property
    def url(self) -> str:
        return f"https://pictures.example/{self.number}.jpg"

    @property
    def caption(self) -> str:
        return f"the photograph number {self.number}"

    def download(self) -> bytes:
        return picture(self.number)


def picture(seed: int, size: tuple[int, int] = SIZE) -> bytes:
    """Return a JPEG file of a few coloured patches."""
    return encoded(noise(8, 6, seed=seed).resize(size, Image.Resampling.BICUBIC), "JPEG", quality=95)


@attrs.frozen
class PublicRelease:
    """Shards of all three kinds.

    Args:
        folder: that they are written to.
        num_shards: of the reinforced samples, and of the captions.
        shard_samples: in each of them.
        gone: numbers of the pictures that cannot be downloaded any more.
        replaced: numbers of the pictures in whose place a server sends one and the same other.
        image_size: longest side that is stored; larger pictures are made smaller, as DataComp's own download does.
        with_json: whether there is JSON beside the pictures.
    """

    folder: Path
    num_shards: int = 2
    shard_samples: int = 4
    gone: Collection[int] = ()
    replaced: Collection[int] = ()
    image_size: int = 512
    with_json: bool = True

    def write(self) -> PublicRelease:
        """Write the shards and return this."""
        pairs = [Pair(number) for number in range(self.num_shards * self.shard_samples)]
        for first in range(0, len(pairs), self.shard_samples):
            name, some = f"{first // self.shard_samples:08d}.tar", pairs[first : first + self.shard_samples]
            for folder, members in (("DataCompDR-12M", _reinforced), ("DataComp-12M", _captioned)):
                (self.folder / folder).mkdir(exist_ok=True, parents=True)
                write_raw(self.folder / folder / name, {pair.uid: members(pair) for pair in some})
        (self.folder / "images").mkdir()
        there = {pair.number: self._image(pair) for pair in pairs if pair.number not in self.gone}
        write_raw(self.folder / "images" / "00000.tar", {f"{number:09d}": one for number, one in there.items()})
        return self

    @property
    def reinforced(self) -> str:
        return str(self.folder / "DataCompDR-12M" / f"{{00000000..{self.num_shards - 1:08d}}}.tar")

    @property
    def captions(self) -> str:
        return str(self.folder / "DataComp-12M")

    @property
    def images(self) -> str:
        return str(self.folder / "images" / "00000.tar")

    def _image(self, pair: Pair) -> dict[str, bytes]:
        download = picture(10**6) if pair.number in self.replaced else pair.download()
        with Image.open(io.BytesIO(download)) as image:
            original = image.size
            scale = min(1.0, self.image_size / max(original))
            stored = image.resize(tuple(round(side * scale) for side in original)) if scale < 1 else image.copy()
        width, height = stored.size
        metadata = {"uid": pair.uid, "url": pair.url, "key": f"{pair.number:09d}", "status": "success"}
        metadata |= {"error_message": None, "width": width, "height": height, "sha256": hash_image(download)}
        metadata |= {"original_width": original[0], "original_height": original[1]}
        beside = {"json": json.dumps(metadata, indent=4).encode()} if self.with_json else {}
        return {"jpg": encoded(stored, "JPEG", quality=90), **beside}


def _reinforced(pair: Pair) -> dict[str, bytes]:
    augmentation, rng = datacompdr_augmentation(224), np.random.default_rng(pair.number)
    views = [augmentation.sample(augmentation_rng(0, pair.uid, index), SIZE) for index in range(3)]
    rows = {"image_emb": (3, 6), "text_emb": (3, 6)}
    return {
        "url.txt": pair.url.encode(),
        "syn.json": json.dumps({"syn_text": [f"picture {pair.number}, {kind}" for kind in ("near", "far")]}).encode(),
        # The copy on the hub holds the list as a string.
        "paug.json": json.dumps({"param_aug": json.dumps([compress(view) for view in views])}).encode(),
        "npz": write_npz({name: rng.standard_normal(shape).astype(np.float32) for name, shape in rows.items()}),
        "json": json.dumps({"uid": pair.uid, "sha256": hash_image(pair.download())}).encode(),
    }


def _captioned(pair: Pair) -> dict[str, bytes]:
    stated = {"uid": pair.uid, "sha256": hash_image(pair.download())}
    size = {"original_height": SIZE[1], "original_width": SIZE[0]}
    return {"url.txt": pair.url.encode(), "txt": pair.caption.encode(), "json": json.dumps({**stated, **size}).encode()}
