"""What the four parts of ARO ask of a model: which of some captions is true of a picture, or of a part of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import attrs

from mobileclip import storage
from mobileclip.data.skips import BadSampleError, Skip, SkipReport
from mobileclip.evaluation.datasets.benchmark import Benchmark
from mobileclip.evaluation.tasks.aro.perturbation import normalize_caption, perturb
from mobileclip.evaluation.tasks.aro.tagging import Tagger

Part = Literal["vg_relation", "vg_attribution", "coco_order", "flickr30k_order"]
PARTS: tuple[Part, ...] = ("vg_relation", "vg_attribution", "coco_order", "flickr30k_order")

# Left, top, right and bottom, in pixels; the last two are not part of it.
Box = tuple[int, int, int, int]

_MAX_IMAGE_BYTES = 1 << 27


@attrs.frozen(kw_only=True)
class Case:
    """One caption that is true, and others that are not.

    Args:
        key: what reports call it.
        true_caption: what is to be seen.
        false_captions: what is not.
        box: the part of the picture that they are about; the whole where it is None.
        group: the relation, or the pair of attributes, that it tests; empty for orders.
    """

    key: str
    true_caption: str
    false_captions: tuple[str, ...] = attrs.field(validator=attrs.validators.min_len(1))
    box: Box | None = None
    group: str = ""


@attrs.frozen(kw_only=True)
class Picture:
    """A picture with the cases about it.

    Args:
        key: what reports call it.
        cases: at least one.
        image: the encoded image; read from `address` where it is None.
        address: path or address of the image.
    """

    key: str
    cases: tuple[Case, ...]
    image: bytes | None = attrs.field(default=None, repr=False)
    address: str = ""

    @property
    def boxes(self) -> tuple[Box | None, ...]:
        """The parts of the picture that are looked at, each once."""
        return tuple(dict.fromkeys(case.box for case in self.cases))

    def read(self) -> bytes:
        """Return the encoded image.

        Raises:
            BadSampleError: with the reason `image_missing`, if there is none.
            OSError: if it is there and cannot be read, or its store cannot be reached.
        """
        if self.image is not None:
            return self.image
        try:
            return storage.read_bytes(self.address, limit=_MAX_IMAGE_BYTES)
        except (FileNotFoundError, NotADirectoryError):
            raise BadSampleError("image_missing", f"{self.address} is missing") from None


@attrs.frozen(kw_only=True)
class PairTask:
    """VG-Relation or VG-Attribution: a caption against the same one with two things, or two attributes, swapped.

    Args:
        key: of its result, `aro/vg_relation` or `aro/vg_attribution`.
        title: its name in tables.
        all_pictures: with their cases.
        counted: the groups whose mean is the metric.

    Raises:
        ValueError: if no group counts.
    """

    key: str
    title: str
    all_pictures: tuple[Picture, ...] = attrs.field(repr=lambda pictures: f"{len(pictures)} pictures")
    counted: tuple[str, ...]

    def __attrs_post_init__(self) -> None:
        if not self.counted:
            groups = {case.group for picture in self.all_pictures for case in picture.cases}
            raise ValueError(
                f"nothing of {self.title} counts: its cases test {', '.join(sorted(groups)[:5]) or 'nothing'}; is the "
                f"annotation file the published one, and whole?"
            )

    @property
    def dataset(self) -> str:
        """What results call the data set."""
        return self.title

    @property
    def num_pictures(self) -> int:
        """Number of pictures, of which some may be missing."""
        return len(self.all_pictures)

    def pictures(self, report: SkipReport) -> Iterator[Picture]:
        """Yield the pictures with their cases, which `report` counts as read."""
        for picture in self.all_pictures:
            report.num_read += len(picture.cases)
            yield picture


@attrs.frozen(kw_only=True)
class CaptionedImage:
    """A picture with what people said of it.

    Args:
        key: what reports call it.
        captions: as they are published.
        image: the encoded image; read from `address` where it is None.
        address: path or address of the image.
    """

    key: str
    captions: tuple[str, ...]
    image: bytes | None = attrs.field(default=None, repr=False)
    address: str = ""


@attrs.frozen(kw_only=True)
class OrderTask:
    """COCO-Order, Flickr30k-Order or that of other captions: a caption against four other orders of its words.

    Args:
        key: of its result, such as `aro/coco_order`.
        title: its name in tables.
        source: captioned images, or a data set of them.
        tagger: says which words are nouns and adjectives; named in the result.
        num_pictures: about how many there are; zero where that is not known.
        seed: of the orders, see `perturb`.
    """

    key: str
    title: str
    source: tuple[CaptionedImage, ...] | Benchmark = attrs.field(repr=False)
    tagger: Tagger
    num_pictures: int = 0
    seed: int = 0

    @property
    def dataset(self) -> str:
        """What results call the data set: with another tagger it is another one."""
        return f"{self.title} (tagged by {self.tagger.name})"

    def pictures(self, report: SkipReport) -> Iterator[Picture]:
        """Yield the pictures with a case for every caption, which `report` counts as read.

        Args:
            report: what cannot be used is counted and named: see `Benchmark.samples`, and no_caption for captions
                without a word.
        """
        for image in self._images(report):
            cases = tuple(case for case in self._cases(image, report) if case is not None)
            report.num_read += len(cases)
            if cases:
                yield Picture(key=image.key, cases=cases, image=image.image, address=image.address)

    def _images(self, report: SkipReport) -> Iterator[CaptionedImage]:
        if not isinstance(self.source, Benchmark):
            yield from self.source
            return
        for sample in self.source.samples(report):
            report.num_read -= 1  # captions are counted, not images
            yield CaptionedImage(key=sample.key, captions=sample.captions, image=sample.image)

    def _cases(self, image: CaptionedImage, report: SkipReport) -> Iterator[Case | None]:
        for number, caption in enumerate(image.captions):
            key, true = f"{image.key}, caption {number}", normalize_caption(caption)
            if not true:
                detail = f"{caption[:40]!r} has no word"
                report.add(Skip(reason="no_caption", key=key, shard=self.key, detail=detail))
                continue
            false = tuple(map(normalize_caption, perturb(caption, self.tagger, seed=self.seed)))
            yield Case(key=key, true_caption=true, false_captions=false)


Aro = PairTask | OrderTask
