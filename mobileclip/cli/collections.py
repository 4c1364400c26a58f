"""`mobileclip search | dedup | serve | tag | concept`: commands that search and tag an index of images."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from mobileclip.cli.arguments import (
    Device,
    ModelFlags,
    TextModel,
    Workers,
    outputs,
    require_at_least,
    require_file,
    require_page,
    say_first,
)
from mobileclip.cli.indexing import IndexName, index_path, open_index, update_index
from mobileclip.processes import default_workers
from mobileclip.storage import printable, require_output
from mobileclip.terminal import say, say_json
from mobileclip.terminal.common import Rare
from mobileclip.terminal.images import can_show_images, show_images
from mobileclip.terminal.status import conclude

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mobileclip.collections import Concept, Match, Matches

# Width of a thumbnail, in columns of the terminal.
_THUMBNAIL = 32
_LONGEST_NAME = 4096
Name = Annotated[Positional[str], arg(metavar="NAME")]
Examples = Annotated[tuple[str, ...], arg(metavar="IMAGE")]


def search(
    query: Annotated[Positional[str | None], arg(metavar="[TEXT]")] = None,
    /,
    *,
    index_name: IndexName = None,
    image: Annotated[tuple[str, ...], arg(metavar="IMAGE")] = (),
    without: Annotated[tuple[str, ...], arg(name="not", metavar="TEXT")] = (),
    where: Annotated[tuple[str, ...], arg(metavar="CONDITION")] = (),
    k: Annotated[int, arg(metavar="N")] = 10,
    all_frames: Rare[bool] = False,
    thumbnails: bool = False,
    explain: bool = False,
    output: Annotated[Path | None, arg(metavar="PAGE.html")] = None,
    overwrite: bool = False,
    device: Device = "auto",
    trust: Rare[bool] = False,
    text_model: TextModel = None,
    as_json: Annotated[bool, arg(name="json")] = False,
) -> None:
    """Search images by text or example image, most similar first.

    mobileclip search "a red bicycle in snow"

    mobileclip search --not people --not dogs "a cat" --where 'width>1000' --where 'taken>=2024' -o found.html

    Without TEXT and --image, the command reads one query per line from standard input. Scores are cosine similarities;
    compare only scores of one query.

    Args:
        query: a search text; @"my bike" in the text refers to a concept, see mobileclip concept.
        index_name: an index folder, or an image folder with an index in the user's cache; by default the newest index
            in the cache.
        image: an example image, with or without a text; repeatable.
        without: a text that results should not match; repeatable.
        where: a column, a comparison and a value; repeatable; results meet all conditions. Columns are path,
            part, size, width, height, camera, taken, latitude, longitude, time and sha256; comparisons are =, !=, <,
            <=, >, >= and ~ (contains). After mobileclip tag, tag=dog and tag:dog>=0.99 are also conditions.
        k: maximum number of results.
        all_frames: list several frames of a video; by default, only the most similar frame.
        thumbnails: show images in the terminal.
        explain: overlay the page's images with each location's share of the score (MCi image towers only). This is
            attribution, not segmentation.
        output: an HTML page of the results, including the images.
        overwrite: replace an existing page.
        device: cuda, cuda:1, mps or cpu; auto takes the first available device.
        trust: open an export from another machine; see mobileclip classify.
        text_model: a text tower of the same embedding space, instead of the model's text tower; see mobileclip
            classify. The command does not encode images again.
        as_json: print a JSON list of objects with path, score and metadata.
    """
    from mobileclip.collections import is_condition, parse_condition

    require_at_least(1, k=k)
    conditions = [parse_condition(text) for text in where]
    if query is not None and where and is_condition(query):
        raise ValueError(f"{printable(query)} is a condition in place of TEXT; write --where before each condition")
    if query is not None and image and Path(query).is_file():
        raise ValueError(f"{printable(query)} is a file in place of TEXT; write --image before each image")
    for path in image:
        require_file(path, "an image file")
    require_page(output, overwrite=overwrite)
    _require_drawn(output, is_one_query=query is not None or bool(image), explain=explain)
    if thumbnails and (as_json or not can_show_images()):
        raise ValueError("--thumbnails needs a terminal with colours, and no --json; --output PAGE.html writes a file")
    collection = open_index(index_name, device, trust=trust, text_model=text_model)
    find = partial(collection.search, image=image, without=without, where=conditions, k=k, all_frames=all_frames)
    show = partial(_show, thumbnails=thumbnails, as_json=as_json)
    if query is not None or image:
        texts = () if query is None else (query,)
        matches = find(texts)
        show(matches)
        if output is not None:
            asked = partial(collection.explain, text=texts, image=image, without=without)
            _draw(output, " and ".join((*texts, *image)), matches, _maps(asked, matches) if explain else None)
        return
    if sys.stdin.isatty():
        say(f"{len(collection):,} images in {collection.path}; type one query per line, Ctrl-D to end", error=True)
    for line in filter(str.strip, sys.stdin):
        show(find((line.strip(),)))


def dedup(
    inputs: Annotated[Positional[tuple[str, ...]], arg(metavar="[IMAGE|FOLDER|SHARDS...]")] = (),
    /,
    *,
    index_name: IndexName = None,
    model: Annotated[ModelFlags, arg(name="")] = ModelFlags(),  # noqa: B008  frozen
    num_workers: Annotated[int | None, Workers] = None,
    threshold: Annotated[float, arg(metavar="SIMILARITY")] = 0.95,
    output: Annotated[tuple[Path, ...], arg(metavar="LIST.jsonl|PAGE.html")] = (),
    overwrite: bool = False,
) -> None:
    """List groups of near-duplicate images, and the best copy of each group. The command deletes nothing.

    mobileclip dedup photos/ -o duplicates.html

    mobileclip dedup --index photos.index

    The command first creates or updates the index of the given images, like mobileclip index; without images, the
    command reads an existing index. The command skips frames of videos.

    The list has a line of JSON for every near-duplicate of a better image: keep, duplicate and similarity. The best
    copy has the most pixels; ties go to the sharpest image, then to the largest file. The list omits files that have
    changed since indexing. The command prints images of nearly one colour separately, because their similarity is
    meaningless.

    Args:
        inputs: image files, folders and tar shards; see mobileclip index.
        index_name: an index folder; see mobileclip index.
        model: model of a new index.
        num_workers: number of processes that decode images; see mobileclip index.
        threshold: minimum cosine similarity of near duplicates.
        output: the list, duplicates.jsonl by default, and optionally an HTML page of the groups.
        overwrite: replace existing files.
    """
    from mobileclip.collections import Collection, IndexOptions, require_threshold, write_list, write_page

    workers = default_workers(num_workers)
    require_at_least(1, num_workers=workers)
    require_threshold(threshold)
    if not inputs and model.model:
        raise ValueError("an existing index has its own model; omit --model, or give images for a new index")
    listed, page = outputs(output, (".jsonl",), (".html",), overwrite=overwrite)
    listed = listed or Path("duplicates.jsonl")
    require_output(listed, overwrite=overwrite)
    if inputs:
        options = IndexOptions(num_workers=workers)
        collection, report = update_index(inputs, index_name, model, options)
        num_left_out = report.num_left_out
    else:
        collection, num_left_out = Collection.open(index_path(index_name, inputs)), 0
    groups = collection.duplicates(threshold=threshold)
    listed.parent.mkdir(parents=True, exist_ok=True)
    write_list(listed, groups)
    if page is not None:
        page.parent.mkdir(parents=True, exist_ok=True)
        write_page(page, groups, threshold=threshold)
    if groups.num_left_out:
        say(f"left out {groups.num_left_out:,} images that are missing or have changed since indexing", error=True)
    if groups.blank:
        say(
            f"the list omits {len(groups.blank):,} images of one colour, since their similarity is meaningless:",
            error=True,
        )
        say_first([printable(match.name, limit=_LONGEST_NAME) for match in groups.blank])
    num_others = sum(len(group.others) for group in groups)
    say(f"{num_others:,} near-duplicates among {len(collection):,} images, in {len(groups):,} groups: {listed}")
    conclude(left_out=num_left_out + groups.num_left_out)


def serve(
    *,
    index_name: IndexName = None,
    port: Annotated[int, arg(metavar="PORT")] = 8000,
    device: Device = "auto",
    trust: Rare[bool] = False,
    text_model: TextModel = None,
) -> None:
    """Serve a web page on this machine, to search an index by text or image and to view near duplicates.

    mobileclip serve

    mobileclip serve --index photos.index --port 0

    The server accepts only connections from this machine. The server does not change images, and writes only concepts
    to the index. After mobileclip index, the next search uses the updated index.

    Args:
        index_name: an index folder, or an image folder with an index in the user's cache; by default the newest index
            in the cache.
        port: port on 127.0.0.1; 0 takes a free port.
        device: cuda, cuda:1, mps or cpu; auto takes the first available device.
        trust: open an export from another machine; see mobileclip classify.
        text_model: a text tower of the same embedding space, instead of the model's text tower; see mobileclip search.
    """
    from mobileclip.extras import needed

    with needed("mobileclip serve", "collections"):
        from mobileclip.collections.web.application import serve as serve_collection

    collection = open_index(index_name, device, trust=trust, text_model=text_model)
    serve_collection(collection, port=port)


def _show(matches: Matches, *, thumbnails: bool, as_json: bool) -> None:
    """Print the results of one query."""
    from mobileclip.collections import small_images

    if not matches.is_exact:
        say("the search is approximate and may miss a few images", error=True)
    # A line break in a name would look like another result.
    lines = [f"{match.score:6.3f}  {printable(match.name, limit=_LONGEST_NAME)}" for match in matches]
    if as_json:
        say_json([match.to_dict() for match in matches])
    elif not matches:
        say("nothing was found", error=True)
    elif thumbnails:
        show_images(zip(small_images(matches, _THUMBNAIL), lines, strict=True))
    else:
        say("\n".join(lines))


def _require_drawn(output: Path | None, *, is_one_query: bool, explain: bool) -> None:
    if output is not None and not is_one_query:
        raise ValueError("--output needs a single query; give a TEXT or an --image")
    if explain and output is None:
        raise ValueError("--explain draws maps on a page of results; add --output PAGE.html")


def _maps(
    explained: Callable[[Match], NDArray[np.float32]], matches: Sequence[Match]
) -> list[NDArray[np.float32] | None]:
    """Return a map per image, with each location's share of the score; None for an unreadable image."""
    from mobileclip.data.images.limits import ImageError

    def of(match: Match) -> NDArray[np.float32] | None:
        try:
            return explained(match)
        except ImageError:
            return None

    return [of(match) for match in matches]


