"""Samples in memory and as the members of a shard, in both layouts of the public reinforced data sets."""

from __future__ import annotations

import gzip
import io
import json
import re
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import attrs
import numpy as np
import numpy.typing as npt
import torch
from attrs import validators

from mobileclip.data.augmentation import AugmentationParams, compress, decompress
from mobileclip.data.image import ImageError, load_image
from mobileclip.data.skips import BadSampleError

if TYPE_CHECKING:
    from PIL import Image

Layout = Literal["npz", "pth.gz"]
Embeddings = npt.NDArray[np.float32]

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
LAYOUTS: tuple[Layout, ...] = ("npz", "pth.gz")

# The name of the only caption set of the first public release; later ones append a name of their own.
SYN_TEXT = "syn_text"
# Further real captions; the public loaders know one per sample and ignore what they do not know.
_MORE_TEXT = "more_text"
_SYN_NAME = re.compile(r"syn_text(_\w+)?")
_KEY = re.compile(r"(?:[^/]+/)*[^/.]+")


def _float32(value: Any) -> Embeddings:
    if isinstance(value, torch.Tensor):
        value = value.detach().to("cpu", torch.float32).numpy()
    return np.ascontiguousarray(value, dtype=np.float32)


def _texts(values: Iterable[str]) -> tuple[str, ...]:
    if isinstance(values, str):
        raise ValueError(f"expected a sequence of captions, not one string {values[:40]!r}; wrap it in a tuple")
    return tuple(values)


def _augmentations(values: Iterable[AugmentationParams]) -> tuple[AugmentationParams, ...]:
    return tuple(values)


def _text_sets(sets: Mapping[str, Iterable[str]]) -> dict[str, tuple[str, ...]]:
    return {name: _texts(texts) for name, texts in sets.items()}


def _embedding_sets(sets: Mapping[str, Any]) -> dict[str, Embeddings]:
    return {name: _float32(value) for name, value in sets.items()}


@attrs.frozen(kw_only=True, eq=False)
class ImageTextSample:
    """An image with its captions.

    Args:
        key: unique name; no dots, which separate it from the members' extensions in a shard.
        captions: the real captions, at least one.
        image: the encoded image, or None where a data set is published without images.
        image_extension: format of the image: jpg, jpeg, png or webp.
        url: where the image came from, where that is known.
        metadata: whatever else is known, for JSON.

    Raises:
        BadSampleError: if something is missing or malformed; a ValueError.
    """

    key: str
    captions: tuple[str, ...] = attrs.field(converter=_texts)
    image: bytes | None = attrs.field(default=None, repr=lambda data: "None" if data is None else f"{len(data)} bytes")
    image_extension: str = attrs.field(default="jpg", validator=validators.in_(IMAGE_EXTENSIONS))
    url: str | None = None
    metadata: Mapping[str, Any] = attrs.field(factory=dict)

    def __attrs_post_init__(self) -> None:
        if not _KEY.fullmatch(self.key) or self.key.startswith("__"):
            raise BadSampleError("bad_key", f"key {self.key!r} is empty, has dots or starts with two underscores")
        if not self.captions:
            raise BadSampleError("no_caption", f"sample {self.key!r} has no caption; at least one is expected")


