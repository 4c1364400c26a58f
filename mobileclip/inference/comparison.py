"""Compares towers on samples: packaged images and texts, calibration inputs, and measures."""

from __future__ import annotations

import json
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import resources

import attrs
import torch
from attrs import validators
from PIL import Image
from torch import Tensor

from mobileclip.data.images.limits import ImageError
from mobileclip.data.images.transform import ImageTransform, load_image
from mobileclip.data.text.tokenizer import Tokenizer
from mobileclip.encoders import DualEncoder
from mobileclip.hardware import Precision, in_float64
from mobileclip.inputs import ImageInput, TextInput
from mobileclip.strict import repeated

_FOLDER, _FEWEST = "samples", 4


@attrs.frozen(kw_only=True)
class Samples:
    """Real images and captions, for ranking in both directions.

    Args:
        name: name of the data set, for the report.
        image_names: of the images, in their order.
        images: encoded images, at least two.
        captions: at least two, no two equal.

    Raises:
        ValueError: if there are too few, a caption is duplicated, or names are missing.
    """

    name: str
    image_names: tuple[str, ...]
    images: tuple[bytes, ...] = attrs.field(repr=False, validator=validators.min_len(2))
    captions: tuple[str, ...] = attrs.field(repr=False, validator=validators.min_len(2))

    def __attrs_post_init__(self) -> None:
        """Check that every image has its name, and that no two captions could be taken for each other."""
        if len(self.image_names) != len(self.images):
            raise ValueError(f"{len(self.images)} images have {len(self.image_names)} names; give one for each")
        if twice := repeated(self.captions):
            raise ValueError(f"duplicate captions cannot be ranked: {twice[:3]}")


def bundled_samples() -> Samples:
    """Return the package's twelve images with two captions each, all free to use."""
    folder = resources.files("mobileclip.inference") / _FOLDER
    captions: dict[str, list[str]] = json.loads((folder / "captions.json").read_text(encoding="utf-8"))
    return Samples(
        name="bundled",
        image_names=tuple(captions),
        images=tuple((folder / f"{name}.jpg").read_bytes() for name in captions),
        captions=tuple(caption for several in captions.values() for caption in several),
    )


# Static ranges of convolutional networks settle within about a hundred images.
NUM_CROPS = 96
"""Crops that ranges are found with."""

_LEAST_AREA, _WIDEST = 0.4, 4 / 3


def calibration_crops(images: Sequence[bytes], contract: ImageInput) -> Tensor:
    """Return about a hundred crops of images, resized as a model takes them, and not normalised yet.

    With fewer images, the function takes several deterministic crops of each: at least 0.4 of its area, aspect ratio
    between 3:4 and 4:3, half of them mirrored.

    Shape:
        `(crops, 3, size, size)`, uint8; no crops where no image can be read.

    Args:
        images: encoded; the function skips unreadable images, and all after the first `NUM_CROPS`.
        contract: contract of the model.
    """
    transform, generator = ImageTransform(contract), random.Random(0)  # noqa: S311  not for secrets
    each = math.ceil(NUM_CROPS / len(images))
    readable = (found for data in images[:NUM_CROPS] if (found := _readable(data, contract)) is not None)
    crops = [transform.pixels(_cropped(image, generator)) for image in readable for _ in range(each)]
    if not crops:
        return torch.empty(0, 3, contract.size, contract.size, dtype=torch.uint8)
    return torch.stack([torch.from_numpy(crop).movedim(-1, 0) for crop in crops])


def _readable(data: bytes, contract: ImageInput) -> Image.Image | None:
    try:
        return load_image(data, background=contract.background_color)
    except ImageError:
        return None


