"""`mobileclip data ...`: commands that inspect, join, count, check, score and filter data sets."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import OmitArgPrefixes, Positional, arg

from mobileclip.cli.arguments import (
    Device,
    Sharing,
    outputs,
    require_at_least,
    require_file,
    require_folder,
    require_page,
)
from mobileclip.datasets.joining.spec import JoinSpec
from mobileclip.datasets.sources import RowOptions
from mobileclip.storage import check_address, is_remote, local_path, require_output
from mobileclip.terminal import print_table, say
from mobileclip.terminal.common import Rare
from mobileclip.terminal.status import conclude

# Show every second scale, so that consecutive scales differ by 26 %.
_SHOWN_STEP = 2


def join(
    *,
    spec: Annotated[
        JoinSpec,
        arg(name=""),
    ],
    sharing: Annotated[Sharing, arg(name="")] = Sharing(),  # noqa: B008  frozen
    status: bool = False,
) -> None:
    """Join published reinforced shards with their images.

    mobileclip data join 'DataCompDR-12M/{00000000..00001023}.tar' 'images/{00000..01289}.tar' -o joined/ --by uid

    The reinforced shards and the images may be sharded and ordered differently. The command first writes an index of
    all images to disk, and then writes each joined shard (one per reinforced shard) atomically. The same command
    resumes after an interruption.

    The command compares each image with the sample's metadata: SHA-256 of the download, size and crops.

    OUTPUT contains the shards, the report join.json, and join/, a Parquet table (extra parquet) with a row per sample:
    its key, the shard of its image, and the reason if the command skipped it. The exit status is 1 if the share of
    joined samples is below --min-share; the join stops if the first shard has no match. set_aside.jsonl lists shards
    that failed after all tries; run/ has the status and a line for every shard.

    Args:
        spec: sources and options of the join.
        sharing: engine, workers and retries.
        status: print the state, progress and remaining time of the join that writes to OUTPUT, and exit.
    """
    from mobileclip.datasets.joining.join import join_images
    from mobileclip.engines import read_status

    if status:
        say(read_status(spec.output))
        return
    engine = sharing.build()
    require_shards(spec.reinforced, "reinforced shards")
    require_shards(spec.images, "tar files with the images")
    if spec.captions is not None and spec.captions.endswith(".tar"):
        require_shards(spec.captions, "shards with the captions")
    elif spec.captions is not None:
        require_folder(spec.captions, "a folder of shards with the captions")
    _require_output_directory(spec.output)
    if spec.index is not None:
        # The folder may hold other files: only check that files can be written there.
        require_output(local_path(spec.index) / "places", overwrite=True)
    report = join_images(spec, engine=engine)
    say(report)
    conclude(left_out=not report.complete, done=report.is_enough)


def urls(
    data: Annotated[Positional[tuple[str, ...]], arg(metavar="DATA")],
    /,
    *,
    output: Annotated[str, arg(metavar="TABLE")],
    rows: OmitArgPrefixes[RowOptions] = RowOptions(),  # noqa: B008  frozen
    sharing: Annotated[Sharing, arg(name="")] = Sharing(),  # noqa: B008  frozen
    overwrite: bool = False,
) -> None:
    """Write the table of URLs that img2dataset downloads.

    mobileclip data urls 'DataComp-12M/{00000000..00001023}.tar' -o urls.parquet -j 8

    The table has the columns url, caption, uid and sha256, if the data has these values. The command reads the values
    from url.txt, txt and json in shards, and from columns in tables. mobileclip data join matches samples by uid and
    verifies images by sha256.

    The command counts truncated shards, and samples without a URL; it writes all other samples.

    Args:
        data: tar shards, tables (.parquet, .csv, .tsv), .jsonl files, or folders of these: paths, URLs or patterns.
        output: the table, *.parquet or *.csv.
        rows: column names of tables.
        sharing: engine, workers and retries.
        overwrite: replace an existing table.
    """
    from mobileclip.datasets.joining.urls import SUFFIXES, write_urls

    engine = sharing.build()
    if not data:
        raise ValueError("no DATA given; expected shards or tables, such as 'DataComp-12M/{000..127}.tar'")
    if not is_remote(output):
        require_output(output, overwrite=overwrite, suffixes=SUFFIXES)
    report = write_urls(
        data if len(data) > 1 else data[0],
        output,
        rows=rows,
        engine=engine,
    )
    say(report)
    conclude(left_out=report.skips.counts, done=report.num_rows)


def inspect(
    shard: Annotated[Positional[str], arg(metavar="SHARD")],
    /,
    *,
    key: str | None = None,
    output: Annotated[Path | None, arg(metavar="PAGE.html")] = None,
    overwrite: bool = False,
) -> None:
    """Print a sample's content, and write a page of its augmentations.

    mobileclip data inspect joined/00000000.tar --key 000000000012 --output sample.html

    The command prints captions, augmentations in words, shapes and norms of the teachers' embeddings, and each
    teacher's similarities between image and captions. The teachers' embedding sizes come from reinforcement.json in the
    shard's folder. The page shows the image with its crops, the result of every stored augmentation, and the captions.

    Args:
        shard: path or URL of a tar shard: reinforced or plain image-text, with or without images.
        key: the sample to show; by default the first sample.
        output: an HTML page, including the images.
        overwrite: replace an existing page.
    """
    from mobileclip.datasets.inspection import inspect_sample, print_inspection, write_inspection

    require_page(output, overwrite=overwrite)
    require_file(shard, "a tar shard")
    inspection = inspect_sample(shard, key)
    if output is not None:
        write_inspection(output, inspection)
    print_inspection(inspection)
    if output is not None:
        say(f"wrote {output}")


def count(
    shards: Annotated[Positional[tuple[str, ...]], arg(metavar="SHARDS")],
    /,
    *,
    sharing: Annotated[Sharing, arg(name="")] = Sharing(),  # noqa: B008  frozen
    overwrite: bool = False,
) -> None:
    """Count the samples of shards, and write the numbers to sizes.json in the shards' folder.

    mobileclip data count 'DataCompDR-1B/{00..64}/{00000000..00000999}.tar' -j 16

    Training with sampling `epoch` reads sizes.json. The command reads only headers on a local disk, but whole shards
    over a network. After an interruption, the same command resumes.

    The command skips truncated and unreadable shards, and prints their number.

    Args:
        shards: tar files: paths, URLs or brace patterns.
        sharing: engine, workers and retries.
        overwrite: count all shards again, after shards have changed.
    """
    from mobileclip.datasets.counting import count_shards

    engine = sharing.build()
    require_shards(shards, "a tar shard")
    counted = count_shards(shards, again=overwrite, engine=engine)
    say(f"{counted.num_samples:,} samples in {counted.num_shards:,} shards")
    if counted.unreadable:
        say(f"{len(counted.unreadable):,} shards could not be counted; the first: {counted.unreadable[0][1]}")
    conclude(left_out=counted.unreadable, done=counted.num_shards)


def check(
    directory: Annotated[Positional[str], arg(metavar="DIRECTORY")],
    /,
    *,
    samples: Annotated[int, arg(metavar="N")] = 32,
    num_shards: int | None = None,
    num_rows: Rare[int | None] = None,
    sharing: Annotated[Sharing, arg(name="")] = Sharing(),  # noqa: B008  frozen
    device: Device = "auto",
    seed: Rare[int] = 0,
) -> None:
    """Check that reinforced shards are readable, consistent with the card, and equal to recomputed samples.

    mobileclip data check DataCompDR-12M --samples 100

    For every sample, the command checks members, shapes, norms, numbers of augmentations and captions, duplicate keys,
    the manifest and the card. For N random samples, the command also checks that the image has the stored digest,
    that the seed reproduces the stored augmentations, and that the card's teachers reproduce the stored embeddings.

    mobileclip data check DataCompDR-1B --num-shards 100 --num-rows 500 -j 16

    For a large data set, --num-shards and --num-rows limit the check to random shards and random samples of each shard.
    The command always checks that all files exist with the right size.

    The exit status is 1 if a check fails.

    Args:
        directory: reinforced shards with their reinforcement.json and manifest.jsonl; a folder or a URL.
        samples: number of samples to recompute; 0 loads no teacher.
        num_shards: number of shards to read; by default all.
        num_rows: number of samples to check per shard; by default all.
        sharing: engine, workers and retries.
        device: cuda, cuda:1, mps or cpu; auto takes the first available device.
        seed: random seed for the choice of samples.
    """
    from mobileclip.hardware import pick_device
    from mobileclip.reinforce import verify

    engine = sharing.build()
    require_at_least(0, samples=samples)
    require_at_least(1, num_shards=num_shards, num_rows=num_rows)
    require_folder(directory, "a folder of reinforced shards")
    place = str(pick_device(device))
    found = verify(
        directory,
        num_samples=samples,
        num_shards=num_shards,
        num_rows=num_rows,
        device=place,
        seed=seed,
        engine=engine,
    )
    say(found)
    if not found.is_good:
        sys.exit(1)


def require_shards(patterns: str | Sequence[str], what: str) -> None:
    """Raise if no shard of a pattern exists, or if a shard has an invalid URL."""
    from mobileclip.data.shards.files import expand_shards, runs_program

    if not patterns:
        raise ValueError(f"no SHARDS given; expected {what}, such as 'mine/{{000..127}}.tar'")
    for pattern in (patterns,) if isinstance(patterns, str) else patterns:
        shards = expand_shards(pattern)
        if all(not runs_program(one) and not is_remote(one) and not local_path(one).exists() for one in shards):
            require_file(shards[0], what)
        for shard in shards:
            check_address(shard)


def _require_output_directory(output: str) -> None:
    """Raise if the path cannot be a directory, or has tar files that `mobileclip data join` did not write."""
    if is_remote(output):
        return
    from mobileclip.datasets.joining.report import LEDGER

    folder = local_path(output)
    require_output(folder / "join.json", overwrite=True)
    if folder.is_dir() and not (folder / LEDGER).exists() and any(folder.glob("*.tar")):
        raise FileExistsError(f"{output} has shards that `mobileclip data join` did not write; choose another folder")


def score(
    shards: Annotated[Positional[tuple[str, ...]], arg(metavar="SHARDS")],
    /,
    *,
    output: Annotated[Path, arg(metavar="FOLDER")],
    keep_vectors: bool = False,
    sharing: Annotated[Sharing, arg(name="")] = Sharing(),  # noqa: B008  frozen
    status: bool = False,
) -> None:
    """Score every sample of reinforced shards: the similarity of captions and image, by each teacher.

    mobileclip data score 'DataCompDR-12M/{00000000..00001023}.tar' -o scores -j 16 --keep-vectors

    The command reads stored teacher embeddings once; shards need no images. For each sample, FOLDER stores the uid, the
    key, and three cosine similarities per teacher: for the real caption, for the synthetic captions (mean), and for the
    best synthetic caption. After an interruption, the same command resumes and skips shards that already have scores.

    The command reports truncated shards; the next run tries truncated shards again.

    Args:
        shards: reinforced tar files: paths, URLs or brace patterns.
        output: folder of the scores.
        keep_vectors: also store an embedding per image, for `mobileclip data dedup`.
        sharing: engine, workers and retries.
        status: print the state, progress and remaining time of the run that writes to FOLDER, and exit.
    """
    from mobileclip.datasets.curation.scores import ScoreSpec, score_shards
    from mobileclip.engines import read_status

    if status:
        say(read_status(output))
        return
    engine = sharing.build()
    require_shards(shards, "a reinforced shard")
    spec = ScoreSpec(shards=shards, output=output, vectors=keep_vectors)
    report = score_shards(spec, engine=engine)
    say(f"{report.num_samples:,} samples have scores in {output}")
    for reason, count in sorted(report.skipped.items()):
        say(f"  {count:,} left out: {reason}")
    if report.failed:
        say(f"{len(report.failed):,} shards could not be read completely; the first: {report.failed[0][1]}")
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
    """Select samples by the similarity of caption and image, like the filters of DataComp and DFN.

    mobileclip data filter scores -o kept.npy --share 0.3 -o kept.html

    The list stores the uids as sorted pairs of 64-bit numbers, DataComp's format for subsets. Shards stay unchanged;
    train with --data.uids kept.npy --data.sampling endless.

    Args:
        scores: folder that `mobileclip data score` wrote.
        output: the list of uids, and optionally an HTML page with the distribution of similarities and example samples.
        share: fraction of the samples to keep, those with the highest similarity.
        threshold: minimum cosine similarity of kept samples, instead of --share.
        caption: the caption to compare: real, synthetic (mean over synthetic captions), or best (best synthetic
            caption).
        teacher: name of the teacher that scores the samples; mean averages all teachers.
        overwrite: replace existing files.
    """
    from mobileclip.datasets.curation.filtering import FilterSpec, filter_samples, write_filter_page

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


def dedup(
    scores: Annotated[Positional[Path], arg(metavar="SCORES")],
    /,
    *,
    output: Annotated[tuple[Path, ...], arg(metavar="KEPT.npy|PAIRS.tsv")],
    threshold: Annotated[float, arg(metavar="SIMILARITY")] = 0.95,
    exclude_test_scores: Annotated[tuple[Path, ...], arg(metavar="SCORES")] = (),
    leak_threshold: Rare[float] = 0.95,
    keep: Path | None = None,
    num_clusters: Rare[int | None] = None,
    device: Device = "auto",
    seed: Rare[int] = 0,
    overwrite: bool = False,
) -> None:
    """List samples after removing near duplicates and images of test sets.

    mobileclip data dedup scores -o kept.npy --exclude-test-scores test_scores -o left_out.tsv

    The command compares the teachers' stored image embeddings within clusters. Among near duplicates, the command
    keeps the sample with the best matching caption. The list has the format of `mobileclip data filter`.

    Args:
        scores: folder that `mobileclip data score --keep-vectors` wrote.
        output: the list of kept uids, and optionally a file with one line for each removed sample and its near
            duplicate.
        threshold: minimum cosine similarity of near duplicates.
        exclude_test_scores: folders of scores of test sets, reinforced by the same teachers.
        leak_threshold: remove samples with at least this cosine similarity to a test image.
        keep: a list of uids, such as the output of `mobileclip data filter`; the command ignores all other samples.
        num_clusters: number of clusters; by default one per thousand samples, at most 50,000.
        device: cuda, cuda:1, mps or cpu; auto takes the first available device.
        seed: random seed of the clustering.
        overwrite: replace existing files.
    """
    from mobileclip.datasets.curation.duplicates import DuplicatesSpec, find_duplicates
    from mobileclip.hardware import pick_device

    kept, pairs = outputs(output, (".npy",), (), overwrite=overwrite)
    spec = DuplicatesSpec(
        scores=scores,
        output=require_kept(kept),
        keep=keep,
        pairs=pairs,
        threshold=threshold,
        exclude_test_scores=exclude_test_scores,
        leak_threshold=leak_threshold,
        num_clusters=num_clusters,
        device=str(pick_device(device)),
        seed=seed,
    )
    for folder in (scores, *exclude_test_scores):
        require_folder(str(folder), "a folder of scores")
    if keep is not None:
        require_file(str(keep), "a list of uids")
    say(find_duplicates(spec))
    say(f"wrote {' and '.join(map(str, output))}")


def require_kept(path: Path | None) -> Path:
    """Return the output path of the uid list; raise if no output ends in .npy."""
    if path is None:
        raise ValueError("--output has no path for the list of uids; add a path that ends with .npy, such as kept.npy")
    return path


def tune_scale(
    shards: Annotated[Positional[tuple[str, ...]], arg(metavar="SHARDS")],
    /,
    *,
    caption: Literal["real", "synthetic"] = "real",
    num_pairs: int = 8192,
    batch_size: Rare[int] = 1024,
    seed: Rare[int] = 0,
) -> None:
    """Find each teacher's logit scale with the lowest contrastive loss on held-out pairs.

    mobileclip data tune-scale 'held-out/{000..007}.tar'

    The command reads stored teacher embeddings. The command prints the loss at every second scale, the best scale with
    its 95 % interval, and the flag for training. MobileCLIP2 tunes the logit scales of its two teachers to 70 and 60;
    the best scale for held-out pairs is only a starting point for tuning.

    Args:
        shards: held-out reinforced tar files: paths, URLs or brace patterns.
        caption: real for the first real caption, synthetic for a synthetic caption.
        num_pairs: maximum number of pairs to read, from the start of the shards.
        batch_size: number of pairs per similarity matrix.
        seed: random seed for the choice of each image's stored augmentation, and for the interval.
    """
    from rich.table import Column, Table
    from rich.text import Text

    from mobileclip.datasets.curation.logit_scales import SCALES, LogitScaleSpec, tune_scales

    require_shards(shards, "a reinforced shard")
    spec = LogitScaleSpec(shards=shards, caption=caption, num_pairs=num_pairs, batch_size=batch_size, seed=seed)
    report = tune_scales(spec)
    table = Table("logit scale", *(Column(Text(teacher.name)) for teacher in report.teachers))
    for place, scale in list(enumerate(SCALES))[::_SHOWN_STEP]:
        table.add_row(f"{scale:.4g}", *(f"{teacher.losses[place]:.4f}" for teacher in report.teachers))
    print_table(table)
    say(f"{report.num_pairs:,} pairs, {report.batch_size:,} per batch; {report.skipped}")
    for teacher in report.teachers:
        say(teacher)
    flag = " ".join(f"{teacher.best:.4g}" for teacher in report.teachers)
    say(f"train with --training.loss.teacher-logit-scales {flag}")