@attrs.frozen(kw_only=True, eq=False)
class ReinforcedSample(ImageTextSample):
    """A sample with what the teachers and the captioner said about it.

    Args:
        augmentations: A stored augmentations of the image.
        image_emb: (A, D), the teachers' embeddings of the augmented images, concatenated; float32.
        text_emb: (number of captions, D), the teachers' embeddings of the captions; float32.
        syn_captions: sets of synthetic captions by name, `syn_text` or `syn_text_NAME`.
        syn_text_emb: the sets' embeddings by the same names, (number of captions, D) each; float32.

    Raises:
        BadSampleError: if something is missing, not finite, or the numbers of rows or the dims disagree; a ValueError.
    """

    augmentations: tuple[AugmentationParams, ...] = attrs.field(converter=_augmentations)
    image_emb: Embeddings = attrs.field(converter=_float32, repr=lambda emb: f"<{emb.shape}>")
    text_emb: Embeddings = attrs.field(converter=_float32, repr=lambda emb: f"<{emb.shape}>")
    syn_captions: Mapping[str, tuple[str, ...]] = attrs.field(factory=dict, converter=_text_sets)
    syn_text_emb: Mapping[str, Embeddings] = attrs.field(factory=dict, converter=_embedding_sets, repr=False)

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if not self.augmentations:
            raise BadSampleError("bad_augmentation", f"sample {self.key!r} has no stored augmentation")
        if len({params.image_size for params in self.augmentations}) > 1:
            raise BadSampleError("bad_augmentation", f"the augmentations of {self.key!r} were made for several sizes")
        if set(self.syn_captions) != set(self.syn_text_emb):
            raise BadSampleError(
                "missing_member",
                f"synthetic captions {sorted(self.syn_captions)} and embeddings {sorted(self.syn_text_emb)} of "
                f"{self.key!r} name different sets",
            )
        dim = self.image_emb.shape[-1] if self.image_emb.ndim == 2 else 0
        self._check_rows("image_emb", self.image_emb, len(self.augmentations), "augmentations", dim)
        self._check_rows("text_emb", self.text_emb, len(self.captions), "captions", dim)
        for name, texts in self.syn_captions.items():
            if not _SYN_NAME.fullmatch(name):
                raise BadSampleError("bad_json", f"caption set {name!r} must be called syn_text or syn_text_NAME")
            self._check_rows(f"{name}_emb", self.syn_text_emb[name], len(texts), f"captions in {name}", dim)

    @property
    def dim(self) -> int:
        """Dim of the concatenated teacher embeddings."""
        return int(self.image_emb.shape[1])

    def _check_rows(self, name: str, emb: Embeddings, count: int, what: str, dim: int) -> None:
        if emb.ndim != 2 or emb.shape[0] != count:
            raise BadSampleError(
                "row_count", f"{name} of {self.key!r} has shape {emb.shape}, but there are {count} {what}"
            )
        if emb.shape[1] != dim or dim == 0:
            raise BadSampleError("wrong_dim", f"{name} of {self.key!r} has dim {emb.shape[1]}, image_emb has {dim}")
        if not np.isfinite(emb).all():
            raise BadSampleError("not_finite", f"{name} of {self.key!r} holds NaN or infinity")


def decode_image(data: bytes) -> Image.Image:
    """Return the image in RGB, as the public data sets' augmentations saw it.

    EXIF orientation is not applied: stored crops refer to the pixels as they are encoded.

    Raises:
        BadSampleError: if the image cannot be decoded to its end, cannot be made RGB, or has too many pixels.
    """
    with warnings.catch_warnings():
        # Pillow warns of damaged metadata, which nothing here reads, once per image and worker.
        warnings.simplefilter("ignore")
        try:
            return load_image(data, orient=False)
        except ImageError as error:
            raise BadSampleError(f"image_{error.reason}", error.message) from None


def parse_sample(key: str, members: Mapping[str, bytes]) -> ImageTextSample:
    """Return a sample from the members of a shard, leaving what the teachers said aside.

    Args:
        key: the sample's key.
        members: extension to content, such as `jpg`, `txt`, `url.txt`, `json`.

    Raises:
        BadSampleError: if the caption is missing or a member is malformed.
    """
    return ImageTextSample(**_plain_fields(key, members))


