"""Data sources and their units of work, the samples that a unit names, and which files and URLs those may name."""

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
from mobileclip.serialization import open_family
from mobileclip.storage.backend import RefusedHostError, public_hosts_only

_WEB = ("http://", "https://")


def locate(image: str, root: str, options: RowOptions) -> str:
    """Return where an image that a row names is, if it may be read.

    Args:
        image: a path or a URL.
        root: base of relative paths.
        options: allowed files and servers.

    Raises:
        BadSampleError: with the reason `refused_address`.
    """
    if storage.is_remote(image):
        scheme = image.partition("://")[0].lower()
        if scheme not in options.schemes:
            raise _refused(image, f"is opened by {scheme}://", f"name {scheme} in `schemes` (--schemes)")
    if "::" in image and (storage.is_remote(image) or storage.is_remote(root)) and not image.startswith(_WEB):
        raise _refused(image, "is a URL within a URL")
    if storage.is_remote(image):
        return image
    path = image if storage.is_remote(root) else os.fspath(storage.local_path(image))
    if options.inside and not _is_inside(root, path):
        raise _refused(image, f"is not below {root}", "pass `inside=False` (--no-inside)")
    return storage.join(root, path)


@contextmanager
def told(what: str) -> Iterator[None]:
    """Turn errors of reading into a `ValueError`, except for transient errors and errors of the machine."""
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
    """Return how many parts, from the first on, all paths have."""
    return sum(1 for _ in takewhile(lambda level: len(set(level)) == 1, zip(*paths, strict=False)))


def directory_of(path: str) -> str:
    """Return the folder, or the URL, that a file lies in."""
    if storage.is_remote(path):
        return path.partition("?")[0].rpartition("/")[0]
    return os.fspath(storage.local_path(path).parent)


def without_user(address: str) -> str:
    """Return a URL without user and password; the query stays, since it may identify the image."""
    scheme, _, rest = address.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def _is_inside(root: str, path: str) -> bool:
    """Return whether a path leads below a folder, by its name; where links lead is up to whoever made them."""
    if storage.is_remote(root):
        return ".." not in path.split("/")
    top = Path(os.path.abspath(storage.local_path(root)))  # noqa: PTH100 - links stay links
    return Path(os.path.normpath(top / path)).is_relative_to(top)


def _refused(image: str, what: str, advice: str = "") -> BadSampleError:
    trust = f"; if you trust the file, {advice}" if advice else ""
    return BadSampleError("refused_address", f"{image[:300]} {what}{trust}")


TEMPLATES = ("a photo of a {}.",)
"""What stands around the name of a class where nothing else is said."""


@attrs.frozen(kw_only=True)
class Unit(ABC):
    """A part of a source that becomes one shard. Units are values: they can be pickled and sent to a worker.

    Args:
        name: name of the shard that it becomes, relative to the output, with `/` between folders; unique within a
            source.
    """

    name: str

    @abstractmethod
    def fingerprint(self) -> str:
        """Return a text that changes with the unit's content, without reading images.

        Raises:
            ValueError: if the input is missing or may not be read.
            OSError: if its store or disk failed.
        """

    @abstractmethod
    def count(self) -> int | None:
        """Return the number of samples, those that reading will skip included; None if only reading could tell."""

    def files(self) -> tuple[str, ...]:
        """Return the paths and URLs of the files whose content its fingerprint does not hold, as far as known."""
        return ()

    def about(self) -> str:
        """Return a text that changes when anything does but the content of `files` on this machine."""
        return self.fingerprint()

    def content(self) -> str:
        """Return a text that changes when the unit's content does, whatever sizes and times of files are.

        The function reads local files once per process; for remote files it equals `fingerprint`.

        Raises:
            ValueError: see `fingerprint`.
            OSError: if a file cannot be read.
        """
        hashes = storage.content_hashes(file for file in self.files() if not storage.is_remote(file))
        return " ".join((self.about(), *hashes))

    def size(self) -> int | None:
        """Return the number of bytes to read, or None if unknown."""
        return None

    @abstractmethod
    def read(self, report: SkipReport) -> Iterator[ImageTextSample]:
        """Yield every usable sample, in order, and report the others.

        Bad input raises no error. After the reason `connection_failed`, which ends the unit, reading it again may give
        more samples; after `unreachable_image`, `read_again` may.

        Args:
            report: counts read and skipped samples.
        """

    def read_again(self, names: Collection[str], report: SkipReport) -> Iterator[ImageTextSample]:
        """Yield the samples of given skips, such as unreachable images, and possibly others.

        Args:
            names: names of the skips.
            report: counts read and skipped samples.
        """
        del names
        return self.read(report)

    def keys(self) -> Iterator[str]:
        """Yield the keys of all samples, in order, without downloading images."""
        return (sample.key for sample in self.described(SkipReport(log=False)))

    def described(self, report: SkipReport) -> Iterator[ImageTextSample]:
        """Yield the samples with texts and metadata, without downloading images."""
        return self.read(report)


