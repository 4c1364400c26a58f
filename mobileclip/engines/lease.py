"""One driver at a time in an output: on this machine by a lock of the system, in a store by a lease that is renewed."""

from __future__ import annotations

import os
import platform
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

import attrs
from attrs import validators

from mobileclip import storage
from mobileclip.engines.changing import read_changing
from mobileclip.engines.work import FatalError
from mobileclip.serialization import to_json
from mobileclip.strict import strict
from mobileclip.terminal import get_logger

logger = get_logger(__name__)

LEASE = "run/lease.json"
"""File in an output that a driver works on: who it is, and how often it has renewed that."""

# A holder whose lease is not renewed for so many of its own intervals is dead.
_INTERVALS = 4
_LOOKS_AN_INTERVAL = 5
# A file that asks for more would have others wait for ever.
_MOST_SECONDS = 600.0
_MAX_BYTES = 2**16


@attrs.frozen(kw_only=True, field_transformer=strict)
class Lease:
    """What a driver says of itself.

    Args:
        holder: its machine and process, for people.
        identity: drawn for this run alone.
        since: when it began, by its own clock, for people.
        renewal: how often it was renewed.
        renewal_seconds: between two renewals; at most ten minutes.
    """

    holder: str
    identity: str
    since: str
    renewal: int = attrs.field(default=0, validator=validators.ge(0))
    renewal_seconds: float = attrs.field(default=15.0, validator=[validators.gt(0), validators.le(_MOST_SECONDS)])

    @staticmethod
    def new(renewal_seconds: float = 15.0) -> Lease:
        """Return this process's lease."""
        return Lease(
            holder=f"{platform.node()}, process {os.getpid()}",
            identity=secrets.token_hex(8),
            since=f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M:%S} UTC",
            renewal_seconds=renewal_seconds,
        )


class Hold:
    """That an output is held, as far as is known.

    Args:
        seconds: without a renewal, after which another driver may have taken over; None where that cannot be.
        most_seconds: that are waited for the next renewal then.
    """

    def __init__(self, seconds: float | None = None, most_seconds: float = 3600.0) -> None:
        self._seconds = seconds
        self._most_seconds = most_seconds
        self._renewed = time.monotonic()
        self._lost = ""
        self._changed = threading.Condition()

    @property
    def is_sure(self) -> bool:
        """Whether no other driver can have taken over."""
        with self._changed:
            age = time.monotonic() - self._renewed
            return not self._lost and (self._seconds is None or age < self._seconds)

    def renew(self) -> None:
        """Take note that it is held still."""
        with self._changed:
            self._renewed = time.monotonic()
            self._changed.notify_all()

    def lose(self, why: str) -> None:
        """Take note that it is not any more."""
        with self._changed:
            self._lost = why
            self._changed.notify_all()

    def check(self) -> None:
        """Make sure that the output is this driver's; where that is not known, because its store is away, wait for it.

        Raises:
            FatalError: if it was lost, or is not known for too long; the run ends, so that no two write to one output.
        """
        if self._seconds is None:
            return
        with self._changed:
            end = time.monotonic() + self._most_seconds
            while not self.is_sure and not self._lost and time.monotonic() < end:
                self._changed.wait(self._seconds)
            if not self.is_sure:
                why = self._lost or "the lease of the output could not be renewed, and another driver may work there"
                raise FatalError(f"{why}. This run ends; what is finished is kept")


