"""`mobileclip tag` and `mobileclip concept`: words and concepts of a person's own, for an index of pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from mobileclip.cli.checks import require_file
from mobileclip.cli.indexing import IndexName, opened
from mobileclip.cli.models import Device
from mobileclip.storage import printable
from mobileclip.terminal import say, say_json

if TYPE_CHECKING:
    from mobileclip.collections import Concept

_LONGEST_NAME = 4096

Name = Annotated[Positional[str], arg(metavar="NAME")]
Examples = Annotated[tuple[str, ...], arg(metavar="IMAGE")]


def tag(
    *,
    index_name: IndexName = None,
    vocabulary: Annotated[Path | None, arg(metavar="WORDS.txt")] = None,
    template: Annotated[str | None, arg(metavar="TEMPLATE")] = None,
    share: Annotated[float | None, arg(metavar="SHARE")] = None,
    device: Device = "auto",
    trust: bool = False,
) -> None:
    """Tag the pictures of an index with words of your own: columns that searches filter by.

    mobileclip tag --index photos.index --vocabulary words.txt --template "a photo of a {}"
    mobileclip search "a beach" --where 'tag=dog' --where 'tag:red bicycle>=0.99'

    A picture's score for a word is the share of the collection that fits the word less, from 0 to 1: cosines of
    different words cannot be compared, and these can. A word is a tag of the 5 % that fit it best (--share), also where
    no picture shows it. No picture is read. Pictures that are indexed later have tags too; the same command without
    --vocabulary calibrates the words anew.

    Args:
        index_name: see mobileclip search.
        vocabulary: a text file with a word or phrase a line, in UTF-8; its words take the place of those before.
        template: the sentence that each word is put into, such as "a photo of a {}"; by default the word alone.
        share: of the collection that has each word as a tag; 0.05 by default.
        device: where to compute; see mobileclip index.
        trust: run an export that another machine wrote; see mobileclip classify.
    """
    from mobileclip.inference.embedding import read_texts

    words = None if vocabulary is None else read_texts(vocabulary)
    collection = opened(index_name, device, trust=trust)
    made = collection.tag(words, template=template, share=share)
    say(
        f"{len(collection):,} pictures in {collection.path} have {len(made.words):,} words as tags, each the "
        f"tag of {made.share:.3g} of them: mobileclip search --where 'tag={printable(made.words[0])}' ..."
    )


def add(
    name: Name,
    /,
    *,
    index_name: IndexName = None,
    yes: Examples = (),
    no: Examples = (),
    neither: Examples = (),
    text: Annotated[str | None, arg(metavar="TEXT")] = None,
    device: Device = "auto",
    trust: bool = False,
) -> None:
    """Name something of your own, and teach it by examples: `@"my bike"` in a search then means it.

    mobileclip concept add "my bike" --yes a.jpg --yes b.jpg --no c.jpg --text "a bicycle" --index photos.index
    mobileclip search '@"my bike" in snow' --index photos.index

    The text finds it without any example. Examples add to the score of pictures that are like them, where that helps:
    one that is held back must be found better with the others than by the text alone. A picture of the index is not
    read again. A small copy of each example is kept in the index.

    Args:
        name: what it is called, without quotation marks; examples are added to a concept that is there.
        index_name: see mobileclip search.
        yes: a picture that shows it; several times for several.
        no: a picture that does not, and may be mistaken for it.
        neither: a picture that is no example any more, as mobileclip concept show names it; its file need not be there.
        text: what it is in words; by default its name.
        device: where to compute; see mobileclip index.
        trust: run an export that another machine wrote; see mobileclip classify.
    """
    for path in (*yes, *no):
        require_file(path, "an image file")
    say(_told(opened(index_name, device, trust=trust).concepts.add(name, yes=yes, no=no, neither=neither, text=text)))


def list_concepts(*, index_name: IndexName = None, as_json: Annotated[bool, arg(name="json")] = False) -> None:
    """List the concepts of an index.

    mobileclip concept ls --index photos.index

    Args:
        index_name: see mobileclip search.
        as_json: print a list of objects.
    """
    from mobileclip.collections import Collection

    found = Collection.open(index_name).concepts.stored().values()
    if as_json:
        say_json([one.described() for one in found])
    else:
        say("\n".join(map(_told, found)) or "the index has no concepts")


def show(name: Name, /, *, index_name: IndexName = None) -> None:
    """Print what is known of a concept: its text, and its examples.

    mobileclip concept show "my bike" --index photos.index

    Args:
        name: of the concept.
        index_name: see mobileclip search.
    """
    from mobileclip.collections import Collection

    concept = Collection.open(index_name).concepts.require(name)
    lines = [
        f"  {'yes' if one.is_yes else 'no '}  {printable(one.name, limit=_LONGEST_NAME)}" for one in concept.examples
    ]
    say("\n".join([_told(concept), *lines]))


def remove(name: Name, /, *, index_name: IndexName = None) -> None:
    """Remove a concept from an index; no picture is touched.

    mobileclip concept rm "my bike" --index photos.index

    Args:
        name: of the concept.
        index_name: see mobileclip search.
    """
    from mobileclip.collections import Collection

    Collection.open(index_name).concepts.remove(name)
    say(f"removed {printable(name)}")


def _told(concept: Concept) -> str:
    """Return a concept in a line."""
    num_yes = sum(one.is_yes for one in concept.examples)
    num_no = len(concept.examples) - num_yes
    used = "which help" if concept.uses_examples else "the text alone is searched with"
    return f'@"{printable(concept.name)}"  {printable(concept.text)}  {num_yes:,} yes, {num_no:,} no: {used}'
