"""Compares towers on samples: bundled images and captions, calibration inputs, and measurements."""

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
    """Real images and captions, for ranking the captions for each image and the images for each caption.

    Args:
        name: name of the data set, for the report.
        image_names: one name per image, in the order of `images`.
        images: bytes of image files, at least two.
        captions: at least two captions, without duplicates.

    Raises:
        ValueError: if there are fewer than two images or captions, a caption is duplicated, or the number of names
            differs from the number of images.
    """

    name: str
    image_names: tuple[str, ...]
    images: tuple[bytes, ...] = attrs.field(repr=False, validator=validators.min_len(2))
    captions: tuple[str, ...] = attrs.field(repr=False, validator=validators.min_len(2))

    def __attrs_post_init__(self) -> None:
        """Check that every image has a name, and that no caption is duplicated."""
        if len(self.image_names) != len(self.images):
            raise ValueError(
                f"{len(self.images)} images have {len(self.image_names)} names, expected one name per image"
            )
        if twice := repeated(self.captions):
            raise ValueError(f"duplicate captions cannot be ranked: {twice[:3]}; remove the duplicates")


def bundled_samples() -> Samples:
    """Return the twelve images bundled with the package, with two captions each, all free to use."""
    folder = resources.files("mobileclip.inference") / _FOLDER
    captions: dict[str, list[str]] = json.loads((folder / "captions.json").read_text(encoding="utf-8"))
    return Samples(
        name="bundled",
        image_names=tuple(captions),
        images=tuple((folder / f"{name}.jpg").read_bytes() for name in captions),
        captions=tuple(caption for several in captions.values() for caption in several),
    )


# Static ranges of convolutional networks converge within about a hundred images.
NUM_CROPS = 96
"""Approximate number of calibration crops, and maximum number of calibration images."""

_LEAST_AREA, _WIDEST = 0.4, 4 / 3


