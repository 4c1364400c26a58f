"""Reinforced samples and raw shards for the tests of this folder."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import attrs
import numpy as np

from mobileclip.data import (
    AugmentationSpec,
    ImageTextSample,
    ReinforcedSample,
    augmentation_rng,
    datacompdr_augmentation,
)
from mobileclip.data.shards.files import read_shard
from tests.build.image_files import encoded as encoded_image, noise

SHARDS = Path(__file__).parents[1] / "golden" / "shards"


def golden(name: str) -> str:
    return str(SHARDS / f"datacompdr_{name}.tar")


def golden_members(name: str = "npz") -> dict[str, dict[str, bytes]]:
    skips: list = []
    members = {raw.key: dict(raw.members) for raw in read_shard(golden(name), skips.append)}
    assert not skips
    return members


def write_raw(path: Path, samples: Mapping[str, Mapping[str, bytes]] | Iterable[tuple[str, bytes]]) -> str:
    """Write whatever is given, however wrong, without the library's own writer."""
    if isinstance(samples, Mapping):
        samples = [
            (f"{key}.{extension}", data) for key, members in samples.items() for extension, data in members.items()
        ]
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in samples:
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
    return str(path)


def write_layout(
    root: Path, *shards: Mapping[str, Mapping[str, bytes]], kind: str = "", **names: Sequence[str]
) -> Path:
    """Write a data set in the layout that the field shares them in.

    Args:
        root: its folder.
        shards: members of samples by key.
        kind: `retrieval`, or nothing for classes.
        names: the lines of `classnames`, and of `templates`.
    """
    for number, samples in enumerate(shards):
        write_raw(root / "test" / f"{number}.tar", samples)
    lines = {"classnames": names.get("classnames", ()), "zeroshot_classification_templates": names.get("templates", ())}
    for name, said in {"test/nshards": [str(len(shards))], "dataset_type": [kind], **lines}.items():
        if any(said):
            (root / f"{name}.txt").write_text("\n".join(said), encoding="utf-8")
    return root


def encoded(width: int, height: int, seed: int = 0, kind: str = "png") -> bytes:
    return encoded_image(noise(width, height, seed=seed), kind)


def make_sample(
    number: int,
    *,
    size: tuple[int, int] = (40, 30),
    dim: int = 6,
    augmentation: AugmentationSpec = datacompdr_augmentation(32),  # noqa: B008 - a value
    **changes: object,
) -> ReinforcedSample:
    """Return a small sample in which every number is its own."""
    rng = np.random.default_rng(number)
    key = f"{number:06d}"
    fields = {
        "key": key,
        "captions": (f"picture {number}",),
        "image": encoded(*size, seed=number),
        "image_extension": "png",
        "augmentations": [augmentation.sample(augmentation_rng(0, key, index), size) for index in range(3)],
        "image_emb": rng.standard_normal((3, dim)).astype(np.float32),
        "text_emb": rng.standard_normal((1, dim)).astype(np.float32),
        "syn_captions": {"syn_text": (f"first of {number}", f"second of {number}")},
        "syn_text_emb": {"syn_text": rng.standard_normal((2, dim)).astype(np.float32)},
    }
    return ReinforcedSample(**(fields | changes))


def assert_same(first: ImageTextSample, second: ImageTextSample, tolerance: float = 0.0) -> None:
    for name in (field.name for field in attrs.fields(type(first))):
        one, other = getattr(first, name), getattr(second, name)
        if not name.endswith("_emb"):
            assert one == other, name
            continue
        ones, others = (each if isinstance(each, Mapping) else {name: each} for each in (one, other))
        assert ones.keys() == others.keys()
        for key in ones:
            np.testing.assert_allclose(ones[key], others[key], rtol=tolerance)
