"""`mobileclip combine`: build one model from the image tower and the text tower of two files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from mobileclip.cli.checks import require_checkpoint
from mobileclip.cli.models import split
from mobileclip.storage import require_output
from mobileclip.terminal import say


def combine(
    image: Annotated[Positional[str], arg(metavar="IMAGE")],
    text: Annotated[Positional[str], arg(metavar="TEXT")],
    /,
    *,
    output: Annotated[Path, arg(metavar="FILE.safetensors")],
    overwrite: bool = False,
) -> None:
    """Write one model of the image tower of one file and the text tower of another, which is of the same space.

    mobileclip combine mobileclip_s2 german.safetensors -o s2_german.safetensors

    The result is a checkpoint as any other: it is loaded, searched with, evaluated and exported. Where one of the
    towers is folded, both are. Embeddings of images stay as they are: an index that IMAGE made is searched with TEXT by
    --text-model, without this.

    Args:
        image: a model, a name or NAME=FILE, whose image tower and logit scale are taken; or an image tower alone, as
            mobileclip convert MODEL --tower image writes it.
        text: a text tower that was distilled from the model's, a file or a folder with one.
        output: the file to write, *.safetensors.
        overwrite: replace a file that is there.
    """
    from mobileclip.encoders import save_model
    from mobileclip.inference.combining import combine as combined
    from mobileclip.inference.loading import require_model

    require_output(output, overwrite=overwrite, suffixes=(".safetensors",))
    name, file = split(image)
    require_model(name, file)
    require_checkpoint(text)
    model = combined(name, text, checkpoint=file)
    save_model(model, output)
    say(f"wrote {output}: the image tower of {image} and the text tower of {text}")