def _draw(path: Path, title: str, matches: Sequence[Match], maps: Sequence[NDArray[np.float32] | None] | None) -> None:
    from mobileclip.collections import write_matches

    write_matches(path, title, matches, maps)
    say(f"wrote {path}", error=True)


def tag(
    *,
    index_name: IndexName = None,
    vocabulary: Annotated[Path | None, arg(metavar="WORDS.txt")] = None,
    template: Annotated[str | None, arg(metavar="TEMPLATE")] = None,
    share: Annotated[float | None, arg(metavar="SHARE")] = None,
    device: Device = "auto",
    trust: Rare[bool] = False,
) -> None:
    """Tag the images of an index with your own words, to filter searches.

    mobileclip tag --index photos.index --vocabulary words.txt --template "a photo of a {}"
    mobileclip search "a beach" --where 'tag=dog' --where 'tag:red bicycle>=0.99'

    An image's score for a word is its percentile rank within the index, from 0 to 1; unlike cosines, scores of
    different words are comparable. The 5 % of the images with the highest score get the word as a tag (--share), even
    if no image shows the word. The command reads no images. Images indexed later get tags too; mobileclip tag without
    --vocabulary calibrates the words again.

    Args:
        index_name: an index folder; see mobileclip search.
        vocabulary: a UTF-8 text file with a word or phrase per line; these words replace the earlier words.
        template: prompt template, such as "a photo of a {}"; by default the earlier template, or the word alone.
        share: for each word, fraction of the images that get this word as a tag; by default the earlier fraction, or
            0.05.
        device: cuda, cuda:1, mps or cpu; auto takes the first available device.
        trust: open an export from another machine; see mobileclip classify.
    """
    from mobileclip.inference.embedding import read_texts

    words = None if vocabulary is None else read_texts(vocabulary)
    collection = open_index(index_name, device, trust=trust)
    made = collection.tag(words, template=template, share=share)
    say(
        f"tagged {len(collection):,} images in {collection.path} with {len(made.words):,} words, each word for "
        f"{made.share:.3g} of the images: mobileclip search --where 'tag={printable(made.words[0])}' ..."
    )


