"""Samples per CPU second of one data worker for the same reinforced shards: mobileclip against the release's loader.

Command:   python -m benchmarks data     (needs the extra `test`; --tiny to try)
           The extra installs simplejpeg and zlib-ng, which mobileclip uses for decoding, like the extra `speed`
Hardware:  one core; times are CPU seconds, so that other programs have little effect; the quartiles of the ratios show
           the uncertainty of the medians
Time:      about four minutes
Result:    a table; docs/measured.md has results. Pixels of photos of 512 pixels are bit-identical. mobileclip decodes
           photos of a megapixel at a reduced size and resizes them with torch (decode="fast"), which changes pixels by
           0.8 of 255 levels on average; most of the remaining time is entropy decoding of the JPEGs

This module reimplements the release's loader from the release's training code: webdataset reads and decodes every
member completely, images through RGBA; torchvision replays the stored augmentation, makes a tensor and normalises the
tensor; open_clip's tokenizer encodes one caption at a time. mobileclip returns pixels, and the device normalises them.
Both sides make the same choices for the same samples in the same order, and their epochs alternate. The release's
loader cannot read the compact layout, so it reads the same samples in the npz layout. Images are crops and rotations of
three photos, with noise that gives the JPEGs the size of photos; embeddings are random, as hard to compress as real
embeddings.
"""

from __future__ import annotations

import io
import statistics
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, cast

import attrs
import numpy as np
import torch
from attrs import validators
from PIL import Image
from torch import Tensor

from benchmarks.harness import Bench, Case, Row, Value, clocked, in_turn, ratio, require, spread
from mobileclip.data import (
    LAYOUTS,
    Layout,
    ReinforcedBatch,
    ReinforcedPipelineSpec,
    ReinforcedSample,
    augmentation_rng,
    datacompdr_augmentation,
    decode_image,
    hash_image,
    load_image,
    normalize_pixels,
    write_shard,
)
from mobileclip.data.augmentation.operations import OPERATIONS
from mobileclip.data.randomness import random_index, seeded_rng
from mobileclip.inputs import DECODES, Decode, ImageInput

PICTURES = Path(__file__).parents[1] / "tests" / "golden" / "augment" / "images"
WORDS = ("a", "photo", "of", "the", "old", "harbour", "with", "boats", "and", "two", "people", "walking", "home", "cat")


@attrs.frozen(kw_only=True)
class DataBenchSpec(Bench):
    """Settings of the comparison.

    Args:
        num_samples: number of samples per shard.
        rounds: number of epochs per side, after one epoch that compares the results.
        batch_size: samples per batch.
        size: side of the student's image, in pixels.
        photo_side: longer side of the photos for exact decoding, in pixels.
        photo_quality: JPEG quality of these photos; 90 gives 70 kB, the mean size of DataComp's samples.
        large_side: longer side of the photos for fast decoding, in pixels; 1155 times 866 is a megapixel.
        large_quality: JPEG quality of these photos; the larger a JPEG, the less a reduced resolution saves.
        layouts: layouts of the shards.
        num_augmentations: number of stored augmentations per sample.
        dim: width of the teachers' concatenated embeddings.
        seed: seed of the images and of all random choices.
    """

    num_samples: int = attrs.field(default=128, validator=validators.gt(0))
    rounds: int = attrs.field(default=5, validator=validators.gt(1))
    batch_size: int = attrs.field(default=64, validator=validators.gt(0))
    size: int = attrs.field(default=256, validator=validators.gt(0))
    photo_side: int = attrs.field(default=512, validator=validators.ge(64))
    photo_quality: int = attrs.field(default=90, validator=validators.in_(range(1, 101)))
    large_side: int = attrs.field(default=1155, validator=validators.ge(64))
    large_quality: int = attrs.field(default=85, validator=validators.in_(range(1, 101)))
    layouts: tuple[Layout, ...] = attrs.field(
        default=("npz", "pth.gz", "compact"), validator=validators.deep_iterable(validators.in_(LAYOUTS))
    )
    num_augmentations: int = attrs.field(default=30, validator=validators.gt(0))
    dim: int = attrs.field(default=1536, validator=validators.gt(0))
    seed: int = 0
    threads: int | None = 1  # as in a worker

    smallest: ClassVar[Mapping[str, object]] = {
        "num_samples": 3,
        "rounds": 2,
        "batch_size": 2,
        "photo_side": 96,
        "large_side": 192,
        "size": 64,
    }
    selects: ClassVar[frozenset[str]] = frozenset(("layouts",))

    def cases(self) -> Iterator[Case]:
        """Yield every layout, for exact and for fast decoding."""
        require("torchvision", "open_clip")
        for decode, layout in product(DECODES, self.layouts):
            yield Case(labels={"layout": layout, "decode": decode}, measure=partial(compare, self, layout, decode))


