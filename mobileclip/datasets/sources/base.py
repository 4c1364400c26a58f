"""Defines data sources, units of work and records of samples, and checks the files and URLs in records."""

from __future__ import annotations

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any, TypeVar

import attrs

from mobileclip import storage
from mobileclip.data.images.files import printable_name
from mobileclip.data.images.limits import find_format, format_names, is_image_name
from mobileclip.data.samples.members import parse_object
from mobileclip.data.samples.sample import ImageTextSample
from mobileclip.data.skips import BadSampleError, Skip, SkipReport, made_or_skip
from mobileclip.datasets.sources.rows import RowOptions
from mobileclip.machine import raise_machine_fault
from mobileclip.registry import Registry
from mobileclip.serialization import register_spec_base
from mobileclip.storage.backend import RefusedHostError, public_hosts_only

_WEB = ("http://", "https://")


def locate(image: str, root: str, options: RowOptions) -> str:
    """Return the full path or URL of a row's image, if the options allow reading it.

    Args:
        image: path or URL in the row.
        root: folder or URL at which relative paths start.
        options: allowed files and servers.

    Raises:
        BadSampleError: with the reason `refused_address`, if the options do not allow the path or URL.
    """
    if storage.is_remote(image):
        scheme = image.partition("://")[0].lower()
        if scheme not in options.schemes:
            raise _refused(image, f"uses the forbidden scheme {scheme}://", f"name {scheme} in `schemes` (--schemes)")
    if "::" in image and (storage.is_remote(image) or storage.is_remote(root)) and not image.startswith(_WEB):
        raise _refused(image, "contains a nested URL (`::`)")
    if storage.is_remote(image):
        return image
    path = image if storage.is_remote(root) else os.fspath(storage.local_path(image))
    if options.inside and not _is_inside(root, path):
        raise _refused(image, f"is not below {root}", "pass `inside=False` (--no-inside)")
    return storage.join(root, path)


@contextmanager
def reading_errors(what: str) -> Iterator[None]:
    """Convert read errors to `ValueError`, except for transient errors and machine faults such as a full disk."""
    try:
        yield
    except FileNotFoundError:
        raise ValueError(f"{what} does not exist") from None
    except OSError as error:
        raise_machine_fault(error)
        if storage.is_transient(error):
            raise
        raise ValueError(f"{what} cannot be read: {error}") from None


def num_common(paths: Iterable[Sequence[str]]) -> int:
    """Return the number of leading path components that all paths share."""
    return sum(1 for _ in takewhile(lambda level: len(set(level)) == 1, zip(*paths, strict=False)))


def directory_of(path: str) -> str:
    """Return the folder of a file, as a path or URL."""
    if storage.is_remote(path):
        return path.partition("?")[0].rpartition("/")[0]
    return os.fspath(storage.local_path(path).parent)


def without_user(address: str) -> str:
    """Return a URL without user and password; keep the query, as the query may identify the image."""
    scheme, _, rest = address.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def _is_inside(root: str, path: str) -> bool:
    """Return whether a path is below a folder by name, without following symbolic links."""
    if storage.is_remote(root):
        return ".." not in path.split("/")
    top = Path(storage.absolute_path(root))
    return Path(os.path.normpath(top / path)).is_relative_to(top)


def _refused(image: str, what: str, advice: str = "") -> BadSampleError:
    trust = f"; if you trust the file, {advice}" if advice else ""
    return BadSampleError("refused_address", f"{image[:300]} {what}{trust}")


TEMPLATES = ("a photo of a {}.",)
"""Default prompt templates for the names of classes."""


@attrs.frozen(kw_only=True)
class Unit(ABC):
    """A part of a source that becomes one shard. Units are picklable, so an engine can send units to workers.

    Args:
        name: name of the output shard, relative to the output, with `/` between folders; unique within a source.
    """

    name: str

    @abstractmethod
    def fingerprint(self) -> str:
        """Return a string that changes with the unit's content, without reading images.

        Raises:
            ValueError: if the input of the unit is missing, or not allowed by the options.
            OSError: if the store or disk of the input fails.
        """

    @abstractmethod
    def count(self) -> int | None:
        """Return the number of samples, including samples that `read` skips; None if unknown before reading."""

    def files(self) -> tuple[str, ...]:
        """Return the known paths and URLs of files whose content is not part of the fingerprint."""
        return ()

    def about(self) -> str:
        """Return a string that changes with the unit, but not with the content of local `files`."""
        return self.fingerprint()

    def content(self) -> str:
        """Return a string that changes with the unit's content, independently of file sizes and times.

        The function reads local files once per process. For remote files, the result equals `fingerprint`.

        Raises:
            ValueError: see `fingerprint`.
            OSError: if a file cannot be read.
        """
        hashes = storage.content_hashes(file for file in self.files() if not storage.is_remote(file))
        return " ".join((self.about(), *hashes))

    def size(self) -> int | None:
        """Return the number of bytes to read; None if unknown."""
        return None

    @abstractmethod
    def read(self, report: SkipReport) -> Iterator[ImageTextSample]:
        """Yield every usable sample, in order, and report skipped samples.

        Bad input raises no error. A skip with the reason `connection_failed` ends the unit; reading the unit again may
        yield more samples. After skips with the reason `unreachable_image`, `read_again` may yield more samples.

        Args:
            report: counter of read and skipped samples.
        """

    def read_again(self, names: Collection[str], report: SkipReport) -> Iterator[ImageTextSample]:
        """Read skipped samples again, such as samples with unreachable images; may also yield other samples.

        Args:
            names: keys of the skips, see `Skip`.
            report: counter of read and skipped samples.
        """
        del names
        return self.read(report)

    def keys(self) -> Iterator[str]:
        """Yield the keys of all samples, in order, without downloading images."""
        return (sample.key for sample in self.described(SkipReport(log=False)))

    def described(self, report: SkipReport) -> Iterator[ImageTextSample]:
        """Yield every sample's captions and metadata, without downloading images."""
        return self.read(report)


