"""`mobileclip data captions`: sets of captions side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes, Positional, arg

from mobileclip.cli.arguments import Device, require_at_least
from mobileclip.datasets.sources import RowOptions
from mobileclip.storage import require_output
from mobileclip.terminal import print_table, say
from mobileclip.terminal.status import conclude


def captions(
    data: Annotated[Positional[tuple[str, ...]], arg(metavar="DATA")],
    /,
    *,
    model: Annotated[tuple[str, ...], arg(aliases=["-m"])] = (),
    output: Annotated[Path | None, arg(metavar="PAGE.html")] = None,
    samples: Annotated[int, arg(metavar="N")] = 1_000,
    sets: str | None = None,
    rows: OmitArgPrefixes[RowOptions] = RowOptions(),  # noqa: B008  frozen
    device: Device = "auto",
    overwrite: bool = False,
) -> None:
    """Judge sets of captions of the same pictures side by side.

    mobileclip data captions coco.tar reinforced/ -m mobileclip_s2 -o captions.html

    Of every set, real and synthetic: how many captions a picture has, their length, how many n-grams differ, how many
    captions hold the picture's name where a label says it, and, with models, how well captions fit their pictures.
    Pictures are the same by their key. The page shows the first of them with what each set says.

    Args:
        data: data sets with captions: shards, folders, lists or tables.
        model: that looks at pictures and captions, as `mobileclip eval` takes it; several may be given.
        output: a page of the table and of pictures with their captions (extra report).
        samples: pictures that are read, from the first on.
        sets: a regular expression in the names of the sets that are taken.
        rows: how rows of lists and tables are read.
        device: where models compute.
        overwrite: replace a page that is there.
    """
    from rich.table import Table

    from mobileclip.evaluation import open_candidate
    from mobileclip.evaluation.captions import judge_captions, judged_table, read_caption_sets, write_captions_page
    from mobileclip.evaluation.report.write import require_report

    if not data:
        raise ValueError("no DATA were given; expected data sets with captions, such as a.tar b.tar")
    require_at_least(1, samples=samples)
    if output is not None:
        require_output(output, overwrite=overwrite, suffixes=(".html",))
        require_report()
    captioned = read_caption_sets(data, most=samples, pattern=sets, rows=rows)
    judgements = judge_captions(captioned, [open_candidate(one, device=device) for one in model])
    judged = judged_table(judgements)
    table = Table(title=judged.title, box=None)
    for column in judged.columns:
        title = f"{column.title}\n{column.small}" if column.small else column.title
        table.add_column(title, overflow="fold", justify="right" if column.is_number else "left")
    for row in judged.rows:
        table.add_row(*(cell.text for cell in row))
    print_table(table)
    for note in judged.notes:
        say(note)
    if output is not None:
        write_captions_page(output, captioned, judgements)
        say(f"wrote {output}")
    if captioned.report.counts:
        say(f"left out: {captioned.report}", error=True)
    conclude(left_out=captioned.report.counts, done=len(captioned.keys))
