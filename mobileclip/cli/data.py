"""`mobileclip data ...`: commands that inspect, join, count, check and filter data sets."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes, Positional, arg

from mobileclip.cli.checks import require_at_least, require_file, require_folder
from mobileclip.cli.models import Device
from mobileclip.cli.outputs import require_page
from mobileclip.cli.sharing import Sharing
from mobileclip.datasets.joining.spec import JoinSpec
from mobileclip.datasets.sources import RowOptions
from mobileclip.storage import check_address, is_remote, local_path, require_output
from mobileclip.terminal import say
from mobileclip.terminal.status import conclude


def join(
    *,
    spec: Annotated[
        JoinSpec,
        arg(name=""),
    ],
    sharing: Annotated[Sharing, arg(name="")] = Sharing(),  # noqa: B008  frozen
    status: bool = False,
) -> None:
    """Put the images into reinforced shards, which are published without them.

    mobileclip data join 'DataCompDR-12M/{00000000..00001023}.tar' 'images/{00000..01289}.tar' -o joined/ --by uid

    The two sides may be sharded differently and in another order. Where every image is gets noted in an index on disk;
    then one joined shard is written per reinforced shard, whole or not at all. Run the same command again after an
    interruption: it finishes what is missing.

    Images are compared with what the samples state of them: the SHA-256 of the download, its size, the crops.

    OUTPUT gets the shards, join.json with the report, and missing.txt with what was left out: key, shard and reason.
    join/ has Parquet files with what became of each sample (extra parquet).
    The exit status is 1 if fewer samples were joined than --min-share; the join stops after the first shard if no
    sample of it is joined. A shard that fails is set aside, after several tries where
    another may help, and listed in set_aside.jsonl; run/ has the status and a line for every shard.

    Args:
        spec: what is joined, and how.
        sharing: how the work is shared.
        status: print what the join in the output does now, how far it is and how long the rest takes, and stop.
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
        # Others may work in it: what is asked is whether files can be written there.
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

    Its columns are url, caption, uid and sha256, as far as the data state them: shards by url.txt, txt and json, tables
    by their columns. The uid joins the pictures with reinforced shards, and the sha256 tells whether they are the same.

    A shard that breaks off, and samples without a URL, are counted; the others are in the table.

    Args:
        data: tar shards, tables (.parquet, .csv, .tsv), a .jsonl file, or a folder of such: paths, URLs or
            patterns.
        output: the table, whose name ends with .parquet, .csv or .jsonl.
        rows: which columns of tables hold what.
        sharing: how the work is shared.
        overwrite: replace a table that is there.
    """
    from mobileclip.datasets.joining.urls import SUFFIXES, write_urls

    engine = sharing.build()
    if not data:
        raise ValueError("no DATA were given; expected shards or tables, such as 'DataComp-12M/{000..127}.tar'")
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
    """Print what a sample holds, and write a page of its augmentations.

    mobileclip data inspect joined/00000000.tar --key 000000000012 --output sample.html

    Printed are captions, augmentations in words, the shapes and norms of the teachers' embeddings, and how similar each
    teacher finds image and captions, with the teachers' dims from the reinforcement.json beside the shard. The page
    shows the image with its crops, every stored augmentation replayed, and the captions.

    Args:
        shard: a tar file of any layout, path or URL; plain image-text shards and shards without images do too.
        key: the sample to show; the first one by default.
        output: an HTML page to write, one file with the pictures in it.
        overwrite: replace a page that is there.
    """
    from mobileclip.datasets.viewing.inspection import inspect_sample, print_inspection, write_inspection

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
    """Count the samples of shards and keep the numbers in a sizes.json beside them.

    mobileclip data count 'DataCompDR-1B/{00..64}/{00000000..00000999}.tar' -j 16

    Training with sampling `epoch` reads it. On a local disk only headers are read, through a network whole shards. What
    is written already is not counted again, so a run that was stopped goes on.

    A shard that breaks off or cannot be read is named and left out.

    Args:
        shards: tar files: paths, URLs or brace patterns.
        sharing: how the work is shared.
        overwrite: count all of them anew, where shards have changed.
    """
    from mobileclip.datasets.viewing.counting import count_shards

    engine = sharing.build()
    if not shards:
        raise ValueError("no SHARDS were given; expected tar files, such as 'mine/{000..127}.tar'")
    for pattern in shards:
        require_shards(pattern, "a tar shard")
    counted = count_shards(shards, again=overwrite, engine=engine)
    say(f"{counted.num_samples:,} samples in {counted.num_shards:,} shards")
    if counted.unreadable:
        say(f"{len(counted.unreadable):,} shards could not be counted, the first: {counted.unreadable[0][1]}")
    conclude(left_out=counted.unreadable, done=counted.num_shards)


def check(
    directory: Annotated[Positional[str], arg(metavar="DIRECTORY")],
    /,
    *,
    samples: Annotated[int, arg(metavar="N")] = 32,
    num_shards: int | None = None,
    num_rows: int | None = None,
    sharing: Annotated[Sharing, arg(name="")] = Sharing(),  # noqa: B008  frozen
    device: Device = "auto",
    seed: int = 0,
) -> None:
    """Check reinforced shards: that all can be read, agree with the card, and that some of it is true.

    mobileclip data check DataCompDR-12M --samples 100

    Of every sample: members, shapes, norms, numbers of augmentations and captions, keys that come twice, the manifest
    and the card. Of N samples drawn at random: the image is the one that was reinforced, the stored augmentations are
    those that the seed gives, and the teachers, loaded as the card describes them, give the stored embeddings.

    mobileclip data check DataCompDR-1B --num-shards 100 --num-rows 500 -j 16

    Of a large data set, some shards, and some samples of each, drawn at random. That all files are there, of the right
    size, is checked in any case.

    The exit status is 1 if anything is wrong.

    Args:
        directory: reinforced shards with their reinforcement.json and manifest.jsonl; a folder or a URL.
        samples: how many samples to recompute; 0 loads no teacher.
        num_shards: how many shards to read; all of them by default.
        num_rows: how many samples of each shard to check; all of them by default.
        sharing: how the work is shared.
        device: where to recompute: cuda, cuda:1, mps or cpu; auto takes the first of these that is there.
        seed: random seed of the samples that are drawn.
    """
    from mobileclip.hardware.devices import pick_device
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


def require_shards(pattern: str, what: str) -> None:
    """Raise if none of the shards exists; missing ones among others are reported."""
    from mobileclip.data.shards.files import expand_shards, runs_program

    shards = expand_shards(pattern)
    if all(not runs_program(one) and not is_remote(one) and not local_path(one).exists() for one in shards):
        require_file(shards[0], what)
    for shard in shards:
        check_address(shard)


def _require_output_directory(output: str) -> None:
    """Refuse a place that cannot be a directory; one that is there may hold what an interrupted join left."""
    if is_remote(output):
        return
    from mobileclip.datasets.joining.report import LEDGER

    folder = local_path(output)
    require_output(folder / "join.json", overwrite=True)
    if folder.is_dir() and not (folder / LEDGER).exists() and any(folder.glob("*.tar")):
        raise FileExistsError(
            f"{output} holds shards that no join wrote, and they might be replaced; choose another folder"
        )