@attrs.frozen(kw_only=True)
class Source(ABC):
    """Base class of image-text data sets, in any format and at any path or URL."""

    @classmethod
    def of(cls, argument: str, *, samples_per_shard: int, rows: RowOptions) -> Source:
        """Return the source for `KIND:ARGUMENT`; by default, the argument is the value of the first field.

        Args:
            argument: text after `KIND:`.
            samples_per_shard: number of samples per unit, for a source without shards.
            rows: options for the rows of lists.

        Raises:
            ValueError: if the argument is not valid for the kind.
        """
        first, *others = (field.name for field in attrs.fields(cls))
        choices = {"samples_per_shard": samples_per_shard} if "samples_per_shard" in others else {}
        return cls(**{first: argument}, **choices).allowing(rows)

    def allowing(self, rows: RowOptions) -> Source:
        """Return a copy of the source with the given options for the rows of lists."""
        del rows  # only lists have rows
        return self

    @abstractmethod
    def units(self) -> tuple[Unit, ...]:
        """Return the units, in an order that depends only on the data.

        Raises:
            ValueError: if there is no data, or the data cannot be listed.
            StorageError: if the store cannot be reached.
        """

    def fingerprints(self, units: Collection[Unit]) -> dict[str, str]:
        """Return fingerprints by unit name; omit units with an unknown fingerprint.

        Args:
            units: units of this source.

        Raises:
            StorageError: if the store cannot be reached.
        """
        found = {}
        for unit in units:
            with suppress(ValueError):
                found[unit.name] = unit.fingerprint()
        return found


sources: Registry[type[Source]] = Registry("source", home="mobileclip.datasets.sources.opening")
"""Kinds of sources by name. Third-party packages register kinds here, or by an entry point in `mobileclip.source`."""

register_spec_base(Source, sources)


def numbered_name(index: int) -> str:
    """Return the output shard name of unit number `index`, for data without shard names."""
    return f"{index:08d}.tar"


# A larger file is not a training image, but a mistake or an endless response.
MAX_IMAGE_BYTES = 2**28
# A longer line of JSON comes from a wrong file; shorter lines fit into the member of a shard.
MAX_LINE_BYTES = 2**23

UNREACHABLE = "unreachable_image"
"""Reason for skipping a row with an unreachable image; a later attempt may succeed."""

_NUM_CONNECTIONS = 16

T = TypeVar("T")


@attrs.frozen(kw_only=True)
class Record:
    """A sample without its image, and the location of the image.

    Args:
        sample: the sample without its image.
        image: path or URL of the image; for an image in the list itself, the image name or an empty string.
        label: name of the sample in messages.
        hosts: allowed servers without a public address.
        sha256: expected SHA-256 of the image, in hexadecimal; None to accept any image.
        is_inline: whether the list itself contains the encoded image.
        data: encoded image from the list; None for an image outside the list or not yet read.
    """

    sample: ImageTextSample
    image: str
    label: str
    hosts: tuple[str, ...] = ()
    sha256: str | None = None
    is_inline: bool = False
    data: bytes | None = attrs.field(default=None, repr=False)

    @property
    def key(self) -> str:
        """Key of the record in skips: the label."""
        return self.label

    @property
    def is_remote(self) -> bool:
        """Whether the image is remote."""
        return not self.is_inline and storage.is_remote(self.image)


def read_records(place: str, records: Iterable[Record | Skip], report: SkipReport) -> Iterator[ImageTextSample]:
    """Yield the samples with their images, in order, and report unusable samples and duplicate keys.

    Args:
        place: path or URL of the source, for messages.
        records: records of usable rows, and skips of unusable rows.
        report: counter of read and skipped samples.
    """
    keys: set[str] = set()
    calls = (
        (isinstance(record, Record) and record.is_remote, partial(_with_image, place, record)) for record in records
    )
    for result in call_ahead(calls):
        if isinstance(result, Skip):
            report.add(result)
        elif result.key in keys:
            detail = "an earlier sample has the same key"
            report.add(Skip(reason="duplicate_key", key=result.key, shard=place, detail=detail))
        else:
            keys.add(result.key)
            report.num_read += 1
            yield result


