"""Samples in memory: an image with captions and teacher embeddings."""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, overload

import attrs
import numpy as np
from attrs import validators

from mobileclip.data.augmentation.operations import OPERATIONS
from mobileclip.data.augmentation.policy import AugmentationParams, compress, decompress
from mobileclip.data.images.limits import IMAGE_EXTENSIONS, ImageError, ImageLimits
from mobileclip.data.images.transform import LIMITS, load_image
from mobileclip.data.samples.readers import EmbeddingRows, Embeddings, as_float32
from mobileclip.data.skips import BadSampleError
from mobileclip.inputs import Color
from mobileclip.storage import printable

if TYPE_CHECKING:
    from PIL import Image


_NUM_OPERATIONS = len(OPERATIONS)


class StoredViews(Sequence[AugmentationParams]):
    """The stored augmentations of one image, all checked at construction and each parsed on demand.

    Args:
        compressed: augmentations in the form that `compress` returns.
        image_size: width and height of the source image, in pixels; None if unknown.

    Raises:
        ValueError: if an augmentation is malformed, or its crop exceeds the image.
    """

    def __init__(self, compressed: Sequence[Any], image_size: tuple[int, int] | None) -> None:
        self._compressed, self.image_size = compressed, image_size
        rights, bottoms = [], []
        for one in compressed:
            # The common form is checked here for speed, because every sample has dozens of augmentations.
            try:
                (top, left, height, width), operations = one
                is_plain = type(top) is type(left) is type(height) is type(width) is int
                is_plain = is_plain and top >= 0 and left >= 0 and height > 0 and width > 0
                for index, magnitude in operations:
                    is_known = type(index) is int and 0 <= index < _NUM_OPERATIONS
                    # A number minus itself is 0, except for NaN and infinity.
                    is_plain = is_plain and is_known and type(magnitude) is float and magnitude - magnitude == 0
            except (TypeError, ValueError):
                is_plain = False
            if not is_plain:
                top, left, height, width = decompress(one, image_size).crop
            rights.append(left + width)
            bottoms.append(top + height)
        self._right, self._bottom = max(rights, default=0), max(bottoms, default=0)
        if image_size is not None:
            self.check_fits(image_size)

    def __len__(self) -> int:
        return len(self._compressed)

    @overload
    def __getitem__(self, index: int) -> AugmentationParams: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[AugmentationParams, ...]: ...

    def __getitem__(self, index: int | slice) -> AugmentationParams | tuple[AugmentationParams, ...]:
        if isinstance(index, slice):
            return tuple(self[place] for place in range(len(self))[index])
        return decompress(self._compressed[index], self.image_size)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    __hash__ = None  # type: ignore[assignment]  # like a list's

    def check_fits(self, size: tuple[int, int]) -> None:
        """Raise unless all augmentations fit an image of `size`; see `AugmentationParams.check_fits`."""
        if self.image_size not in (None, size) or self._right > size[0] or self._bottom > size[1]:
            for params in self:
                params.check_fits(size)


def stored_views(views: Iterable[AugmentationParams]) -> StoredViews:
    """Return augmentations of one image in stored form.

    Raises:
        BadSampleError: if the augmentations belong to images of different sizes.
    """
    if isinstance(views, StoredViews):
        return views
    own = tuple(views)
    sizes = {params.image_size for params in own}
    if len(sizes) > 1:
        raise BadSampleError("bad_augmentation", "the augmentations belong to images of different sizes")
    return StoredViews([compress(params) for params in own], *sizes or (None,))


Layout = Literal["npz", "pth.gz", "compact", "compact8"]

LAYOUTS: tuple[Layout, ...] = ("npz", "pth.gz", "compact", "compact8")

# Name of the only caption set of the first public release; in later releases, `_` and a name follow.
SYN_TEXT = "syn_text"
SYN_NAME = re.compile(r"syn_text(_\w+)?")

_KEY = re.compile(r"(?:[^/]+/)*[^/.]+")
# Nearly all keys match this pattern.
_PLAIN_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,250}")
# Characters that would break a row of a report, end a name or change the writing direction.
_UNSHOWABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_DRIVE = re.compile(r"[A-Za-z]:[/\\]")
MAX_KEY_BYTES = 1024
"""Maximum size of a key, in UTF-8 bytes."""

# A text tower reads about 77 tokens; a text longer than a chapter would only cost time.
_MAX_CAPTION_BYTES = 2**16
_MAX_CAPTIONS = 10_000
_SHA256 = re.compile(r"[0-9a-f]{64}")
# Members that correspond to fields of a sample; embeddings in `npz` or `pth.gz` are rejected only on writing.
_OWN_MEMBERS = frozenset(("txt", "json", "url.txt", "syn.json", "paug.json", "reinforced"))


