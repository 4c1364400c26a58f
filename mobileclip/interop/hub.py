"""Pushes models to the Hugging Face hub in one commit, and loads models from the hub."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import torch
from torch import nn

from mobileclip.encoders import load_model
from mobileclip.encoders.checkpoints import PREFIX
from mobileclip.encoders.checkpoints.hub import client_errors, error_message, parsed, require_client
from mobileclip.interop.card import Result
from mobileclip.interop.folder import CARD, FILES, require_names, save_pretrained
from mobileclip.storage import printable

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_MAIN = "main"


class HubError(ValueError):
    """Raised if the hub refuses an upload or cannot be reached; the message suggests a remedy.

    Examples:
        >>> raise HubError("owner/name was not pushed: there is no connection")
        Traceback (most recent call last):
        mobileclip.interop.hub.HubError: owner/name was not pushed: there is no connection
    """


@attrs.frozen(kw_only=True)
class PushResult:
    """The commit that a push created.

    Args:
        commit: commit hash in hexadecimal; `from_pretrained(repository, revision=commit)` loads exactly this model.
        url: URL of the commit's page.

    Examples:
        >>> PushResult(commit="0" * 40, url="https://huggingface.co/owner/name").commit[:7]
        '0000000'
    """

    commit: str
    url: str


def push_to_hub(
    model: nn.Module,
    repository: str,
    *,
    license: str = "",  # noqa: A002 - the hub's name
    base_model: str | None = None,
    results: Sequence[Result] = (),
    private: bool | None = None,
    revision: str | None = None,
    message: str = "Add a model of mobileclip",
    overwrite: bool = False,
) -> PushResult:
    """Push a model to a hub repository in one commit, with the files that `save_pretrained` writes.

    After the hub has checked the model card, the function creates the repository and the branch if they do not exist.
    Log in with `hf auth login`, or set the environment variable HF_TOKEN.

    Args:
        model: an image-text model, a tower or a classifier, in training form or reparameterized.
        repository: owner and name of the repository, `owner/name`.
        license: licence of the weights, see `save_pretrained`.
        base_model: hub model that this model was trained or converted from, see `save_pretrained`.
        results: the model's results on data sets, see `save_pretrained`.
        private: whether the repository is private; None for the owner's default. An existing repository must already
            have this visibility.
        revision: name of the branch; None for the main branch.
        message: message of the commit.
        overwrite: whether to replace a model on the branch, including its card; the history keeps the old files.

    Raises:
        ImportError: if huggingface_hub is not installed; the message contains the install command.
        ValueError: if license, repository or base model are not valid names, or the model does not match its spec.
        HubError: if the hub cannot be reached or refuses the model, or the branch has a model and `overwrite` is False.

    Examples:
        >>> spec = mobileclip.encoders.ViTSpec(width=16, depth=1, num_heads=2)
        >>> push_to_hub(spec.build(), "name", license="mit")
        Traceback (most recent call last):
        ValueError: the repository is 'name'; expected owner/name
    """
    require_names(license, repository, base_model=base_model)
    require_client(f"{repository!r}, which would be on the Hugging Face hub,")
    from huggingface_hub import HfApi

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        save_pretrained(model, folder, license=license, repository=repository, base_model=base_model, results=results)
        failures: tuple[type[Exception], ...] = (*client_errors(), RuntimeError, ValueError)
        try:
            api = HfApi(library_name="mobileclip")
            _check_card(api, folder / CARD, repository)
            _open(api, repository, private=private, revision=revision)
            before = _there(api, repository, revision=revision, overwrite=overwrite)
            return _committed(api, folder, repository, before=before, revision=revision, message=message)
        except HubError:
            raise
        except failures as error:
            raise HubError(f"{repository} was not pushed: {error_message(error)}; {_advice(error)}") from error


def _check_card(api: HfApi, card: Path, repository: str) -> None:
    """Ask the hub to check a model card before the function creates anything on the hub."""
    from huggingface_hub import get_session, hf_raise_for_status

    asked = {"content": card.read_text(encoding="utf-8"), "repoType": "model"}
    response = get_session().post(f"{api.endpoint}/api/validate-yaml", json=asked)
    if response.status_code == 400:
        problems = "; ".join(str(problem.get("message")) for problem in response.json().get("errors", []))
        raise HubError(f"{repository} was not pushed: the hub does not accept the model card: {printable(problems)}")
    hf_raise_for_status(response)


def _open(api: HfApi, repository: str, *, private: bool | None, revision: str | None) -> None:
    """Create the repository and the branch if they do not exist."""
    api.create_repo(repository, private=private, exist_ok=True)
    found = api.model_info(repository)
    if private is not None and found.private is not None and found.private != private:
        raise HubError(
            f"{repository} is {'private' if found.private else 'public'}, expected "
            f"{'private' if private else 'public'}; change the repository's settings, or choose a different repository"
        )
    if revision not in (None, _MAIN):
        api.create_branch(repository, branch=str(revision), exist_ok=True)


def _there(api: HfApi, repository: str, *, revision: str | None, overwrite: bool) -> list[str]:
    """Return the names of the model files on the branch; raise if there are any and `overwrite` is False."""
    found = sorted(set(FILES) & set(api.list_repo_files(repository, revision=revision)))
    if found and not overwrite:
        raise HubError(
            f"{repository} already contains {', '.join(found)}; choose a different repository or branch, or replace "
            "the model with overwrite=True (--overwrite)"
        )
    return found


def _committed(
    api: HfApi, folder: Path, repository: str, *, before: Sequence[str], revision: str | None, message: str
) -> PushResult:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    paths = sorted(folder.iterdir())
    added = [CommitOperationAdd(path_in_repo=path.name, path_or_fileobj=path) for path in paths]
    left = [CommitOperationDelete(path_in_repo=name) for name in before if not (folder / name).exists()]
    commit = api.create_commit(repository, [*left, *added], commit_message=message, revision=revision)
    return PushResult(commit=commit.oid, url=commit.commit_url)


def _advice(error: Exception) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401:
        return "log in with: hf auth login"
    if status == 403:
        return "this account has no write access to the repository: check `hf auth whoami` and the token's permissions"
    return "check the name and the connection, and push again"


def from_pretrained(
    name: str | Path,
    *,
    revision: str | None = None,
    sha256: str | None = None,
    fold: bool = True,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> nn.Module:
    """Return the model in a folder or in a hub repository, in evaluation mode.

    Args:
        name: a folder or hub repository (`owner/name`) with a single weights file in any known layout.
        revision: commit, tag or branch of the repository; None for the newest commit.
        sha256: expected SHA-256 of the weights file, in hexadecimal; None accepts any file.
        fold: whether to reparameterize the model for inference. False returns the training form, which a
            reparameterized model cannot provide.
        dtype: dtype of the weights.
        device: device of the model.

    Raises:
        ImportError: if huggingface_hub is not installed; the message contains the install command.
        CheckpointError: if the repository does not exist or does not have a single weights file, or the SHA-256 of the
            file is not `sha256`.
        ValueError: if `revision` or `sha256` is set for a folder.

    Examples:
        >>> tower = mobileclip.encoders.MCtSpec(width=16, depth=0, num_heads=2).build()
        >>> folder = save_pretrained(tower, "text_tower", license="mit")
        >>> mobileclip.reparam.is_folded(from_pretrained(folder)), mobileclip.reparam.is_folded(tower)
        (True, False)
    """
    place = Path(name)
    if place.is_dir():
        if revision is not None or sha256 is not None:
            raise ValueError(
                f"{place} is a folder; revision and sha256 are for repositories on the hub, so leave them out"
            )
        checkpoint = str(place)
    else:
        wanted = parsed(f"{PREFIX}{str(name).removeprefix(PREFIX)}")
        pinned = {"revision": revision, "sha256": sha256}
        checkpoint = attrs.evolve(wanted, **{key: value for key, value in pinned.items() if value}).address
    return load_model(checkpoint, fold=fold, dtype=dtype, device=device)