def parse_reinforced_sample(key: str, members: Mapping[str, bytes]) -> ReinforcedSample:
    """Return a reinforced sample from the members of a shard, of either public layout.

    Args:
        key: the sample's key.
        members: extension to content: those of `parse_sample`, `paug.json`, `syn.json`, and `npz` or `pth.gz`.

    Raises:
        BadSampleError: if a member is missing or malformed, or the members disagree.
    """
    fields = _plain_fields(key, members)
    stored = _json_object(members, "paug.json")
    synthetic = _json_object(members, "syn.json") if "syn.json" in members else {}
    syn_captions = {name: _caption_list(texts, name) for name, texts in synthetic.items() if _SYN_NAME.fullmatch(name)}
    arrays = _read_embeddings(key, members)
    text_emb, syn_text_emb = _split_text_embeddings(arrays, syn_captions)
    if _MORE_TEXT in synthetic:
        text_emb = np.concatenate([text_emb, _required(arrays, f"{_MORE_TEXT}_emb")])
    return ReinforcedSample(
        **fields,
        augmentations=_read_augmentations(stored),
        image_emb=_required(arrays, "image_emb"),
        text_emb=text_emb,
        syn_captions=syn_captions,
        syn_text_emb=syn_text_emb,
    )


def sample_members(sample: ImageTextSample, layout: Layout = "npz") -> dict[str, bytes]:
    """Return the members of a shard that hold a sample, by extension.

    One real caption and one unnamed set of synthetic captions are stored as the first public release does, with all
    text embeddings in `text_emb`; named sets as the second one does, with `NAME_emb` beside. The source image's size
    goes into `paug.json`, where the public loaders ignore it.

    Args:
        sample: a plain or a reinforced sample.
        layout: `npz` for float32 embeddings, `pth.gz` for bfloat16 ones.
    """
    members = {"txt": sample.captions[0].encode()}
    if sample.image is not None:
        members[sample.image_extension] = sample.image
    if sample.url is not None:
        members["url.txt"] = sample.url.encode()
    if sample.metadata:
        members["json"] = _to_json(sample.metadata)
    if not isinstance(sample, ReinforcedSample):
        if len(sample.captions) > 1:
            members["syn.json"] = _to_json({_MORE_TEXT: sample.captions[1:]})
        return members
    stored: dict[str, Any] = {"param_aug": [compress(params) for params in sample.augmentations]}
    if sample.augmentations[0].image_size is not None:
        stored["image_size"] = sample.augmentations[0].image_size
    synthetic: dict[str, Any] = dict(sample.syn_captions)
    arrays = {"image_emb": sample.image_emb, "text_emb": sample.text_emb[:1]}
    if len(sample.captions) > 1:
        synthetic[_MORE_TEXT] = sample.captions[1:]
        arrays[f"{_MORE_TEXT}_emb"] = sample.text_emb[1:]
    if set(synthetic) == {SYN_TEXT}:
        arrays["text_emb"] = np.concatenate([sample.text_emb, sample.syn_text_emb[SYN_TEXT]])
    else:
        arrays |= {f"{name}_emb": emb for name, emb in sample.syn_text_emb.items()}
    if synthetic:
        members["syn.json"] = _to_json(synthetic)
    members["paug.json"] = _to_json(stored)
    members[layout] = _write_npz(arrays) if layout == "npz" else _write_pth_gz(arrays)
    return members


def _plain_fields(key: str, members: Mapping[str, bytes]) -> dict[str, Any]:
    if "txt" not in members:
        raise BadSampleError("missing_member", f"{key}.txt is missing, the caption")
    extension = next((extension for extension in IMAGE_EXTENSIONS if extension in members), None)
    synthetic = _json_object(members, "syn.json") if "syn.json" in members else {}
    captions = (_text(members, "txt"), *_caption_list(synthetic.get(_MORE_TEXT, []), _MORE_TEXT))
    return {
        "key": key,
        "captions": captions,
        "image": None if extension is None else members[extension],
        "image_extension": extension or "jpg",
        "url": _text(members, "url.txt") if "url.txt" in members else None,
        "metadata": _json_object(members, "json") if "json" in members else {},
    }


def _text(members: Mapping[str, bytes], name: str) -> str:
    try:
        return members[name].decode()
    except UnicodeDecodeError as error:
        raise BadSampleError("bad_text", f"{name} is not UTF-8: {error}") from None