def calibration_crops(images: Sequence[bytes], contract: ImageInput) -> Tensor:
    """Return about a hundred crops of images at the model's input size, without normalisation.

    If there are fewer images than crops, the function takes several deterministic crops of each image. A crop covers at
    least 40 % of the image, with an aspect ratio between 3:4 and 4:3; half of the crops are mirrored.

    Shape: `(crops, 3, size, size)`, uint8; no crops if no image can be read.

    Args:
        images: bytes of image files; the function uses only the first `NUM_CROPS`, and skips unreadable images.
        contract: image input of the model.
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
    """Return a random crop of an image, flipped horizontally with a probability of one half."""
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
"""Minimum cosine between any embedding and the float32 embedding of the same input, by precision."""

LARGEST_ERROR: dict[Precision, float] = {"float32": 1e-5}
"""Maximum relative error of an embedding from a faster backend, by precision."""

LEAST_AGREEMENT = 0.99
"""Minimum fraction of queries with the same first result as in float32, for many queries; see `least_agreement`."""

_CHANCE = 0.025

# Milliseconds.
_SHORT = 500


def times_in_turn(functions: Sequence[Callable[[], object]], *, rounds: int) -> list[list[float]]:
    """Return the milliseconds of the timed calls of each function, one call per round, after a warm-up call.

    Args:
        functions: functions to time.
        rounds: number of rounds, at least 1.
    """
    for function in functions:
        function()
    times: list[list[float]] = [[] for _ in functions]
    for order in orders(len(functions), rounds=rounds):
        for which in order:
            times[which].append(turn(functions[which])[0])
    return times


def orders(count: int, *, rounds: int) -> Iterator[list[int]]:
    """Yield a random order of `count` functions for each round, with a fixed seed.

    Random orders spread a temporary slowdown of the machine over all functions. With random orders, all functions also
    run twice in a row equally often; the second of two runs takes a quarter less time for a small model.
    """
    generator = torch.Generator().manual_seed(0)
    for _ in range(rounds):
        yield torch.randperm(count, generator=generator).tolist()


def turn(call: Callable[[], object]) -> tuple[float, float]:
    """Return the milliseconds and the CPU seconds of a call.

    A call of less than half a second runs again, and only the second run counts: in the first run, threads of the
    previous function may still spin, and the weights are not in the cache.
    """
    measured = _timed(call)
    return _timed(call) if measured[0] < _SHORT else measured


def _timed(call: Callable[[], object]) -> tuple[float, float]:
    start, processors = time.perf_counter(), time.process_time()
    call()
    return 1e3 * (time.perf_counter() - start), time.process_time() - processors


def median_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """Return the median of the elementwise ratios of two sequences of times."""
    return statistics.median(a / b for a, b in zip(numerators, denominators, strict=True))


def smallest_cosine(embeddings: Tensor, expected: Tensor) -> float:
    """Return the smallest cosine between an embedding and its reference; NaN if an embedding is not finite."""
    return float(torch.cosine_similarity(in_float64(embeddings), in_float64(expected), dim=-1).min())


def largest_error(embeddings: Tensor, expected: Tensor) -> float:
    """Return the largest relative error of an embedding: the norm of the difference over the expected norm."""
    difference = (in_float64(embeddings) - in_float64(expected)).norm(dim=-1)
    return float((difference / in_float64(expected).norm(dim=-1)).max())


def least_agreement(num_queries: int) -> float:
    """Return the minimum agreement whose 95 % Clopper-Pearson confidence interval reaches `LEAST_AGREEMENT`.

    For example, the first results of two out of 36 queries may differ; for a true agreement of `LEAST_AGREEMENT`, three
    or more first results differ with a probability of 0.6 %.

    Args:
        num_queries: number of queries, at least 1.
    """
    # `scipy.stats.binom.ppf` calls this function, but importing the distributions takes almost a second.
    from scipy.special import bdtrik

    most = float(bdtrik(1 - _CHANCE, num_queries, 1 - LEAST_AGREEMENT))
    return 1 - math.ceil(most) / num_queries


def first_results(queries: Tensor, keys: Tensor) -> Tensor:
    """Return, for each query, the index of the nearest key by cosine; if `queries is keys`, skip the query itself."""
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
        measured: a held-out batch of inputs for measurement.
        others: float32 embeddings of the other tower, for ranking in both directions; None to rank the inputs in
            `measured` by similarity to each other.
    """

    ranges: Tensor
    measured: Tensor
    others: Tensor | None = None

    @classmethod
    def of(cls, inputs: Tensor) -> Calibration:
        """Split inputs alternately into one half for calibration and one half for measurement.

        Raises:
            ValueError: if there are fewer than four inputs.
        """
        if len(inputs) < _FEWEST:
            raise ValueError(
                f"calibration has {len(inputs)} inputs for a tower, expected at least {_FEWEST}, half for ranges "
                "and half for measurement; pass more inputs, or none to use the bundled samples"
            )
        return cls(ranges=inputs[::2], measured=inputs[1::2])

    @classmethod
    def of_package(cls, contract: ImageInput | TextInput) -> Calibration:
        """Calibrate on half of the package's images (as crops) or captions, and measure on the other half."""
        samples = bundled_samples()
        if isinstance(contract, TextInput):
            return cls.of(Tokenizer(contract)(samples.captions))
        transform = ImageTransform(contract)
        crops = calibration_crops(samples.images[::2], contract)
        whole = torch.stack([transform(data) for data in samples.images[1::2]])
        return cls(ranges=transform.normalize(crops.movedim(1, -1)), measured=whole)

    def refusal(self, embeddings: Tensor, expected: Tensor) -> str:
        """Return the reason why a tower fails the check of first results; empty if the tower passes.

        Args:
            embeddings: embeddings of `measured` from the tower to check.
            expected: float32 embeddings of `measured`.
        """
        same = self.same_first(embeddings, expected)
        agreement, least = float(same.double().mean()), least_agreement(len(same))
        if agreement < least:
            return f"{agreement:.1%} of {len(same)} first results are as in float32, expected at least {least:.1%}"
        return ""

    def same_first(self, embeddings: Tensor, expected: Tensor) -> Tensor:
        """Return whether each first result equals the float32 result; with `others`, rank in both directions.

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
        model: the model, in float32.
        given: preprocessed images and token ids; by default the images and captions bundled with the package.

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