def _cropped(image: Image.Image, generator: random.Random) -> Image.Image:
    """Return a random part of an image, mirrored every other time."""
    area = generator.uniform(_LEAST_AREA, 1) * image.width * image.height
    aspect = math.exp(generator.uniform(-math.log(_WIDEST), math.log(_WIDEST)))
    width = max(1, min(image.width, round(math.sqrt(area * aspect))))
    height = max(1, min(image.height, round(math.sqrt(area / aspect))))
    left, top = generator.randint(0, image.width - width), generator.randint(0, image.height - height)
    crop = image.crop((left, top, left + width, top + height))
    return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if generator.random() < 0.5 else crop


LEAST_COSINE: dict[Precision, float] = {
    "float32": 0.99999,
    "float16": 0.9995,
    "bfloat16": 0.9995,
    "int8": 0.98,
    "int8-weights": 0.99,
}
"""Of any embedding with the model's own in float32."""

LARGEST_ERROR: dict[Precision, float] = {"float32": 1e-5}
"""Of any embedding, of the model's own in the same precision: all that a faster form may differ."""

LEAST_AGREEMENT = 0.99
"""Part of the queries that have the same first result as in float32, where there are enough of them to tell."""

_CHANCE = 0.025

# Milliseconds.
_SHORT = 500


def times_in_turn(functions: Sequence[Callable[[], object]], *, rounds: int) -> list[list[float]]:
    """Return the milliseconds of every function's calls: as many as there are rounds, after one to warm up.

    Args:
        functions: functions to time.
        rounds: at least 1.
    """
    for function in functions:
        function()
    times: list[list[float]] = [[] for _ in functions]
    for order in orders(len(functions), rounds=rounds):
        for which in order:
            times[which].append(turn(functions[which])[0])
    return times


def orders(count: int, *, rounds: int) -> Iterator[list[int]]:
    """Yield a random order per round, the same in every process.

    A temporary slowdown of the machine affects all functions. No function runs twice in a row more often than the
    others, since two runs in a row take a quarter off a small model's time.
    """
    generator = torch.Generator().manual_seed(0)
    for _ in range(rounds):
        yield torch.randperm(count, generator=generator).tolist()


def turn(call: Callable[[], object]) -> tuple[float, float]:
    """Return the milliseconds of a call, and the seconds that processors computed for it.

    Short functions run twice, and only the second run counts: in the first run, threads of the last function may still
    spin, and the weights are not in the cache.
    """
    measured = _timed(call)
    return _timed(call) if measured[0] < _SHORT else measured


def _timed(call: Callable[[], object]) -> tuple[float, float]:
    start, processors = time.perf_counter(), time.process_time()
    call()
    return 1e3 * (time.perf_counter() - start), time.process_time() - processors


def median_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """Return the median of the ratios of neighbouring calls."""
    return statistics.median(a / b for a, b in zip(numerators, denominators, strict=True))


def smallest_cosine(embeddings: Tensor, expected: Tensor) -> float:
    """Return the smallest cosine between two embeddings of one input; NaN where one is not finite."""
    return float(torch.cosine_similarity(in_float64(embeddings), in_float64(expected), dim=-1).min())


def largest_error(embeddings: Tensor, expected: Tensor) -> float:
    """Return the largest norm of an embedding's difference over the norm of the expected one."""
    difference = (in_float64(embeddings) - in_float64(expected)).norm(dim=-1)
    return float((difference / in_float64(expected).norm(dim=-1)).max())


def least_agreement(num_queries: int) -> float:
    """Return the least agreement of a number of queries whose 95 % Clopper-Pearson interval reaches `LEAST_AGREEMENT`.

    Of 36 queries two may change: three would by a chance of 0.6 % alone.

    Args:
        num_queries: at least 1.
    """
    # What `scipy.stats.binom.ppf` asks, without the most of a second that importing the distributions takes.
    from scipy.special import bdtrik

    most = float(bdtrik(1 - _CHANCE, num_queries, 1 - LEAST_AGREEMENT))
    return 1 - math.ceil(most) / num_queries