def photo(number: int, longer_side: int, *, quality: int, seed: int) -> bytes:
    """Return a JPEG with a rotated part of a photo, and noise at several scales."""
    rng = seeded_rng(seed, "photo", number)
    paths = sorted(PICTURES.glob("*.png"))
    image = load_image(paths[number % len(paths)]).rotate(90 * random_index(rng, 4), expand=True)
    width, height = (round(side * (0.7 + 0.3 * rng.random())) for side in image.size)
    left, top = random_index(rng, image.width - width + 1), random_index(rng, image.height - height + 1)
    scale = longer_side / max(width, height)
    size = (round(width * scale), round(height * scale))
    image = image.resize(size, Image.Resampling.BICUBIC, (left, top, left + width, top + height))
    pixels = np.asarray(image).astype(np.float32)
    for factor, strength in ((1, 5.0), (2, 4.0), (4, 3.0)):
        noise = np.random.Generator(np.random.PCG64([seed, number, factor])).standard_normal(
            (-(-size[1] // factor), -(-size[0] // factor))
        )
        grain = Image.fromarray(noise.astype(np.float32)).resize(size, Image.Resampling.BILINEAR)
        pixels += strength * np.asarray(grain)[:, :, None]
    stream = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(stream, "JPEG", quality=quality)
    return stream.getvalue()


def samples(spec: DataBenchSpec, longer_side: int, quality: int) -> Iterator[ReinforcedSample]:
    """Yield reinforced samples of photos."""
    augmentation = datacompdr_augmentation(224)
    for number in range(spec.num_samples):
        rng = np.random.default_rng([spec.seed, number])
        key = f"{number:08d}"
        image = photo(number, longer_side, quality=quality, seed=spec.seed)
        size = decode_image(image).size
        texts = [" ".join(rng.choice(WORDS, int(rng.integers(6, 14)))) for _ in range(6)]
        rows = rng.standard_normal((spec.num_augmentations + 6, spec.dim)).astype(np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        yield ReinforcedSample(
            key=key,
            captions=texts[:1],
            syn_captions={"syn_text": texts[1:]},
            image=image,
            image_sha256=hash_image(image),
            augmentations=[
                augmentation.sample(augmentation_rng(spec.seed, key, index), size)
                for index in range(spec.num_augmentations)
            ],
            image_emb=rows[:-6],
            text_emb=rows[-6:-5],
            syn_text_emb={"syn_text": rows[-5:]},
        )


def release_batches(spec: DataBenchSpec, shard: Path) -> Callable[[], Iterator[tuple[Any, ...]]]:
    """Return a function that reads an epoch like the release: batches of keys, images, ids and embeddings."""
    import open_clip  # type: ignore[import-untyped]
    import webdataset as wds  # type: ignore[import-untyped]
    from torchvision.transforms import InterpolationMode, Normalize, functional as F  # type: ignore[import-untyped]
    from torchvision.transforms.autoaugment import _apply_op  # type: ignore[import-untyped]

    tokenizer = open_clip.get_tokenizer("ViT-B-16")
    normalize = Normalize((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))

    def replay(image: Image.Image, stored: Any) -> Tensor:
        crop, operations = stored
        view = F.resized_crop(image, *crop, [spec.size, spec.size], InterpolationMode.BICUBIC)
        for index, magnitude in operations:
            name = OPERATIONS[index].name
            view = _apply_op(view, name, magnitude, interpolation=InterpolationMode.NEAREST, fill=None)
        return cast("Tensor", normalize(F.to_tensor(view)))

    def prepare(sample: Mapping[str, Any]) -> dict[str, Any]:
        rng = seeded_rng(spec.seed, "example", 0, sample["__key__"])
        stored = sample["paug.json"]["param_aug"]
        texts = sample["syn.json"]["syn_text"]
        # The order of our draws: augmentation, caption, set of synthetic captions, caption of it.
        index, _, _, synthetic = (random_index(rng, count) for count in (len(stored), 1, 1, len(texts)))
        image = replay(sample["image"].convert("RGB"), stored[index])
        arrays = sample["npz"] if "npz" in sample else sample["pth.gz"]
        image_emb, text_emb = arrays["image_emb"][index], arrays["text_emb"]
        rows = (torch.as_tensor(row).float() for row in (image_emb, text_emb[0], text_emb[1 + synthetic]))
        ids = (tokenizer(text)[0] for text in (sample["text"], texts[synthetic]))
        return dict(zip(_FIELDS, (sample["__key__"], image, *ids, *rows), strict=True))

    def read() -> Iterator[tuple[Any, ...]]:
        yield from wds.DataPipeline(
            wds.SimpleShardList([str(shard)]),
            wds.tarfile_to_samples(),
            wds.decode("pilrgba"),
            wds.rename(image="jpg;png;jpeg;webp", text="txt"),
            wds.map(prepare),
            wds.to_tuple(*_FIELDS),
            wds.batched(spec.batch_size, partial=True),
        )

    return read


_FIELDS = ("key", "image", "text", "syn_text", "image_emb", "text_emb", "syn_text_emb")


def mobileclip_batches(spec: DataBenchSpec, shard: Path, decode: Decode) -> Callable[[], Iterator[ReinforcedBatch]]:
    """Return a function that reads the same epoch with mobileclip."""
    pipeline = ReinforcedPipelineSpec(
        shards=str(shard),
        batch_size=spec.batch_size,
        image=ImageInput(size=spec.size),
        decode=decode,
        seed=spec.seed,
        shuffle=False,
        num_readers=1,
        drop_last=False,
        teacher_dim=spec.dim,
    ).build()
    return lambda: pipeline.epoch(0)


def pixel_difference(
    batches: Iterator[ReinforcedBatch], reference: Iterator[tuple[Any, ...]], tolerance: float
) -> tuple[float, float]:
    """Return mean absolute and mean squared pixel differences, in levels, after a check that all else is equal.

    Args:
        batches: an epoch of mobileclip.
        reference: the same epoch of the release.
        tolerance: relative tolerance for embeddings, since layouts may round them.

    Raises:
        ValueError: if the two sides read different samples, captions or embeddings.
    """
    absolute, square, count = 0.0, 0.0, 0
    for batch, other in zip(batches, reference, strict=True):
        named = dict(zip(_FIELDS, other, strict=True))
        assert batch.syn_text is not None, "every sample has both kinds of captions"
        same_texts = torch.equal(batch.text, named["text"]) and torch.equal(batch.syn_text, named["syn_text"])
        if batch.keys != tuple(named["key"]) or not same_texts:
            raise ValueError("the two sides read different samples or captions, so their times mean nothing")
        for embeddings, name in (
            (batch.teacher_image, "image_emb"),
            (batch.teacher_text, "text_emb"),
            (batch.teacher_syn_text, "syn_text_emb"),
        ):
            if embeddings is None or not torch.allclose(embeddings, named[name], rtol=tolerance, atol=0):
                raise ValueError(f"the two sides read different {name}, so their times mean nothing")
        images = normalize_pixels(batch.image, ImageInput(size=batch.image.shape[-1]))
        difference = (255 * (images.double() - named["image"].double())).abs()
        absolute, square = absolute + float(difference.sum()), square + float(difference.square().sum())
        count += difference.numel()
    return absolute / count, square / count


def compare(spec: DataBenchSpec, layout: Layout, decode: Decode) -> list[Row]:
    """Return the speed of both sides for the same samples, after a comparison of their results.

    Raises:
        ValueError: if results differ that must be equal; then the times mean nothing.
    """
    exact = decode == "exact"
    side, quality = (spec.photo_side, spec.photo_quality) if exact else (spec.large_side, spec.large_quality)
    made = list(samples(spec, side, quality))
    with TemporaryDirectory(prefix="mobileclip-") as name:
        folder = Path(name)
        shard = write_shard(folder / "mobileclip.tar", made, layout=layout)
        public: Layout = layout if layout in ("npz", "pth.gz") else "npz"
        release_shard = shard if public == layout else write_shard(folder / "release.tar", made, layout=public)
        batches, reference = mobileclip_batches(spec, shard, decode), release_batches(spec, release_shard)
        mean_error, mean_square = pixel_difference(batches(), reference(), 2**-8 if layout == "compact" else 0.0)
        if exact and mean_square > 0:
            raise ValueError(f"the pixels differ by {mean_error:.3f} levels on average, so the times mean nothing")
        sides = {"mobileclip": clocked(lambda: list(batches())), "release": clocked(lambda: list(reference()))}
        taken = in_turn(sides, rounds=spec.rounds)
    cpu = {name: [one.cpu for one in several] for name, several in taken.items()}
    values = {
        **{name: spread([len(made) / one for one in several], "samples/s") for name, several in cpu.items()},
        "ratio": ratio(cpu["release"], cpu["mobileclip"]),
        "error": Value(number=mean_error, unit="levels"),
        "picture": Value(number=statistics.mean(len(one.image or b"") for one in made) / 1000, unit="kB"),
    }
    if mean_square > 0:
        values["PSNR"] = Value(number=float(10 * np.log10(255**2 / mean_square)), unit="dB")
    return [Row(case={"photos": f"{side} px"}, values=values)]
