"""Checkpoints on the Hugging Face hub: `hf-hub:owner/name[/file][@revision][#sha256=digest]`.

What is named without a revision or a digest is trusted at its first use: the commit and the SHA-256 of what came are
remembered beside the hub's cache, the same commit is asked for from then on, and other bytes are refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

import attrs

from mobileclip import storage
from mobileclip.encoders.checkpoints.published import (
    CONTRACT,
    PREFIX,
    PUBLISHED,
    Published,
    no_checkpoint,
    packaged,
    require_no_export,
)
from mobileclip.extras import needed
from mobileclip.serialization import from_json, to_json
from mobileclip.strict import strict
from mobileclip.tensor_files import CheckpointError, check_sha256, file_sha256
from mobileclip.terminal import get_logger

_logger = get_logger(__name__)

LOCK = "weights.json"
_FOLDER = ".mobileclip"
_WAIT_SECONDS = 60.0
_CONNECT_SECONDS = 10.0

_SUFFIXES = (".safetensors", ".bin", ".pt")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_ADDRESS = re.compile(
    r"hf-hub:(?P<repository>[\w.-]+/[\w.-]+)(?:/(?P<file>[\w./ -]+))?(?:@(?P<revision>[\w./-]+))?"
    r"(?:#sha256=(?P<sha256>[0-9a-f]{64}))?"
)


@attrs.frozen(kw_only=True, field_transformer=strict)
class Remembered:
    """The commit and digest of a file as it was first fetched from the hub.

    Args:
        commit: of the repository, in hexadecimal.
        sha256: of the file, in hexadecimal.
    """

    commit: str
    sha256: str


@attrs.frozen(kw_only=True, field_transformer=strict)
class Lock:
    """The record of downloads by names without a digest, so that a change of the file is noticed.

    Args:
        files: URL, without its digest, to what came.
    """

    files: Mapping[str, Remembered] = attrs.field(factory=dict)


def fetched(checkpoint: str | Path) -> Path:
    """Return the file of a checkpoint, downloading it from the hub (once) if its name starts with `hf-hub:`.

    Args:
        checkpoint: a file, a folder with one file of weights, or `hf-hub:owner/name[/file][@revision][#sha256=digest]`.

    Raises:
        ImportError: if the hub's client is not installed; the message has the command that installs it.
        CheckpointError: if the folder or the repository holds no single checkpoint, or is an export, or the repository
            cannot be reached, or if the file is not the one that its name, or an earlier download, says.
    """
    if not str(checkpoint).startswith(PREFIX):
        return local_checkpoint(checkpoint)
    require_client(f"{checkpoint!r}, which is on the Hugging Face hub,")
    wanted = parsed(str(checkpoint))
    known = None if wanted.sha256 is not None else _read_lock().files.get(wanted.address)
    pinned = wanted if known is None else attrs.evolve(wanted, revision=known.commit, sha256=known.sha256)
    path = _pinned(pinned)
    # The hub's client names a large file by its digest.
    found, stored = file_sha256(path), path.resolve()
    if found not in (pinned.sha256 or _named_digest(stored, found), _named_digest(stored)):
        _logger.warning("%s is damaged, and fetched again", stored)
        try:
            path = _pinned(pinned, again=True)
        except CheckpointError as error:
            raise CheckpointError(f"{stored} is damaged; {error}") from error
        found, stored = file_sha256(path), path.resolve()
    if known is not None and found != known.sha256:
        raise CheckpointError(
            f"{wanted.address} is no longer what was fetched first: the SHA-256 of {stored} is {found}, and "
            f"{_lock_path()} remembers {known.sha256}. If it is meant to differ, delete its entry there"
        )
    check_sha256(stored, pinned.sha256 or _named_digest(stored))
    if pinned.sha256 is None:
        _remember(wanted.address, Remembered(commit=_commit(path), sha256=found))
    return path


def _named_digest(stored: Path, otherwise: str | None = None) -> str | None:
    """Return the digest that a file of the hub's cache is named by; small files are named in another way."""
    return stored.name if _SHA256.fullmatch(stored.name) else otherwise


def _pinned(wanted: Published, *, again: bool = False) -> Path:
    """Return a file; one whose digest is known comes from the newest commit where its own is gone."""
    from huggingface_hub.errors import RemoteEntryNotFoundError, RevisionNotFoundError

    try:
        return _downloaded(wanted, wanted.revision, again=again)
    except CheckpointError as error:
        gone = isinstance(error.__cause__, (RevisionNotFoundError, RemoteEntryNotFoundError))
        if wanted.revision is None or wanted.sha256 is None or not gone:
            raise
    _logger.warning("%s has no revision %s any more: its newest one is taken", wanted.repository, wanted.revision)
    return _downloaded(wanted, None, again=again)


def require_client(what: str) -> None:
    """Make sure that the hub's client is installed, before anything is asked of it.

    Args:
        what: who needs it, as a sentence begins.

    Raises:
        ImportError: if it is not; the message has the command that installs it.
    """
    with needed(what, "hub"):
        import huggingface_hub  # noqa: F401


def parsed(address: str) -> Published:
    """Parse a name on the hub into repository, file, revision and digest.

    Raises:
        CheckpointError: if it is none.
    """
    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise CheckpointError(
            f"{address!r} names no checkpoint on the hub; write {PREFIX}owner/name or {PREFIX}owner/name/file, with "
            "@revision and #sha256= and 64 hexadecimal digits behind it to pin what comes"
        )
    return Published(**match.groupdict())