def _texts(values: Iterable[str]) -> tuple[str, ...]:
    if isinstance(values, str):
        raise ValueError(f"expected a sequence of captions, not one string {values[:40]!r}; wrap the string in a tuple")
    return tuple(values)


def _text_sets(sets: Mapping[str, Iterable[str]]) -> dict[str, tuple[str, ...]]:
    return {name: _texts(texts) for name, texts in sets.items()}


def _embedding_sets(sets: Mapping[str, Any]) -> dict[str, Embeddings]:
    return {name: as_float32(value) for name, value in sets.items()}


def check_key(key: str) -> None:
    """Raise unless a key is a valid name for members, files and report rows on all systems.

    The key may contain undecodable bytes as surrogate escapes, like names that Python reads from a tar file.

    Raises:
        BadSampleError: if the key is empty or too long, or has dots, control characters or a path outside its folder.
    """
    if _PLAIN_KEY.fullmatch(key):
        return
    if not _KEY.fullmatch(key) or key.startswith("__"):
        raise BadSampleError("bad_key", f"key {printable(key)!r} is empty, has dots or starts with two underscores")
    if not is_showable(key):
        raise BadSampleError("bad_key", f"key {printable(key)!r} has control characters")
    if not {".", ".."}.isdisjoint(re.split(r"[/\\]", key)) or _DRIVE.match(key):
        raise BadSampleError("bad_key", f"key {printable(key)!r} refers outside its folder")
    try:
        num_bytes = len(key.encode(errors="surrogateescape"))
    except UnicodeEncodeError:
        raise BadSampleError("bad_key", f"key {printable(key)!r} has an unpaired surrogate") from None
    if num_bytes > MAX_KEY_BYTES:
        raise BadSampleError("bad_key", f"a key has {num_bytes:,} bytes, more than {MAX_KEY_BYTES:,}")


def is_showable(text: str) -> bool:
    """Return whether a name is free of line breaks, null characters and bidirectional controls."""
    return not _UNSHOWABLE.search(text)


def drop_blank(texts: Iterable[str]) -> tuple[str, ...]:
    """Return the captions without blank captions, which samples reject."""
    return tuple(text for text in texts if text.strip())


@attrs.frozen(kw_only=True, eq=False)
class ImageTextSample:
    """An image with its captions.

    Args:
        key: unique name without dots, since a dot separates key and extension in a shard.
        captions: one or more real captions, none blank.
        syn_captions: sets of synthetic captions by name, `syn_text` or `syn_text_NAME`; no blank captions.
        image: the encoded image, or None in data sets without images.
        image_extension: extension of the image file, one of `IMAGE_EXTENSIONS` (jpg, jpeg, png, webp, and more).
        url: URL of the image; None if unknown.
        metadata: further JSON values of the sample.
        others: content of all other members, by extension in lower case; readers and writers do not change the content.

    Raises:
        BadSampleError: if a field is missing or malformed. (`BadSampleError` is a subclass of ValueError.)
    """

    key: str
    captions: tuple[str, ...] = attrs.field(converter=_texts)
    syn_captions: Mapping[str, tuple[str, ...]] = attrs.field(factory=dict, converter=_text_sets)
    image: bytes | None = attrs.field(default=None, repr=lambda data: "None" if data is None else f"{len(data)} bytes")
    image_extension: str = attrs.field(default="jpg", validator=validators.in_(IMAGE_EXTENSIONS))
    url: str | None = None
    metadata: Mapping[str, Any] = attrs.field(factory=dict)
    others: Mapping[str, bytes] = attrs.field(factory=dict, repr=lambda others: repr(sorted(others)))

    def __attrs_post_init__(self) -> None:
        check_key(self.key)
        if not self.captions:
            raise BadSampleError("no_caption", f"sample {self.key!r} has no caption; expected at least one")
        self._check_texts("captions", self.captions)
        for name, texts in self.syn_captions.items():
            if not SYN_NAME.fullmatch(name):
                raise BadSampleError("bad_json", f"caption set {name!r} must be called syn_text or syn_text_NAME")
            self._check_texts(name, texts)
        num_captions = len(self.captions) + sum(map(len, self.syn_captions.values()))
        if num_captions > _MAX_CAPTIONS:
            raise BadSampleError("too_large", f"the sample has {num_captions:,} captions, more than {_MAX_CAPTIONS:,}")
        if self.url is not None and len(self.url) > _MAX_CAPTION_BYTES:
            raise BadSampleError("too_large", f"the URL has {len(self.url):,} characters, more than 65,536")
        for extension in self.others:
            self._check_other(extension)

    def _check_texts(self, name: str, texts: tuple[str, ...]) -> None:
        for text in texts:
            if not text.strip():
                raise BadSampleError("no_caption", f"{name} of {self.key!r} has a blank caption; omit it")
            try:
                num_bytes = len(text.encode())
            except UnicodeEncodeError:
                raise BadSampleError(
                    "bad_text", f"{name} of {self.key!r} cannot be encoded as UTF-8: {text!a}"
                ) from None
            if num_bytes > _MAX_CAPTION_BYTES:
                raise BadSampleError(
                    "too_large", f"a caption has {num_bytes:,} bytes, more than {_MAX_CAPTION_BYTES:,}"
                )

    def _check_other(self, extension: str) -> None:
        if not extension or "/" in extension or extension != extension.lower() or not is_showable(extension):
            raise BadSampleError(
                "bad_member", f"member {extension!r} of {self.key!r} is not an extension in lower case"
            )
        # Readers would mistake the member with the first image extension for the image.
        first = len(IMAGE_EXTENSIONS) if self.image is None else IMAGE_EXTENSIONS.index(self.image_extension) + 1
        if extension in _OWN_MEMBERS or extension in IMAGE_EXTENSIONS[:first]:
            raise BadSampleError("bad_member", f"member {extension!r} in others of {self.key!r} has its own field")