def _json_object(members: Mapping[str, bytes], name: str) -> dict[str, Any]:
    if name not in members:
        raise BadSampleError("missing_member", f"{name} is missing")
    try:
        value = json.loads(members[name])
    except (ValueError, RecursionError) as error:
        raise BadSampleError("bad_json", f"{name} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise BadSampleError("bad_json", f"{name} holds {type(value).__name__}, expected an object")
    return value


def _caption_list(texts: Any, name: str) -> tuple[str, ...]:
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise BadSampleError("bad_json", f"{name} in syn.json is not a list of captions")
    return tuple(texts)


def _read_augmentations(stored: Mapping[str, Any]) -> tuple[AugmentationParams, ...]:
    try:
        compressed = stored["param_aug"]
        # The copy of the public data on its hub holds the list as a string.
        compressed = json.loads(compressed) if isinstance(compressed, str) else compressed
        width, height = stored.get("image_size") or (None, None)
        size = None if width is None or height is None else (int(width), int(height))
        return tuple(decompress(one, size) for one in compressed)
    except KeyError:
        raise BadSampleError("bad_json", "paug.json has no param_aug") from None
    except (TypeError, ValueError) as error:
        raise BadSampleError("bad_augmentation", f"paug.json: {error}") from None


def _read_embeddings(key: str, members: Mapping[str, bytes]) -> dict[str, Embeddings]:
    layout = next((layout for layout in LAYOUTS if layout in members), None)
    if layout is None:
        raise BadSampleError("missing_member", f"neither {key}.npz nor {key}.pth.gz is there, the embeddings")
    try:
        arrays = _read_npz(members[layout]) if layout == "npz" else _read_pth_gz(members[layout])
        return {name: _float32(value) for name, value in arrays.items()}
    except (OSError, EOFError, ValueError, TypeError, KeyError, RuntimeError, zlib.error, zipfile.BadZipFile) as error:
        raise BadSampleError("bad_embedding", f"{key}.{layout}: {type(error).__name__}: {str(error)[:200]}") from None


def _read_npz(data: bytes) -> dict[str, Any]:
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return dict(arrays)


def _read_pth_gz(data: bytes) -> dict[str, Any]:
    import pickle

    # webdataset's writer compresses members called .gz itself: what was compressed before is compressed twice.
    for _ in range(2):
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
    try:
        loaded = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(str(error)) from None
    if not isinstance(loaded, dict):
        raise ValueError(f"expected a dictionary of tensors, found {type(loaded).__name__}")
    return {name: torch.as_tensor(value) for name, value in loaded.items()}


def _required(arrays: Mapping[str, Embeddings], name: str) -> Embeddings:
    if name not in arrays:
        raise BadSampleError("missing_member", f"the embeddings {name} are missing, only {sorted(arrays)} are there")
    return arrays[name]


def _split_text_embeddings(
    arrays: Mapping[str, Embeddings], syn_captions: Mapping[str, Sequence[str]]
) -> tuple[Embeddings, dict[str, Embeddings]]:
    """Return the first caption's embedding and those of the sets: side by side, or all in one array."""
    text_emb = _required(arrays, "text_emb")
    if len(syn_captions) == 1:
        ((name, texts),) = syn_captions.items()
        if f"{name}_emb" not in arrays:
            if text_emb.ndim != 2 or len(text_emb) != 1 + len(texts):
                raise BadSampleError(
                    "row_count",
                    f"text_emb has shape {text_emb.shape}, but there are 1 caption and {len(texts)} synthetic captions",
                )
            return text_emb[:1], {name: text_emb[1:]}
    return text_emb, {name: _required(arrays, f"{name}_emb") for name in syn_captions}


def _to_json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def _write_npz(arrays: Mapping[str, Embeddings]) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]  # an array is never called allow_pickle
    return stream.getvalue()


def _write_pth_gz(arrays: Mapping[str, Embeddings]) -> bytes:
    stream = io.BytesIO()
    torch.save({name: torch.from_numpy(value.copy()).bfloat16() for name, value in arrays.items()}, stream)
    return gzip.compress(stream.getvalue(), mtime=0)
