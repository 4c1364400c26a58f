"""`mobileclip hub ...`: models as folders and hub repositories that other libraries can also load."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from mobileclip.cli.arguments import require_checkpoint, require_file
from mobileclip.terminal import say
from mobileclip.terminal.common import Rare

if TYPE_CHECKING:
    from torch import nn

    from mobileclip.evaluation import DatasetResult

Source = Annotated[Positional[str], arg(metavar="SOURCE")]
Licence = Annotated[str, arg(name="license", metavar="mit|cc-by-4.0|apple-amlr|...")]
Tower = Literal["image", "text"] | None
Results = Annotated[Path | None, arg(metavar="FILE")]


def save(
    source: Source,
    /,
    *,
    output: Annotated[Path, arg(metavar="FOLDER")],
    licence: Licence,
    repository: str | None = None,
    base_model: Rare[str | None] = None,
    results: Results = None,
    tower: Tower = None,
    fold: bool = False,
    overwrite: bool = False,
) -> None:
    """Write a model to a folder for the hub: weights, configurations for open_clip or timm, and a model card.

    mobileclip hub save s2.safetensors -o s2 --license mit --repository me/s2

    open_clip loads a dual encoder in training form, and timm loads an image tower or a classifier, if these libraries
    have the architecture; mobileclip loads the same file. The card lists the libraries that load the folder, and gives
    a reason for each library that does not.

    Args:
        source: a checkpoint in any known layout, a folder with one, or hf-hub:owner/name.
        output: the folder to write.
        licence: Hugging Face Hub identifier of the weights' licence, such as mit; apple-amlr (research only) for
            Apple's weights and models trained from them.
        repository: owner and name on the hub, for the card's examples.
        base_model: owner and name of the original model on the hub; by default the source, if it is on the hub.
        results: results.jsonl from mobileclip eval, for the card.
        tower: write only the image or the text tower; by default the whole model.
        fold: reparameterize the model; the result loads only in mobileclip, and cannot be trained.
        overwrite: replace the output of an earlier hub save.
    """
    from mobileclip.interop import save_pretrained
    from mobileclip.interop.folder import require_folder

    about = _card(source, licence, repository, base_model, results)
    require_folder(output, overwrite=overwrite)
    model = _model(source, tower=tower, fold=fold)
    save_pretrained(model, output, repository=repository, overwrite=overwrite, **about)
    say(f"wrote {output}: {', '.join(sorted(path.name for path in output.iterdir()))}")


def push(
    source: Source,
    repository: Annotated[Positional[str], arg(metavar="OWNER/NAME")],
    /,
    *,
    licence: Licence,
    base_model: Rare[str | None] = None,
    results: Results = None,
    tower: Tower = None,
    fold: bool = False,
    private: bool = False,
    revision: Rare[str | None] = None,
    message: Rare[str] = "Add a model of mobileclip",
    overwrite: bool = False,
) -> None:
    """Push a model to a repository on the hub in one commit, with the files that mobileclip hub save writes.

    mobileclip hub push s2.safetensors me/s2 --license mit --private

    The command creates a missing repository or branch. Log in with hf auth login, or set HF_TOKEN. To push a folder
    with an edited card, run hf upload OWNER/NAME FOLDER.

    Args:
        source: a checkpoint in any known layout, a folder with one, or hf-hub:owner/name.
        repository: owner and name on the hub.
        licence: Hugging Face Hub identifier of the weights' licence, such as mit; apple-amlr (research only) for
            Apple's weights and models trained from them.
        base_model: owner and name of the original model on the hub; by default the source, if it is on the hub.
        results: results.jsonl from mobileclip eval, for the card.
        tower: push only the image or the text tower; by default the whole model.
        fold: reparameterize the model; the result loads only in mobileclip, and cannot be trained.
        private: create a private repository; raise an error if the repository exists and is public.
        revision: the branch; by default main.
        message: the commit message.
        overwrite: replace an existing model and card on the branch; the git history keeps the earlier files.
    """
    from mobileclip.interop import push_to_hub

    about = _card(source, licence, repository, base_model, results)
    pushed = push_to_hub(
        _model(source, tower=tower, fold=fold),
        repository,
        private=True if private else None,
        revision=revision,
        message=message,
        overwrite=overwrite,
        **about,
    )
    say(f"pushed {pushed.url}")
    say(f"this exact revision: hf-hub:{repository}@{pushed.commit}")


def _card(
    source: str, licence: str, repository: str | None, base_model: str | None, results: Path | None
) -> dict[str, Any]:
    """Return the card's metadata, or raise if the hub would refuse it."""
    from mobileclip.interop.folder import require_names

    base = _base(source, base_model, repository)
    require_names(licence, repository, base_model=base)
    return {"license": licence, "base_model": base, "results": _measured(results)}


def _measured(path: Path | None) -> list[DatasetResult]:
    if path is None:
        return []
    from mobileclip.evaluation import read_results

    require_file(path, "a file of results, results.jsonl")
    results = list(read_results(path).values())
    if not results:
        raise ValueError(f"{path} has no results; pass the results.jsonl that mobileclip eval wrote, or omit --results")
    return results


def _base(source: str, given: str | None, repository: str | None) -> str | None:
    """Return the value of `--base-model`, or the source if the source is a hub repository other than the target."""
    from mobileclip.encoders.checkpoints import PREFIX
    from mobileclip.encoders.checkpoints.hub import parsed

    if given is not None or not source.startswith(PREFIX):
        return given
    found = parsed(source).repository
    return None if found == repository else found


def _model(source: str, *, tower: Literal["image", "text"] | None, fold: bool) -> nn.Module:
    """Return a checkpoint's model in its stored form, or reparameterized."""
    from mobileclip.encoders.checkpoints import read_checkpoint
    from mobileclip.reparam import reparameterize

    require_checkpoint(source)
    built = read_checkpoint(source, tower=tower).build()
    return reparameterize(built, inplace=True) if fold else built