def _require_connection(wanted: Published, revision: str | None, *, again: bool) -> None:
    """Ask the hub once for a file that is not here: its client would repeat that for half a minute."""
    from huggingface_hub import constants, get_session, try_to_load_from_cache

    file = wanted.file
    if again or file is None or not isinstance(try_to_load_from_cache(wanted.repository, file, revision=revision), str):
        get_session().head(constants.ENDPOINT, timeout=_CONNECT_SECONDS)


def _downloaded(wanted: Published, revision: str | None, *, again: bool) -> Path:
    import huggingface_hub

    failures: tuple[type[Exception], ...] = (*client_errors(), ValueError)
    try:
        _require_connection(wanted, revision, again=again)
        file = wanted.file
        if file is None:
            place, files = (
                f"{PREFIX}{wanted.repository}",
                huggingface_hub.list_repo_files(wanted.repository, revision=revision),
            )
            if CONTRACT in files:
                contract = huggingface_hub.hf_hub_download(wanted.repository, CONTRACT, revision=revision)
                raise no_checkpoint(place, Path(contract), "`mobileclip verify FOLDER` runs a copy on this machine")
            file = only_checkpoint(files, place)
        return Path(huggingface_hub.hf_hub_download(wanted.repository, file, revision=revision, force_download=again))
    except failures as raised:
        if isinstance(raised, CheckpointError):
            raise
        # Of a file that is fetched again, the client says why not in what its error comes of.
        error = raised.__cause__ if again and isinstance(raised.__cause__, client_errors()) else raised
        name = next((name for name, one in PUBLISHED.items() if one.address == wanted.address), "")
        raise CheckpointError(
            f"could not fetch {name or wanted.address!r} from the hub ({said(error)}); "
            f"{_advice(error, wanted, revision, name)}"
        ) from error


def _advice(error: Exception, wanted: Published, revision: str | None, name: str) -> str:
    """Return what to do about an error of the hub's client."""
    from huggingface_hub.constants import ENDPOINT
    from huggingface_hub.errors import GatedRepoError, RevisionNotFoundError

    page = f"{ENDPOINT}/{wanted.repository}"
    if isinstance(error, GatedRepoError):
        return f"accept the licence at {page}, and log in with `hf auth login` or set HF_TOKEN to a token of yours"
    if isinstance(error, RevisionNotFoundError):
        return (
            f"there is no revision {revision}: name one of {page}/commits/main, or leave @{revision} out for the newest"
        )
    file = f"{page}/resolve/{revision or 'main'}/{wanted.file or ''}"
    return (
        f"check the name and the connection, or bring {file} from another machine and give it: "
        f"-m {name and f'{name}='}FILE. -m icons needs no download: a small model of drawings"
    )


def client_errors() -> tuple[type[Exception], ...]:
    """Return the errors that the hub's client raises: its own, and those of the library it speaks HTTP with."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    return (*HfHubHTTPError.__bases__, HFValidationError, OSError)


def said(error: Exception) -> str:
    """Return an error of the hub's client as one line."""
    return storage.printable(" ".join(str(error).split()))


def local_checkpoint(place: str | Path) -> Path:
    """Return a file as it is, the one file of weights in a folder, or the file of a model that the package brings.

    Args:
        place: where it is on this machine, or the name of a packaged model, see `packaged`.

    Raises:
        CheckpointError: if it is a folder that has no such file, or several of a kind, or holds an export.
    """
    known = packaged(place)
    if known is not None:
        return known
    place = Path(place)
    if not place.is_dir():
        return place
    require_no_export(place)
    return place / only_checkpoint((path.name for path in place.iterdir() if path.is_file()), place)


def only_checkpoint(files: Iterable[str], place: str | Path) -> str:
    """Return the one file of weights among those of a repository or a folder.

    Args:
        files: their names.
        place: where they are, as it is written in front of a name.

    Raises:
        CheckpointError: if there are none, or several of a kind.
    """
    files = sorted(files)
    for suffix in _SUFFIXES:
        found = [file for file in files if PurePosixPath(file).suffix == suffix]
        if len(found) == 1:
            return found[0]
        if found:
            several = ", ".join(map(storage.printable, found[:5]))
            raise CheckpointError(
                f"{place} holds several checkpoints ({several}); name one: {place}/{storage.printable(found[0])}"
            )
    raise CheckpointError(f"{place} holds no checkpoint ({', '.join(_SUFFIXES)})")


def _commit(path: Path) -> str:
    """Return the commit that a file in the hub's cache belongs to: the folder below `snapshots`."""
    parts = path.parts
    return parts[len(parts) - 1 - parts[::-1].index("snapshots") + 1] if "snapshots" in parts else ""


def _lock_path() -> Path:
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE) / _FOLDER / LOCK


def _read_lock() -> Lock:
    path = _lock_path()
    if not path.exists():
        return Lock()
    try:
        return from_json(path.read_text(encoding="utf-8"), Lock)
    except ValueError as error:
        raise CheckpointError(
            f"{path} cannot be read ({error}); mend it, or delete it to trust what comes anew"
        ) from None


def _remember(address: str, what: Remembered) -> None:
    path = _lock_path()
    try:
        with storage.exclusive(path.parent, wait_seconds=_WAIT_SECONDS):
            files = {address: what, **_read_lock().files}
            with storage.atomic_path(path) as temporary:
                temporary.write_text(to_json(Lock(files=files), indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        _logger.warning("what %s is cannot be remembered (%s), so a change will not be noticed", address, error)