@contextmanager
def held(output: str, *, renewal_seconds: float = 15.0) -> Iterator[Hold]:
    """Hold an output for this run alone.

    A store has no locks that end with a process. There, a lease is renewed again and again, and one that is not seen to
    be renewed is taken over: whether its owner is dead is judged by what is seen of it, on this machine's own clock. In
    a store that knows no conditional writes, two that begin in the same moment both go on, until one is seen to have
    lost at its first renewal.

    Args:
        output: folder or address.
        renewal_seconds: between two renewals; a fourth of the time after which another driver may take over.

    Raises:
        ValueError: if another driver holds it.
        OSError: if that cannot be found out.
    """
    lease = Lease.new(renewal_seconds)
    with ExitStack() as stack:
        if storage.is_remote(output):
            hold = Hold((_INTERVALS - 1) * renewal_seconds)
            keeper = _Keeper(storage.join(output, LEASE), lease, hold)
            keeper.acquire()
            hold.renew()
            stack.callback(keeper.release)
            thread = threading.Thread(target=keeper.keep, daemon=True)
            thread.start()
            # A store that is away is not waited for.
            stack.callback(partial(thread.join, renewal_seconds))
            stack.callback(keeper.ended.set)
        else:
            hold = Hold()
            path = Path(output) / LEASE
            try:
                stack.enter_context(storage.exclusive(Path(output)))
            except ValueError as error:
                raise ValueError(f"{error}: {_holder(_known(str(path)))}") from None
            storage.make_directory_of(path)
            storage.write_text(path, to_json(lease) + "\n")
            stack.callback(partial(path.unlink, missing_ok=True))
        yield hold


class _Keeper:
    """The lease of this driver in a store."""

    def __init__(self, path: str, lease: Lease, hold: Hold) -> None:
        self._path = path
        self._lease = lease
        self._hold = hold
        self.ended = threading.Event()

    def acquire(self) -> None:
        """Take the lease, or take it over from a holder that is not seen to renew it."""
        version = storage.file_version(self._path)
        if version is not None:
            version = self._wait_for_the_dead(version)
        if not (storage.write_text_if(self._path, to_json(self._lease) + "\n", version) and self._is_ours()):
            raise self._refusal(_read(self._path))

    def keep(self) -> None:
        """Renew the lease until the run ends."""
        while not self.ended.wait(self._lease.renewal_seconds):
            try:
                version = storage.file_version(self._path)
                if not self._is_ours():
                    self._hold.lose(f"{self._path} is now of another driver, {_holder(_read(self._path))}")
                    return
                self._lease = attrs.evolve(self._lease, renewal=self._lease.renewal + 1)
                if storage.write_text_if(self._path, to_json(self._lease) + "\n", version):
                    self._hold.renew()
            except (OSError, ValueError) as error:  # noqa: PERF203 - one a while
                logger.warning("%s could not be renewed: %s", self._path, error)

    def release(self) -> None:
        """Give the lease back."""
        if self._hold.is_sure:
            with suppress(OSError, ValueError):
                if self._is_ours():
                    storage.remove(self._path)

    def _is_ours(self) -> bool:
        """Return whether what the store holds is this driver's."""
        found = _read(self._path)
        return found is not None and found.identity == self._lease.identity

    def _wait_for_the_dead(self, version: str) -> str | None:
        """Watch the lease of another driver, and return its version once it is not renewed for long enough.

        Raises:
            ValueError: if it is renewed: its holder is alive.
        """
        other = _read(self._path)
        if other is None:
            return storage.file_version(self._path)
        seconds = _INTERVALS * other.renewal_seconds
        logger.warning("%s is of %s; waiting %.0f s at most for it to be renewed", self._path, _holder(other), seconds)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(other.renewal_seconds / _LOOKS_AN_INTERVAL)
            now = storage.file_version(self._path)
            if now is None:
                return None
            if now != version:
                raise self._refusal(_read(self._path))
        logger.warning("its holder is gone, and this run takes over")
        return version

    def _refusal(self, holder: Lease | None) -> ValueError:
        return ValueError(
            f"another driver works in {self._path.removesuffix(LEASE)}: {_holder(holder)}. Wait for it, end it, or "
            "choose another output; one that died is taken over when it has not renewed its lease for a minute"
        )


def _holder(lease: Lease | None) -> str:
    return "one that has just begun" if lease is None else f"{lease.holder}, since {lease.since}"


def _read(path: str) -> Lease | None:
    """Return the lease in a file; None where there is none."""
    try:
        return read_changing(path, Lease, limit=_MAX_BYTES)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); delete it if no other run works there") from None


def _known(path: str) -> Lease | None:
    with suppress(ValueError, OSError):
        return _read(path)
    return None