@attrs.frozen(kw_only=True)
class Source(ABC):
    """Image-text data, wherever it is and in whatever form."""

    @classmethod
    def of(cls, argument: str, *, samples_per_shard: int, rows: RowOptions) -> Source:
        """Return the source of `KIND:ARGUMENT`; by default the argument is its first field.

        Args:
            argument: the text after the kind.
            samples_per_shard: for a source without shards.
            rows: column names of lists.

        Raises:
            ValueError: if the argument is none that the kind takes.
        """
        first, *others = (field.name for field in attrs.fields(cls))
        choices = {"samples_per_shard": samples_per_shard} if "samples_per_shard" in others else {}
        return cls(**{first: argument}, **choices).allowing(rows)

    def allowing(self, rows: RowOptions) -> Source:
        """Return this source with other options for the rows of lists."""
        del rows  # only lists have any
        return self

    @abstractmethod
    def units(self) -> tuple[Unit, ...]:
        """Return the parts, in an order that depends on the data alone.

        Raises:
            ValueError: if there is no data, or it cannot be looked through.
            StorageError: if its store cannot be reached.
        """

    def fingerprints(self, units: Collection[Unit]) -> dict[str, str]:
        """Return fingerprints of units by name, if that needs no request per unit.

        Args:
            units: units of this source.

        Raises:
            StorageError: if its store cannot be reached.
        """
        found = {}
        for unit in units:
            with suppress(ValueError):
                found[unit.name] = unit.fingerprint()
        return found


sources: Registry[type[Source]] = Registry("source", home="mobileclip.datasets.sources.opening")
"""Kinds of sources by name; third parties add theirs here or by an entry point in `mobileclip.source`."""

open_family(Source, sources)


def numbered_name(index: int) -> str:
    """Return the name of the shard that the `index`-th unit becomes, where the data gives none."""
    return f"{index:08d}.tar"


# A file beyond this is no picture that anyone would train on, but a mistake or an endless answer.
MAX_IMAGE_BYTES = 2**28
# A line of JSON beyond this is another file by mistake; what is made of one has room in the member of a shard.
MAX_LINE_BYTES = 2**23

UNREACHABLE = "unreachable_image"
"""Reason of a row whose image could not be fetched; another time may help."""

_NUM_CONNECTIONS = 16

T = TypeVar("T")


@attrs.frozen(kw_only=True)
class Record:
    """A sample without its image, and where that is.

    Args:
        sample: everything but the image.
        image: path or URL; its name, or empty, if the list contains the image.
        label: its name in messages.
        hosts: allowed servers in addition to public ones.
        sha256: expected hash of the image in hexadecimal, if any.
        is_held: whether the list contains the image.
        data: the list's image, if requested.
    """

    sample: ImageTextSample
    image: str
    label: str
    hosts: tuple[str, ...] = ()
    sha256: str | None = None
    is_held: bool = False
    data: bytes | None = attrs.field(default=None, repr=False)

    @property
    def key(self) -> str:
        """Its name in skips."""
        return self.label

    @property
    def is_remote(self) -> bool:
        """Whether the image is remote."""
        return not self.is_held and storage.is_remote(self.image)


