"""The interface of a data source and of its units of work."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from contextlib import suppress

import attrs

from mobileclip import storage
from mobileclip.data.samples.sample import ImageTextSample
from mobileclip.data.skips import SkipReport
from mobileclip.datasets.sources.access import RowOptions
from mobileclip.registry import Registry
from mobileclip.serialization import open_family

TEMPLATES = ("a photo of a {}.",)
"""What stands around the name of a class where nothing else is said."""


@attrs.frozen(kw_only=True)
class Unit(ABC):
    """A part of a source that becomes one shard. Units are values: they can be pickled and sent to a worker.

    Args:
        name: of the shard that it becomes, relative to the output, with `/` between folders; unique within a source.
    """

    name: str

    @abstractmethod
    def fingerprint(self) -> str:
        """Return a text that changes when the unit's content does; cheap, no image is read.

        Raises:
            ValueError: if the input is missing or may not be read.
            OSError: if its store or disk failed.
        """

    @abstractmethod
    def count(self) -> int | None:
        """Return the number of samples, those that reading will skip included; None where only reading could tell."""

    def files(self) -> tuple[str, ...]:
        """Return the paths and URLs of the files whose content its fingerprint does not hold, as far as known."""
        return ()

    def about(self) -> str:
        """Return a text that changes when anything does but the content of `files` on this machine."""
        return self.fingerprint()

    def content(self) -> str:
        """Return a text that changes when the unit's content does, whatever sizes and times of files are.

        Files of this machine are read, once a process; remote ones are as well known as by `fingerprint`.

        Raises:
            ValueError: see `fingerprint`.
            OSError: if a file cannot be read.
        """
        hashes = storage.content_hashes(file for file in self.files() if not storage.is_remote(file))
        return " ".join((self.about(), *hashes))

    def size(self) -> int | None:
        """Return the bytes that reading goes through, or None where that is not known."""
        return None

    @abstractmethod
    def read(self, report: SkipReport) -> Iterator[ImageTextSample]:
        """Yield every usable sample, in order; the others are counted and named.

        Bad input raises nothing. The reason `connection_failed`, which ends the unit, means that reading it again may
        give more, and `unreachable_image` that `read_again` may.

        Args:
            report: counts what was read and what was left out.
        """

    def read_again(self, names: Collection[str], report: SkipReport) -> Iterator[ImageTextSample]:
        """Yield the samples that skips have named, such as those whose image could not be reached; others may come too.

        Args:
            names: of the skips.
            report: counts what was read and what was left out.
        """
        del names
        return self.read(report)

    def keys(self) -> Iterator[str]:
        """Yield the keys of the samples, in order, also of those whose image cannot be used; no image is fetched."""
        return (sample.key for sample in self.described(SkipReport(log=False)))

    def described(self, report: SkipReport) -> Iterator[ImageTextSample]:
        """Yield the samples for their texts and metadata; images that are stored elsewhere are not fetched."""
        return self.read(report)


@attrs.frozen(kw_only=True)
class Source(ABC):
    """Image-text data, wherever it is and in whatever form."""

    @classmethod
    def of(cls, argument: str, *, samples_per_shard: int, rows: RowOptions) -> Source:
        """Return the source that `KIND:ARGUMENT` stands for: the argument is its first field, unless a kind differs.

        Args:
            argument: what stands behind the kind.
            samples_per_shard: of a source that is not cut into shards yet.
            rows: how rows of lists are read.

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
        """Return the fingerprints of units by their names, as far as no store is asked for each of them.

        Args:
            units: of this source.

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
