"""The command line of the distilling recipe: every choice is a flag."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import attrs
import tyro

from mobileclip.data.text.stored import StoredTexts
from mobileclip.recipes.distilling.run import distil
from mobileclip.recipes.distilling.spec import DistilSpec
from mobileclip.recipes.distilling.tiny import shrink
from mobileclip.recipes.entry_point import described, opened, show
from mobileclip.recipes.training.flags import OUTPUTS, draw_curves, row_of
from mobileclip.recipes.training.linked_defaults import Given, following_training
from mobileclip.terminal import say
from mobileclip.terminal.help import parse
from mobileclip.training import last_metrics

Recipe = Callable[[], DistilSpec]


@attrs.frozen(kw_only=True)
class Command:
    """The command-line flags of the recipe of distilled text towers.

    Args:
        spec: the choices.
        show: print the choices as JSON and stop; --run reads them back.
        run: a file that --show has written, or the distil.json of an output: its choices in place of the recipe's.
        tiny: eighty steps on the first texts, or on some names of icons in three languages without, with the packaged
            model `icons` as the teacher where none is named: the whole path in seconds.
    """

    spec: Annotated[DistilSpec, tyro.conf.arg(name="")]
    show: bool = False
    run: Path | None = None
    tiny: bool = False


def run_recipe(
    recipe: Recipe | Mapping[str, Recipe], name: str, description: str | None, arguments: Sequence[str] | None = None
) -> None:
    """Read the command line and distil, or say what is missing.

    Args:
        recipe: returns the choices; or several by name, of which the command line names one.
        name: of the run, the default output's folder.
        description: the recipe's docstring, which `--help` begins with.
        arguments: the command line; None for the process's own.
    """
    recipes = recipe if isinstance(recipe, Mapping) else {"": recipe}
    titles = {row: (one.__doc__ or "").partition("\n")[0] for row, one in recipes.items() if row}
    with opened("distilling", name, description, arguments, cls=DistilSpec, rows=titles) as (written, typed):
        row, rest = row_of(titles, typed, is_needed=written is None)
        chosen = written or recipes[row]()
        if row and written is None:
            chosen = attrs.evolve(chosen, output=OUTPUTS / f"{name}-{row}")
        training = following_training(chosen.training, Given(rest))
        default = Command(spec=attrs.evolve(chosen, training=training))
        command = parse(
            Command, rest, description=described(description), default=default, config=(tyro.conf.AvoidSubcommands,)
        )
        spec = (
            shrink(command.spec, DistilSpec() if written else chosen)
            if command.tiny and not command.show
            else command.spec
        )
        if command.show:
            show(spec)
            return
        path = distil(spec, title=name)
    if path is not None:
        draw_curves(str(spec.output), name)
        say(_ended(spec, path))


def _ended(spec: DistilSpec, path: Path) -> str:
    """Return how near the student came, and what may be typed next."""
    cosine = 1 - (last_metrics(spec.output / "metrics.jsonl") or {}).get("cosine", float("nan"))
    card = StoredTexts(spec.texts_folder).card
    said = f"{path}: a text tower whose embeddings have a cosine of {cosine:.3f} to those of {card.teacher}"
    if not card.space:
        return f"{said}\nto load it: mobileclip.encoders.load_model({str(path)!r})"
    return f'{said}\nto search with it: mobileclip search "a few words" --index INDEX --text-model {path}'