def first_results(queries: Tensor, keys: Tensor) -> Tensor:
    """Return the index of the key of the highest cosine for each query; of one set, without the query itself."""
    one, other = (torch.nn.functional.normalize(tensor.double(), dim=1) for tensor in (queries, keys))
    similarity = one @ other.T
    if queries is keys:
        similarity.fill_diagonal_(-torch.inf)
    return similarity.argmax(dim=1)


@attrs.frozen(kw_only=True, eq=False)
class Calibration:
    """Inputs of a tower for calibration, and held-out inputs for measurement.

    Args:
        ranges: a batch of inputs for calibration.
        measured: a batch of other inputs for measurement.
        others: float32 embeddings of the other tower, for ranking in both directions; without these, the measure is
            nearest neighbours within `measured`.
    """

    ranges: Tensor
    measured: Tensor
    others: Tensor | None = None

    @classmethod
    def of(cls, inputs: Tensor) -> Calibration:
        """Return half of the inputs, every other one, for the ranges, and half to be measured on.

        Raises:
            ValueError: if there are fewer than four.
        """
        if len(inputs) < _FEWEST:
            raise ValueError(
                f"calibration has {len(inputs)} inputs of a tower, expected at least {_FEWEST}, of which half are for "
                "ranges and half are measured on; give more, or none for the pictures of the package"
            )
        return cls(ranges=inputs[::2], measured=inputs[1::2])

    @classmethod
    def of_package(cls, contract: ImageInput | TextInput) -> Calibration:
        """Calibrate on crops of half of the package's images or half of its captions, and measure on the other half."""
        samples = bundled_samples()
        if isinstance(contract, TextInput):
            return cls.of(Tokenizer(contract)(samples.captions))
        transform = ImageTransform(contract)
        crops = calibration_crops(samples.images[::2], contract)
        whole = torch.stack([transform(data) for data in samples.images[1::2]])
        return cls(ranges=transform.normalize(crops.movedim(1, -1)), measured=whole)

    def refusal(self, embeddings: Tensor, expected: Tensor) -> str:
        """Return why a tower ranks too differently; empty if it passes.

        Args:
            embeddings: of `measured`.
            expected: the same in float32.
        """
        same = self.same_first(embeddings, expected)
        agreement, least = float(same.double().mean()), least_agreement(len(same))
        if agreement < least:
            return f"{agreement:.1%} of {len(same)} first results are as in float32, expected at least {least:.1%}"
        return ""

    def same_first(self, embeddings: Tensor, expected: Tensor) -> Tensor:
        """Return whether each first result is as in float32, in both directions where there are others.

        Shape:
            returns `(results,)`, bool.
        """
        return self._found_first(embeddings) == self._found_first(expected)

    def _found_first(self, embeddings: Tensor) -> Tensor:
        if self.others is None:
            return first_results(embeddings, embeddings)
        return torch.cat([first_results(embeddings, self.others), first_results(self.others, embeddings)])


@torch.no_grad()
def calibrations(model: DualEncoder, given: tuple[Tensor, Tensor] | None) -> tuple[Calibration, Calibration]:
    """Return the calibration of a model's image tower and text tower.

    Args:
        model: in float32.
        given: images and tokenised texts; by default the package's samples.

    Raises:
        ValueError: if there are fewer than four images or texts.
    """
    pixels, ids = model.spec.image.input, model.spec.text.input
    if given is None:
        samples, transform = bundled_samples(), ImageTransform(pixels)
        images, tokens = torch.stack([transform(data) for data in samples.images]), Tokenizer(ids)(samples.captions)
        of_images, of_texts = Calibration.of_package(pixels), Calibration.of_package(ids)
    else:
        images, tokens = given
        of_images, of_texts = Calibration.of(images), Calibration.of(tokens)
    image_embeddings, text_embeddings = model.image_encoder(images), model.text_encoder(tokens)
    return attrs.evolve(of_images, others=text_embeddings), attrs.evolve(of_texts, others=image_embeddings)