def call_ahead(calls: Iterable[tuple[bool, Callable[[], T]]]) -> Iterator[T]:
    """Yield the results of functions, in order; run several network-bound functions ahead in threads.

    Args:
        calls: lazy iterable of pairs: whether the function is network-bound, and the function.
    """
    window: deque[Callable[[], T]] = deque()
    pool = ThreadPoolExecutor(_NUM_CONNECTIONS, thread_name_prefix="ahead")
    try:
        for is_waiting, call in calls:
            window.append(pool.submit(call).result if is_waiting else call)
            if len(window) > 2 * _NUM_CONNECTIONS:
                yield window.popleft()()
        while window:
            yield window.popleft()()
    finally:
        pool.shutdown(cancel_futures=True)


def read_image(path: str) -> tuple[bytes, str]:
    """Return the bytes of an image and its extension.

    Raises:
        BadSampleError: if the file cannot be read, or has neither the content nor the file extension of an image.
    """
    try:
        # Pipes and devices may never end.
        if not storage.is_remote(path) and (place := storage.local_path(path)).exists() and not place.is_file():
            raise OSError("not a regular file")  # noqa: TRY301 - handled like other read errors
        # Some web servers never respond: two attempts must suffice.
        data = storage.read_bytes(path, limit=MAX_IMAGE_BYTES, num_attempts=2)
    except FileNotFoundError:
        raise BadSampleError("missing_image", f"there is no image {path}") from None
    except RefusedHostError as error:
        raise BadSampleError("refused_address", str(error)) from None
    except storage.StorageError as error:
        raise BadSampleError(UNREACHABLE, str(error)) from None
    except (OSError, ValueError) as error:
        raise_machine_fault(error)
        raise BadSampleError("unreadable_image", f"{path}: {error}") from None
    return data, _extension(path, data)


def parse_row(line: bytes, name: str) -> dict[str, Any]:
    """Return the JSON object in a line or a small file, if the object can be encoded in UTF-8.

    Args:
        line: line or file in UTF-8, with or without a byte-order mark.
        name: name of the line or file, for messages.

    Raises:
        BadSampleError: if `parse_object` rejects the line, or the JSON contains unpaired surrogates.
    """
    value = parse_object(line, name, limit=MAX_LINE_BYTES)
    if b"\\u" in line:
        try:
            # JSON can contain unpaired surrogates, which UTF-8 cannot encode.
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeError as error:
            raise BadSampleError("bad_text", f"{name} is not UTF-8: {error}") from None
    return value


def key_of(given: object, default: str) -> str:
    """Return a sample's key from a list; without a given key, return the default key.

    Raises:
        BadSampleError: if the key is neither a string nor an integer.
    """
    if given is None:
        return default
    if isinstance(given, bool) or not isinstance(given, (str, int)):
        raise BadSampleError("bad_key", f"`key` is {type(given).__name__}, expected a string or an integer")
    return str(given)


def key_of_path(path: str) -> str:
    """Convert a path to a key: replace dots, which separate key and extension, and shorten a leading `__`."""
    key = printable_name(path).replace(".", "_")
    return f"_{key.lstrip('_')}" if key.startswith("__") else key


def _extension(path: str, data: bytes) -> str:
    """Return the extension that matches the content of an image; for a damaged image, the extension in the path."""
    suffix = storage.file_name(path).rpartition(".")[2].lower()
    kind = find_format(data)
    if kind is None and not is_image_name(storage.file_name(path)):
        raise BadSampleError("image_not_an_image", f"{path} is not in a supported image format ({format_names()})")
    # Readers of shards support jpg and jpeg, but rarely jfif.
    return suffix if kind is None or (kind.name, suffix) == ("JPEG", "jpeg") else kind.extensions[0]


def _with_image(place: str, record: Record | Skip) -> ImageTextSample | Skip:
    if isinstance(record, Skip):
        return record

    def read() -> ImageTextSample:
        if record.is_inline:
            data = record.data or b""
            if len(data) > MAX_IMAGE_BYTES:
                detail = f"{record.label} holds an image of more than {MAX_IMAGE_BYTES} bytes"
                raise BadSampleError("unreadable_image", detail)
            extension = _extension(record.image or record.label, data)
        else:
            with public_hosts_only(record.hosts):
                data, extension = read_image(record.image)
        if record.sha256 is not None and hashlib.sha256(data).hexdigest() != record.sha256:
            raise BadSampleError(
                "other_image", f"the SHA-256 of {record.image} differs from the SHA-256 in {record.label}"
            )
        return attrs.evolve(record.sample, image=data, image_extension=extension)

    return made_or_skip(read, key=record.label, shard=place)