def add(
    name: Name,
    /,
    *,
    index_name: IndexName = None,
    positive: Examples = (),
    negative: Examples = (),
    unlabel: Examples = (),
    text: Annotated[str | None, arg(metavar="TEXT")] = None,
    device: Device = "auto",
    trust: Rare[bool] = False,
) -> None:
    """Define a concept by a text and example images, for `@"my bike"` in a search.

    mobileclip concept add "my bike" --positive a.jpg --negative c.jpg --text "a bicycle" --index photos.index
    mobileclip search '@"my bike" in snow' --index photos.index

    A concept works without examples. Search uses examples only if the examples help: on average, the other examples
    must rank a held-out example better than the text does. The command uses stored embeddings of indexed images. The
    index stores a small copy of each example.

    Args:
        name: the concept's name, without quotation marks; an existing concept keeps its earlier examples.
        index_name: an index folder; see mobileclip search.
        positive: an image of the concept; repeatable.
        negative: a similar image without the concept; repeatable.
        unlabel: an example to remove, as printed by mobileclip concept show; repeatable; the file need not exist.
        text: description of the concept; by default the earlier description; for a new concept, the name.
        device: cuda, cuda:1, mps or cpu; auto takes the first available device.
        trust: open an export from another machine; see mobileclip classify.
    """
    for path in (*positive, *negative):
        require_file(path, "an image file")
    say(
        _told(
            open_index(index_name, device, trust=trust).concepts.add(
                name, positive=positive, negative=negative, unlabel=unlabel, text=text
            )
        )
    )


