"""What is said of sets of captions, as a table and as a page with pictures."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone

import attrs

from mobileclip.data.images import load_image
from mobileclip.evaluation.captions.judging import Judgement
from mobileclip.evaluation.captions.sets import Captioned
from mobileclip.evaluation.report.page import rendered
from mobileclip.evaluation.report.pictures import Picture, thumbnail
from mobileclip.evaluation.report.table import Cell, Column, Table, per_cent
from mobileclip.evaluation.report.write import require_report
from mobileclip.extras import VERSION
from mobileclip.storage import AnyPath, write_text

_MOST_SHOWN = 60


@attrs.frozen(kw_only=True)
class _Shown:
    """A picture with what each set says of it."""

    picture: Picture
    name: str
    captions: tuple[tuple[str, tuple[str, ...]], ...]


def judged_table(judgements: Sequence[Judgement]) -> Table:
    """Return the table of several sets, at least one."""
    first = judgements[0]
    columns = [Column(title="captions", is_number=False), Column(title="each"), Column(title="words")]
    columns += [Column(title=f"distinct {n}-grams", small="%") for n in (1, 2, 3)]
    columns += [Column(title="name recalled", small="%")] if first.recalled is not None else []
    for name in first.agreements:
        columns += [Column(title="cosine", small=name), Column(title="picture found", small=f"%, {name}")]
    rows = []
    for one in judgements:
        texts = [
            one.name,
            f"{one.num_captions / one.num_pictures:.1f}",
            f"{one.words:.1f}",
            *map(per_cent, one.distinct),
        ]
        texts += [per_cent(one.recalled)] if one.recalled is not None else []
        for agreement in one.agreements.values():
            texts += [f"{agreement.cosine:.3f}", per_cent(agreement.found)]
        rows.append(tuple(Cell(text=text) for text in texts))
    notes = (
        "Distinct n-grams fall with the number of captions, so that sets of one size compare; cosines, of one model."
    )
    title = f"Captions of {first.num_pictures:,} pictures"
    return Table(title=title, columns=tuple(columns), rows=tuple(rows), notes=(notes,))


def write_captions_page(
    path: AnyPath, captioned: Captioned, judgements: Sequence[Judgement], *, when: datetime | None = None
) -> None:
    """Write a page: the table, and the first pictures with what each set says of them.

    Args:
        path: the HTML file; replaced whole.
        captioned: pictures and sets.
        judgements: of the sets.
        when: when it is made; now, where it is left out.

    Raises:
        ModuleNotFoundError: if jinja2 is not there; the message says how to install it.
        OSError: if the file cannot be written.
    """
    require_report()
    shown = [
        _Shown(
            picture=thumbnail(load_image(captioned.images[place])),
            name=captioned.names[place] if captioned.names else "",
            captions=tuple((name, texts[place]) for name, texts in captioned.sets.items()),
        )
        for place in range(min(_MOST_SHOWN, len(captioned.keys)))
    ]
    made = datetime.now(timezone.utc) if when is None else when
    values = {
        "title": "Captions side by side",
        "when": f"{made:%Y-%m-%d %H:%M %Z}",
        "version": VERSION,
        "judged": judged_table(judgements),
        "shown": shown,
    }
    write_text(path, rendered("captions.html", values))
