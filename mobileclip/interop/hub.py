"""Pushes models to the Hugging Face hub in one commit, and loads them from there."""

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
from mobileclip.encoders.checkpoints.hub import client_errors, parsed, require_client, said
from mobileclip.interop.card import Result
from mobileclip.interop.folder import CARD, FILES, require_names, save_pretrained
from mobileclip.storage import printable

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_MAIN = "main"


class HubError(ValueError):
    """An upload that the hub refused, with what to do.

    Examples:
        >>> raise HubError("owner/name was not pushed: there is no connection")
        Traceback (most recent call last):
        mobileclip.interop.hub.HubError: owner/name was not pushed: there is no connection
    """


@attrs.frozen(kw_only=True)
class Pushed:
    """The result of a push: its commit and URL.

    Args:
        commit: in hexadecimal; with it, `from_pretrained(repository, revision=commit)` is this very model.
        url: where people see it.

    Examples:
        >>> Pushed(commit="0" * 40, url="https://huggingface.co/owner/name").commit[:7]
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
) -> Pushed:
    """Write a model to a repository on the hub, as `save_pretrained` writes it to a folder, in one commit.

    The hub checks the card first; then the repository is made if there is none, and the branch too. Log in
    with `hf auth login`, or the environment's HF_TOKEN.

    Args:
        model: a dual encoder, a tower or a classifier, in training form or folded.
        repository: owner and name.
        license: of the weights, see `save_pretrained`.
        base_model: of what model on the hub it was made, see `save_pretrained`.
        results: what it reaches on data sets, see `save_pretrained`.
        private: whether a new repository is private; None for what its owner has chosen for new ones. One that is there
            is never pushed to if it is otherwise.
        revision: the branch; None for the main one.
        message: of the commit.
        overwrite: whether a model that is on the branch is replaced, its card included; the history keeps it.

    Raises:
        ImportError: if the hub's client is not installed; the message has the command that installs it.
        ValueError: if license, repository or base model are no names, or the model is not as its spec builds it.
        HubError: if the hub cannot be reached or does not take it, or a model is there that may not be replaced.

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
            raise HubError(f"{repository} was not pushed: {said(error)}; {_advice(error)}") from error


def _check_card(api: HfApi, card: Path, repository: str) -> None:
    """Have the hub check a model card, as it does before it takes a commit, while there is nothing to leave behind."""
    from huggingface_hub import get_session, hf_raise_for_status

    asked = {"content": card.read_text(encoding="utf-8"), "repoType": "model"}
    response = get_session().post(f"{api.endpoint}/api/validate-yaml", json=asked)
    if response.status_code == 400:
        problems = "; ".join(str(problem.get("message")) for problem in response.json().get("errors", []))
        raise HubError(f"{repository} was not pushed: the hub does not take the model card: {printable(problems)}")
    hf_raise_for_status(response)


def _open(api: HfApi, repository: str, *, private: bool | None, revision: str | None) -> None:
    """Make the repository and the branch where there are none."""
    api.create_repo(repository, private=private, exist_ok=True)
    found = api.model_info(repository)
    if private is not None and found.private is not None and found.private != private:
        raise HubError(
            f"{repository} is {'private' if found.private else 'public'}, and was asked to be "
            f"{'private' if private else 'public'}; change that in its settings, or choose another repository"
        )
    if revision not in (None, _MAIN):
        api.create_branch(repository, branch=str(revision), exist_ok=True)


def _there(api: HfApi, repository: str, *, revision: str | None, overwrite: bool) -> list[str]:
    """Return which files of a model are on the branch, if they may be replaced."""
    found = sorted(set(FILES) & set(api.list_repo_files(repository, revision=revision)))
    if found and not overwrite:
        raise HubError(
            f"{repository} holds {', '.join(found)} already; choose another repository or branch, or replace it with "
            "overwrite=True (--overwrite)"
        )
    return found


def _committed(
    api: HfApi, folder: Path, repository: str, *, before: Sequence[str], revision: str | None, message: str
) -> Pushed:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    paths = sorted(folder.iterdir())
    added = [CommitOperationAdd(path_in_repo=path.name, path_or_fileobj=path) for path in paths]
    left = [CommitOperationDelete(path_in_repo=name) for name in before if not (folder / name).exists()]
    commit = api.create_commit(repository, [*left, *added], commit_message=message, revision=revision)
    return Pushed(commit=commit.oid, url=commit.commit_url)


def _advice(error: Exception) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401:
        return "log in with: hf auth login"
    if status == 403:
        return "the account that is logged in may not write there: see hf auth whoami, and the rights of the token"
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
    """Return the model in a folder or in a repository on the hub, in evaluation mode.

    Args:
        name: a folder, or owner and name of a repository with one file of weights in any known layout.
        revision: a commit, a tag or a branch of the repository.
        sha256: of the file of weights, in hexadecimal; another file is refused.
        fold: fold the model for inference, see `load_model`; without, what was pushed in training form comes back so.
        dtype: of the weights.
        device: where to.

    Raises:
        ImportError: if the hub's client is not installed; the message has the command that installs it.
        CheckpointError: if there is no such repository or no single file of weights, or it is another than expected.
        ValueError: if a revision or a digest is asked of a folder.

    Examples:
        >>> tower = mobileclip.encoders.MCtSpec(width=16, depth=0, num_heads=2).build()
        >>> folder = save_pretrained(tower, "text_tower", license="mit")
        >>> mobileclip.reparam.is_folded(from_pretrained(folder)), mobileclip.reparam.is_folded(tower)
        (True, False)
    """
    place = Path(name)
    if place.is_dir():
        if revision is not None or sha256 is not None:
            raise ValueError(f"{place} is a folder, which has no revision and no digest; leave them out")
        checkpoint = str(place)
    else:
        wanted = parsed(f"{PREFIX}{str(name).removeprefix(PREFIX)}")
        pinned = {"revision": revision, "sha256": sha256}
        checkpoint = attrs.evolve(wanted, **{key: value for key, value in pinned.items() if value}).address
    return load_model(checkpoint, fold=fold, dtype=dtype, device=device)
