"""Checkpoints on the Hugging Face hub: `hf-hub:owner/name[/file][@revision][#sha256=digest]`.

A revision or digest pins the file; otherwise huggingface_hub downloads the newest file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from mobileclip import storage
from mobileclip.encoders.checkpoints.published import (
    CONTRACT,
    OPEN_CLIP,
    PREFIX,
    PUBLISHED,
    Published,
    no_checkpoint,
    packaged,
    require_no_export,
)
from mobileclip.extras import needed
from mobileclip.tensor_files import CheckpointError, check_sha256, file_sha256
from mobileclip.terminal import get_logger

_logger = get_logger(__name__)

_CONNECT_SECONDS = 10.0

_SUFFIXES = (".safetensors", ".bin", ".pt")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_ADDRESS = re.compile(
    r"hf-hub:(?P<repository>[\w.-]+/[\w.-]+)(?:/(?P<file>[\w./ -]+))?(?:@(?P<revision>[\w./-]+))?"
    r"(?:#sha256=(?P<sha256>[0-9a-f]{64}))?"
)


def fetched(checkpoint: str | Path) -> Path:
    """Return the local file of a checkpoint; download an `hf-hub:` address that is not in the cache.

    Args:
        checkpoint: a file, a folder with one file of weights, or `hf-hub:owner/name[/file][@revision][#sha256=digest]`.

    Raises:
        ImportError: if huggingface_hub is not installed.
        CheckpointError: if the hub cannot be reached, the folder or repository is an export or does not have exactly
            one checkpoint, or the file's digest differs from the digest in the address.
    """
    if not str(checkpoint).startswith(PREFIX):
        return local_checkpoint(checkpoint)
    require_client(f"{checkpoint!r}, which is on the Hugging Face hub,")
    wanted = parsed(str(checkpoint))
    path = _pinned(wanted)
    stored = path.resolve()
    # The hub's client names the cached copy of a large file after the file's digest.
    own = stored.name if _SHA256.fullmatch(stored.name) else None
    digest = wanted.sha256 or own
    if digest is None or (found := file_sha256(path)) == digest:
        return path
    if found != own:
        _logger.warning("%s is damaged; downloading it again", stored)
        try:
            path = _pinned(wanted, again=True)
        except CheckpointError as error:
            raise CheckpointError(f"{stored} is damaged; {error}", code=error.code) from error
    check_sha256(path.resolve(), digest)
    return path


def _pinned(wanted: Published, *, again: bool = False) -> Path:
    """Download a file; if its commit no longer exists but the digest is known, use the newest commit."""
    from huggingface_hub.errors import RemoteEntryNotFoundError, RevisionNotFoundError

    try:
        return _downloaded(wanted, wanted.revision, again=again)
    except CheckpointError as error:
        gone = isinstance(error.__cause__, (RevisionNotFoundError, RemoteEntryNotFoundError))
        if wanted.revision is None or wanted.sha256 is None or not gone:
            raise
    _logger.warning("%s no longer has the revision %s; the newest revision is used", wanted.repository, wanted.revision)
    return _downloaded(wanted, None, again=again)


def require_client(what: str) -> None:
    """Raise if huggingface_hub is not installed.

    Args:
        what: subject of the error message, such as a checkpoint's address.

    Raises:
        ImportError: if huggingface_hub is not installed; the message contains the install command.
    """
    with needed(what, "hub"):
        import huggingface_hub  # noqa: F401


def parsed(address: str) -> Published:
    """Parse an `hf-hub:` address into repository, file, revision and digest.

    Raises:
        CheckpointError: if `address` does not have the form `hf-hub:owner/name[/file][@revision][#sha256=digest]`.
    """
    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise CheckpointError(
            f"{address!r} is not a valid hub address; write {PREFIX}owner/name or {PREFIX}owner/name/file, "
            "and append @revision and #sha256= with 64 hexadecimal digits to pin the file",
            code="address",
        )
    return Published(**match.groupdict())


def _require_connection(wanted: Published, revision: str | None, *, again: bool) -> None:
    """Connect to the hub once, unless the file is cached, because the hub's client would retry for half a minute."""
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
        # If a repeated download fails, the `__cause__` of the client's error states the reason.
        error = raised.__cause__ if again and isinstance(raised.__cause__, client_errors()) else raised
        name = next((name for name, one in PUBLISHED.items() if one.address == wanted.address), "")
        raise CheckpointError(
            f"could not fetch {name or wanted.address!r} from the hub ({error_message(error)}); "
            f"{_advice(error, wanted, revision, name)}",
            code="not_fetched",
        ) from error


def _advice(error: Exception, wanted: Published, revision: str | None, name: str) -> str:
    """Return advice for an error of huggingface_hub."""
    from huggingface_hub.constants import ENDPOINT
    from huggingface_hub.errors import GatedRepoError, RevisionNotFoundError

    page = f"{ENDPOINT}/{wanted.repository}"
    if isinstance(error, GatedRepoError):
        return f"accept the licence at {page}, and log in with `hf auth login` or set HF_TOKEN to your token"
    if isinstance(error, RevisionNotFoundError):
        return (
            f"there is no revision {revision}: choose a commit from {page}/commits/main, or omit @{revision} for the "
            "newest"
        )
    file = f"{page}/resolve/{revision or 'main'}/{wanted.file or ''}"
    return (
        f"check the name and the connection, or download {file} on another machine, copy it here and pass it: "
        f"-m {name and f'{name}='}FILE. -m icons, a small model for drawings, needs no download"
    )


def client_errors() -> tuple[type[Exception], ...]:
    """Return the error classes of huggingface_hub and of its HTTP library."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    return (*HfHubHTTPError.__bases__, HFValidationError, OSError)


def error_message(error: Exception) -> str:
    """Return the message of a hub client's error as one line."""
    return storage.printable(" ".join(str(error).split()))


def local_checkpoint(place: str | Path) -> Path:
    """Return the path of a checkpoint file, given a file, a folder with one weights file, or a packaged model.

    Args:
        place: a local path, or the name of a packaged model, see `packaged`.

    Raises:
        CheckpointError: if the folder holds an export, or does not have exactly one file of weights.
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
    """Return the only file of weights of a repository or folder.

    Args:
        files: names of the files.
        place: path of the folder or address of the repository, for messages.

    Raises:
        CheckpointError: if there is no weights file, or more than one with the preferred suffix.
    """
    files = sorted(files)
    if OPEN_CLIP in files:  # next to the file for transformers; both hold the same model
        return OPEN_CLIP
    for suffix in _SUFFIXES:
        found = [file for file in files if PurePosixPath(file).suffix == suffix]
        if len(found) == 1:
            return found[0]
        if found:
            several = ", ".join(map(storage.printable, found[:5]))
            raise CheckpointError(
                f"{place} holds several checkpoints ({several}); name one: {place}/{storage.printable(found[0])}",
                code="ambiguous",
            )
    raise CheckpointError(f"{place} holds no checkpoint ({', '.join(_SUFFIXES)})", code="no_checkpoint")