def read_records(place: str, records: Iterable[Record | Skip], report: SkipReport) -> Iterator[ImageTextSample]:
    """Yield the samples with their images, in order, and count unusable samples and duplicate keys.

    Args:
        place: source of the records, for messages.
        records: records or skips.
        report: counts read and skipped samples.
    """
    keys: set[str] = set()
    calls = (
        (isinstance(record, Record) and record.is_remote, partial(_with_image, place, record)) for record in records
    )
    for result in called_ahead(calls):
        if isinstance(result, Skip):
            report.add(result)
        elif result.key in keys:
            detail = "an earlier sample has this key"
            report.add(Skip(reason="duplicate_key", key=result.key, shard=place, detail=detail))
        else:
            keys.add(result.key)
            report.num_read += 1
            yield result


def called_ahead(calls: Iterable[tuple[bool, Callable[[], T]]]) -> Iterator[T]:
    """Yield the results of functions, in order, calling several network-bound functions ahead.

    Args:
        calls: pairs of a flag (whether the function is network-bound) and the function, read lazily.
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
        BadSampleError: if the file cannot be read, or is no image by its content and none by its name.
    """
    try:
        # Pipes and devices may never end.
        if not storage.is_remote(path) and (place := storage.local_path(path)).exists() and not place.is_file():
            raise OSError("not a regular file")  # noqa: TRY301 - told as whatever else keeps it from being read
        # Among many URLs of the web, some never answer: two attempts must do.
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
    """Return the JSON object in a line or a small file; it can be written again.

    Args:
        line: UTF-8, with a byte-order mark or without.
        name: for messages.

    Raises:
        BadSampleError: as `parse_object` does, and if it spells halves of characters.
    """
    value = parse_object(line, name, limit=MAX_LINE_BYTES)
    if b"\\u" in line:
        try:
            # JSON can spell halves of characters, which no file can hold.
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeError as error:
            raise BadSampleError("bad_text", f"{name} is not UTF-8: {error}") from None
    return value


def key_of(given: object, default: str) -> str:
    """Return the key that a list gives a sample, or another where it gives none.

    Raises:
        BadSampleError: if it is neither a text nor a whole number.
    """
    if given is None:
        return default
    if isinstance(given, bool) or not isinstance(given, (str, int)):
        raise BadSampleError("bad_key", f"`key` is {type(given).__name__}, expected a string or a number")
    return str(given)


def key_of_path(path: str) -> str:
    """Return a path as a key: dots separate a key from the extension, and `__` marks no sample."""
    key = printable_name(path).replace(".", "_")
    return f"_{key.lstrip('_')}" if key.startswith("__") else key


def _extension(path: str, data: bytes) -> str:
    """Return the extension that fits the content; a broken file keeps its own."""
    suffix = storage.file_name(path).rpartition(".")[2].lower()
    kind = find_format(data)
    if kind is None and not is_image_name(storage.file_name(path)):
        raise BadSampleError("image_not_an_image", f"{path} is in no format that is read: {format_names()}")
    # Whoever reads shards knows jpeg beside jpg, and hardly jfif.
    return suffix if kind is None or (kind.name, suffix) == ("JPEG", "jpeg") else kind.extensions[0]


def _with_image(place: str, record: Record | Skip) -> ImageTextSample | Skip:
    if isinstance(record, Skip):
        return record

    def read() -> ImageTextSample:
        if record.is_held:
            data = record.data or b""
            if len(data) > MAX_IMAGE_BYTES:
                detail = f"{record.label} holds an image of more than {MAX_IMAGE_BYTES} bytes"
                raise BadSampleError("unreadable_image", detail)
            extension = _extension(record.image or record.label, data)
        else:
            with public_hosts_only(record.hosts):
                data, extension = read_image(record.image)
        if record.sha256 is not None and hashlib.sha256(data).hexdigest() != record.sha256:
            raise BadSampleError("other_image", f"{record.label} states another SHA-256 than that of {record.image}")
        return attrs.evolve(record.sample, image=data, image_extension=extension)

    return made_or_skip(read, key=record.label, shard=place)
