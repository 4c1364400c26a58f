"""Samples whose images are files of their own: read at work time, several at once where they come over a network."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import attrs

from mobileclip import storage
from mobileclip.data.images.files import printable_name
from mobileclip.data.images.limits import find_format, format_names, is_image_name
from mobileclip.data.samples.members import parse_object
from mobileclip.data.samples.sample import ImageTextSample
from mobileclip.data.skips import BadSampleError, Skip, SkipReport, made_or_skip
from mobileclip.machine import raise_machine_fault
from mobileclip.storage.backend import RefusedHostError, public_hosts_only

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
        image: path or URL; what it is called where the list holds it, which may be nothing.
        label: how messages call it.
        hosts: that its URL may lead to, beside public ones.
        sha256: of the image, in hexadecimal, where it is to be compared.
        is_held: whether the list holds the image.
        data: the image, where the list holds it and it was asked for.
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
        """What a skip calls it."""
        return self.label

    @property
    def is_remote(self) -> bool:
        """Whether the image comes over a network."""
        return not self.is_held and storage.is_remote(self.image)


def read_records(place: str, records: Iterable[Record | Skip], report: SkipReport) -> Iterator[ImageTextSample]:
    """Yield the samples with their images, in order; what cannot be used, or has a key that was there, is counted.

    Args:
        place: where the records come from, for messages.
        records: and what was left out before.
        report: counts what was read and what was left out.
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
    """Yield what functions return, in order; of those that wait for a network, several are called ahead.

    Args:
        calls: whether a function waits for a network, and the function. They are taken as they are called.
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
        _check_regular(path)
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
        name: what it is, for messages.

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


def _check_regular(path: str) -> None:
    """Refuse pipes and devices, which may never end."""
    if not storage.is_remote(path) and storage.local_path(path).exists() and not storage.local_path(path).is_file():
        raise OSError("not a regular file")


def _extension(path: str, data: bytes) -> str:
    """Return the extension that fits the content; a broken file keeps its own."""
    suffix = storage.file_name(path).rpartition(".")[2].lower()
    kind = find_format(data)
    if kind is None and not is_image_name(storage.file_name(path)):
        raise BadSampleError("image_not_an_image", f"{path} is in no format that is read: {format_names()}")
    # Whoever reads shards knows jpeg beside jpg, and hardly jfif.
    return suffix if kind is None or (kind.name, suffix) == ("JPEG", "jpeg") else kind.extensions[0]


def _held_image(record: Record) -> tuple[bytes, str]:
    assert record.data is not None, "an image that a list holds is read with its row"
    if len(record.data) > MAX_IMAGE_BYTES:
        raise BadSampleError("unreadable_image", f"{record.label} holds an image of more than {MAX_IMAGE_BYTES} bytes")
    return record.data, _extension(record.image or record.label, record.data)


def _with_image(place: str, record: Record | Skip) -> ImageTextSample | Skip:
    if isinstance(record, Skip):
        return record

    def read() -> ImageTextSample:
        if record.is_held:
            data, extension = _held_image(record)
        else:
            with public_hosts_only(record.hosts):
                data, extension = read_image(record.image)
        if record.sha256 is not None and hashlib.sha256(data).hexdigest() != record.sha256:
            raise BadSampleError("other_image", f"{record.label} states another SHA-256 than that of {record.image}")
        return attrs.evolve(record.sample, image=data, image_extension=extension)

    return made_or_skip(read, key=record.label, shard=place)