def list_concepts(*, index_name: IndexName = None, as_json: Annotated[bool, arg(name="json")] = False) -> None:
    """List the concepts of an index.

    mobileclip concept ls --index photos.index

    Args:
        index_name: an index folder; see mobileclip search.
        as_json: print a JSON list of objects.
    """
    from mobileclip.collections import Collection

    found = Collection.open(index_name).concepts.stored().values()
    if as_json:
        say_json([one.to_dict() for one in found])
    else:
        say("\n".join(map(_told, found)) or "the index has no concepts")


def show(name: Name, /, *, index_name: IndexName = None) -> None:
    """Print a concept's text and examples.

    mobileclip concept show "my bike" --index photos.index

    Args:
        name: name of the concept.
        index_name: an index folder; see mobileclip search.
    """
    from mobileclip.collections import Collection

    concept = Collection.open(index_name).concepts.require(name)
    lines = [
        f"  {'yes' if one.is_positive else 'no '}  {printable(one.name, limit=_LONGEST_NAME)}"
        for one in concept.examples
    ]
    say("\n".join([_told(concept), *lines]))


def remove(name: Name, /, *, index_name: IndexName = None) -> None:
    """Remove a concept from an index; images stay unchanged.

    mobileclip concept rm "my bike" --index photos.index

    Args:
        name: name of the concept.
        index_name: an index folder; see mobileclip search.
    """
    from mobileclip.collections import Collection

    Collection.open(index_name).concepts.remove(name)
    say(f"removed {printable(name)}")


def _told(concept: Concept) -> str:
    """Return a one-line description of a concept."""
    num_yes = sum(one.is_positive for one in concept.examples)
    num_no = len(concept.examples) - num_yes
    used = "search uses the examples" if concept.uses_examples else "search uses only the text"
    return f'@"{printable(concept.name)}"  {printable(concept.text)}  {num_yes:,} yes, {num_no:,} no: {used}'