@attrs.frozen(kw_only=True, eq=False)
class AugmentedSample(ImageTextSample):
    """A sample with the stored augmentations of its image.

    Args:
        augmentations: the stored augmentations of the image; A is their number.
        image_sha256: SHA-256 of the original encoded image, before augmentation, in hexadecimal; None if unknown, as in
            the public data sets.

    Raises:
        BadSampleError: if a field is missing or malformed. (`BadSampleError` is a subclass of ValueError.)
    """

    augmentations: StoredViews = attrs.field(converter=stored_views)
    image_sha256: str | None = None

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if not self.augmentations:
            raise BadSampleError("bad_augmentation", f"sample {self.key!r} has no stored augmentation")
        if self.image_sha256 is not None and not _SHA256.fullmatch(self.image_sha256):
            raise BadSampleError("bad_json", f"{self.image_sha256!r} is not a SHA-256 in hexadecimal")

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Width and height of the image to which the augmentations apply, in pixels; None if unknown."""
        return self.augmentations.image_size


@attrs.frozen(kw_only=True, eq=False)
class ReinforcedSample(AugmentedSample):
    """A sample with synthetic captions, and teacher embeddings of images and captions.

    Args:
        image_emb: (A, D), the teachers' embeddings of the augmented images, concatenated; float32.
        text_emb: (number of captions, D), the teachers' embeddings of the captions; float32.
        syn_text_emb: (number of captions, D) for each set in `syn_captions`, by name of the set; float32.

    Raises:
        BadSampleError: if a field is missing or not finite, the numbers of rows and captions or augmentations differ,
            or the embeddings differ in dim. (`BadSampleError` is a subclass of ValueError.)
    """

    image_emb: Embeddings = attrs.field(converter=as_float32, repr=lambda emb: f"<{emb.shape}>")
    text_emb: Embeddings = attrs.field(converter=as_float32, repr=lambda emb: f"<{emb.shape}>")
    syn_text_emb: Mapping[str, Embeddings] = attrs.field(factory=dict, converter=_embedding_sets, repr=False)

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if set(self.syn_captions) != set(self.syn_text_emb):
            raise BadSampleError(
                "missing_member",
                f"synthetic captions {sorted(self.syn_captions)} and embeddings {sorted(self.syn_text_emb)} of "
                f"{self.key!r} name different sets",
            )
        dim = self.image_emb.shape[-1] if self.image_emb.ndim == 2 else 0
        arrays = {"image_emb": self.image_emb, "text_emb": self.text_emb}
        arrays |= {f"{name}_emb": emb for name, emb in self.syn_text_emb.items()}
        counts = {"image_emb": len(self.augmentations), "text_emb": len(self.captions)}
        counts |= {f"{name}_emb": len(texts) for name, texts in self.syn_captions.items()}
        for name, emb in arrays.items():
            check_shape(name, emb.shape, counts[name], dim)
            if not np.isfinite(emb).all():
                raise BadSampleError("not_finite", f"{name} of {self.key!r} contains NaN or infinity")

    @property
    def dim(self) -> int:
        """Dim of the concatenated teacher embeddings."""
        return int(self.image_emb.shape[1])

    def row(self, name: str, index: int) -> Embeddings:
        """Return the teacher embeddings of one augmentation or caption; see `StoredSample.row`."""
        own = {"image_emb": self.image_emb, "text_emb": self.text_emb}
        row: Embeddings = (own[name] if name in own else self.syn_text_emb[name.removesuffix("_emb")])[index]
        return row


@attrs.frozen(kw_only=True, eq=False)
class StoredSample(AugmentedSample):
    """A reinforced sample whose stored embeddings are decoded on demand.

    Args:
        embeddings: the stored arrays, readable row by row.
        places: stored array and row index of every embedding, for `image_emb`, `text_emb` and the `NAME_emb` of every
            set of synthetic captions.

    Raises:
        BadSampleError: if a field is missing or malformed. (`BadSampleError` is a subclass of ValueError.)
    """

    embeddings: EmbeddingRows = attrs.field(repr=False)
    places: Mapping[str, tuple[tuple[str, int], ...]] = attrs.field(repr=False)

    @property
    def dim(self) -> int:
        """Dim of the concatenated teacher embeddings."""
        return self.embeddings.shapes["image_emb"][1]

    def row(self, name: str, index: int) -> Embeddings:
        """Return the teacher embeddings of one augmentation or caption.

        Shape:
            (D,), float32.

        Args:
            name: `image_emb`, `text_emb` or, for a set of synthetic captions, `NAME_emb`.
            index: index of the augmentation or caption.

        Raises:
            BadSampleError: if the row is damaged.
        """
        return self.embeddings.row(*self.places[name][index])

    def decoded(self) -> ReinforcedSample:
        """Return the sample with all its embeddings in memory.

        Raises:
            BadSampleError: if an embedding is damaged.
        """
        fields = {field.name: getattr(self, field.name) for field in attrs.fields(AugmentedSample)}
        return ReinforcedSample(
            **fields,
            image_emb=self._array("image_emb"),
            text_emb=self._array("text_emb"),
            syn_text_emb={name: self._array(f"{name}_emb") for name in self.syn_captions},
        )

    def _array(self, name: str) -> Embeddings:
        array = np.empty((len(self.places[name]), self.dim), np.float32)
        # If rows are decompressed sequentially, reading the last row also reads all others.
        for index in reversed(range(len(array))):
            array[index] = self.row(name, index)
        return array


def check_shape(name: str, shape: tuple[int, ...], count: int, dim: int) -> None:
    """Raise unless an array of embeddings has `count` rows of `dim` numbers.

    Raises:
        BadSampleError: if the array has a different shape.
    """
    if len(shape) != 2 or shape[0] != count:
        raise BadSampleError(
            "row_count", f"{name} has shape {shape}, expected {count} rows, one per augmentation or caption"
        )
    if shape[1] != dim or dim == 0:
        raise BadSampleError("wrong_dim", f"{name} has dim {shape[1]}, but image_emb has dim {dim}")


def hash_image(image: bytes) -> str:
    """Return the SHA-256 of an encoded image in hexadecimal, for `image_sha256`."""
    return hashlib.sha256(image).hexdigest()


def check_source_image(sample: AugmentedSample, image: bytes, size: tuple[int, int]) -> None:
    """Raise if the hash or size of an image differs from the hash or size stored with the augmentations.

    On a different copy of the image, replayed crops differ from the teachers' images or exceed the image.

    Args:
        sample: a stored or a reinforced sample.
        image: the encoded image.
        size: width and height of the image, in pixels.

    Raises:
        BadSampleError: with the reason `wrong_image`, if the hash or the size differs, or a crop exceeds the image.
    """
    if sample.image_sha256 is not None and hash_image(image) != sample.image_sha256:
        raise BadSampleError(
            "wrong_image",
            f"the augmentations were made for an image with SHA-256 {sample.image_sha256[:12]}, but this image "
            f"has {hash_image(image)[:12]}; replay needs the reinforced copy of the image",
        )
    if sample.image_size == size:
        return  # the crops were checked against the size at construction
    try:
        sample.augmentations.check_fits(size)
    except ValueError as error:
        raise BadSampleError("wrong_image", str(error)) from None


def decode_image(
    data: bytes,
    *,
    orient: bool = True,
    background: Color | None = None,
    reduce: int = 1,
    limits: ImageLimits = LIMITS,
) -> Image.Image:
    """Decode an image as RGB, upright unless `orient` is False.

    Args:
        data: the encoded image.
        orient: whether to rotate the image by its EXIF orientation. False for stored augmentations: their crops refer
            to the encoded pixels, as in the public data sets.
        background: colour behind transparent pixels, such as `ImageInput.background_color`; None drops the alpha
            channel.
        reduce: 2, 4 or 8 to decode a JPEG at 1 / `reduce` of its size, rounded up; other formats ignore `reduce`.
        limits: limits on work and memory.

    Raises:
        BadSampleError: if the image cannot be decoded completely or converted to RGB, or exceeds a limit.
    """
    with warnings.catch_warnings():
        # Pillow warns about damaged metadata once per image and worker; the metadata is not used here.
        warnings.simplefilter("ignore")
        try:
            return load_image(data, orient=orient, background=background, reduce=reduce, limits=limits)
        except ImageError as error:
            raise BadSampleError(f"image_{error.reason}", error.message) from None
