"""`mobileclip data score | filter | distinct | tune-scale`: choose samples by their stored embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from mobileclip.cli.checks import require_file, require_folder
from mobileclip.cli.data import require_shards
from mobileclip.cli.models import Device
from mobileclip.cli.outputs import outputs
from mobileclip.cli.sharing import Sharing
from mobileclip.terminal import print_table, say
from mobileclip.terminal.status import conclude

# Every other scale that was tried is shown: each is 26 % above the last.
_SHOWN_STEP = 2


def score(
    shards: Annotated[Positional[tuple[str, ...]], arg(metavar="SHARDS")],
    /,
    *,
    output: Annotated[Path, arg(metavar="FOLDER")],
    keep_vectors: bool = False,
    sharing: Annotated[Sharing, arg(name="")] = Sharing(),  # noqa: B008  frozen
    status: bool = False,
) -> None:
    """Score every sample of reinforced shards: how well its captions fit its image, as each teacher sees it.

    mobileclip data score 'DataCompDR-12M/{00000000..00001023}.tar' -o scores -j 16 --keep-vectors

    No teacher runs: what they stored is read, once. Shards need no images. Of each sample the FOLDER keeps its uid, its
    key, and per teacher the cosine similarity with the real caption, the mean over the synthetic ones and the best of
    these. A run that was stopped goes on; shards that have scores are not read again.

    A shard that cannot be read to its end is named, and the next run tries it again.

    Args:
        shards: reinforced tar files: paths, URLs or brace patterns.
        output: folder of the scores.
        keep_vectors: keep a vector of each image as well, which `mobileclip data distinct` needs.
        sharing: how the work is shared.
        status: print what a run in the folder does now, how far it is and how long the rest takes, and stop.
    """
    from mobileclip.datasets.curation import ScoreSpec, score_shards
    from mobileclip.engines import read_status

    if status:
        say(read_status(output))
        return
    engine = sharing.build()
    if not shards:
        raise ValueError("no SHARDS were given; expected reinforced tar files, such as 'DataCompDR-12M/{000..127}.tar'")
    for pattern in shards:
        require_shards(pattern, "a reinforced shard")
    spec = ScoreSpec(shards=shards, output=output, vectors=keep_vectors)
    report = score_shards(spec, engine=engine)
    say(f"{report.num_samples:,} samples have scores in {output}")
    for reason, count in sorted(report.skipped.items()):
        say(f"  {count:,} left out: {reason}")
    if report.failed:
        say(f"{len(report.failed):,} shards could not be read to their end, the first: {report.failed[0][1]}")
    conclude(left_out=report.failed, done=report.num_samples)


def filter_(
    scores: Annotated[Positional[Path], arg(metavar="SCORES")],
    /,
    *,
    output: Annotated[tuple[Path, ...], arg(metavar="KEPT.npy|PAGE.html")],
    share: Annotated[float | None, arg(metavar="FRACTION")] = None,
    threshold: Annotated[float | None, arg(metavar="SIMILARITY")] = None,
    caption: Literal["real", "synthetic", "best"] = "real",
    teacher: str = "mean",
    overwrite: bool = False,
) -> None:
    """List the samples whose captions fit their images best, as DataComp and DFN filter.

    mobileclip data filter scores -o kept.npy --share 0.3 -o kept.html

    The list is sorted pairs of 64-bit numbers, the form in which DataComp publishes its subsets. Nothing is rewritten:
    trainings take it with --data.uids kept.npy --data.sampling endless.

    Args:
        scores: folder that `mobileclip data score` wrote.
        output: the list of uids; and, where one is named too, an HTML page with the spread of similarities, and
            samples of both sides and both ends.
        share: fraction of the samples to keep, the most similar ones.
        threshold: cosine similarity from which on samples are kept, in place of a share.
        caption: whose similarity decides: real, synthetic for the mean over synthetic captions, or best of these.
        teacher: the one that is asked, by its name; mean asks all.
        overwrite: replace files that are there.
    """
    from mobileclip.datasets.curation import FilterSpec, filter_samples
    from mobileclip.datasets.curation.filter_page import write_filter_page

    kept, page = outputs(output, (".npy",), (".html",), overwrite=overwrite)
    spec = FilterSpec(
        scores=scores,
        output=require_kept(kept),
        share=share,
        threshold=threshold,
        caption=caption,
        teacher=teacher,
    )
    require_folder(str(scores), "a folder of scores")
    report = filter_samples(spec)
    if page is not None:
        write_filter_page(page, spec, report)
    say(report)
    say(f"wrote {' and '.join(map(str, output))}")


def distinct(
    scores: Annotated[Positional[Path], arg(metavar="SCORES")],
    /,
    *,
    output: Annotated[tuple[Path, ...], arg(metavar="KEPT.npy|PAIRS.tsv")],
    threshold: Annotated[float, arg(metavar="SIMILARITY")] = 0.95,
    against: Annotated[tuple[Path, ...], arg(metavar="SCORES")] = (),
    leak_threshold: float = 0.95,
    keep: Path | None = None,
    num_clusters: int | None = None,
    device: Device = "auto",
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """List samples without near duplicates, and without pictures of test sets.

    mobileclip data distinct scores -o kept.npy --against test_scores -o left_out.tsv

    Images are compared by the teachers' stored embeddings, within clusters. Of samples that show the same, the one
    whose caption fits best is kept. The list has the form of `mobileclip data filter`.

    Args:
        scores: folder that `mobileclip data score --keep-vectors` wrote.
        output: the list of uids that are kept; and, where one is named too, a file with a line for every sample that is
            left out, and what it is like.
        threshold: cosine similarity from which on two images show the same.
        against: folders of scores of test sets, reinforced by the same teachers.
        leak_threshold: cosine similarity with a test picture from which on a sample is left out.
        keep: a list of uids, such as `mobileclip data filter` wrote; other samples are neither kept nor compared.
        num_clusters: clusters that are searched for near duplicates; a thousandth of the samples by default.
        device: where to compute: cuda, cuda:1, mps or cpu; auto takes the first of these that is there.
        seed: random seed of the clustering.
        overwrite: replace files that are there.
    """
    from mobileclip.datasets.curation import DuplicatesSpec, find_duplicates
    from mobileclip.hardware.devices import pick_device

    kept, pairs = outputs(output, (".npy",), (), overwrite=overwrite)
    spec = DuplicatesSpec(
        scores=scores,
        output=require_kept(kept),
        keep=keep,
        pairs=pairs,
        threshold=threshold,
        against=against,
        leak_threshold=leak_threshold,
        num_clusters=num_clusters,
        device=str(pick_device(device)),
        seed=seed,
    )
    for folder in (scores, *against):
        require_folder(str(folder), "a folder of scores")
    if keep is not None:
        require_file(str(keep), "a list of uids")
    say(find_duplicates(spec))
    say(f"wrote {' and '.join(map(str, output))}")


def require_kept(path: Path | None) -> Path:
    """Return the list of uids that is to be written, or say that none is named."""
    if path is None:
        raise ValueError("--output names no list of uids: one that must end with .npy")
    return path


def tune_scale(
    shards: Annotated[Positional[tuple[str, ...]], arg(metavar="SHARDS")],
    /,
    *,
    caption: Literal["real", "synthetic"] = "real",
    num_pairs: int = 8192,
    batch_size: int = 1024,
    seed: int = 0,
) -> None:
    """Find the logit scale of each teacher at which it tells held-out pairs apart best.

    mobileclip data tune-scale 'held-out/{000..007}.tar'

    No teacher runs: the embeddings that they stored are read. Printed are the contrastive loss of the pairs at every
    other scale that was tried, the best scale with its 95 % interval, and the flag that trains with it. MobileCLIP2
    tunes the scales of its teachers, to 70 and 60; what fits held-out pairs is a place to begin.

    Args:
        shards: reinforced tar files that are not trained on: paths, URLs or brace patterns.
        caption: real for the first real caption, synthetic for a synthetic one.
        num_pairs: pairs, at most: the first of the shards.
        batch_size: pairs that are compared with one another.
        seed: random seed of the stored view drawn for each image, and of the interval.
    """
    from rich.table import Column, Table
    from rich.text import Text

    from mobileclip.datasets.curation.logit_scales import SCALES, LogitScaleSpec, tune_scales

    if not shards:
        raise ValueError("no SHARDS were given; expected reinforced tar files that are not trained on")
    for pattern in shards:
        require_shards(pattern, "a reinforced shard")
    spec = LogitScaleSpec(shards=shards, caption=caption, num_pairs=num_pairs, batch_size=batch_size, seed=seed)
    report = tune_scales(spec)
    table = Table("logit scale", *(Column(Text(teacher.name)) for teacher in report.teachers))
    for place, scale in list(enumerate(SCALES))[::_SHOWN_STEP]:
        table.add_row(f"{scale:.4g}", *(f"{teacher.losses[place]:.4f}" for teacher in report.teachers))
    print_table(table)
    say(f"{report.num_pairs:,} pairs, {report.batch_size:,} at a time; {report.skipped}")
    for teacher in report.teachers:
        say(teacher)
    flag = " ".join(f"{teacher.best:.4g}" for teacher in report.teachers)
    say(f"train with --training.loss.teacher-logit-scales {flag}")
