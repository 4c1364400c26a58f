"""Commands and groups of commands by name; the program imports a command's module when the command runs."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import reduce
from importlib import import_module
from operator import or_
from typing import Annotated, Any, Literal

import attrs
import tyro
from tyro.conf import Positional, subcommand

from mobileclip.registry import nearest
from mobileclip.terminal import say
from mobileclip.terminal.common import split_common_flags, use_common
from mobileclip.terminal.flags import ASKING, ASKING_ALL, FlagRules, parse, reader_of, specs_read
from mobileclip.terminal.help import paragraphs

FLAG_RULES = FlagRules(
    letters={
        "output": ("-o",),
        "model": ("-m",),
        "index_name": ("-i",),
        "k": ("-k",),
        "port": ("-p",),
        "num_workers": ("-j",),
        "num_threads": ("-j", "--num-workers"),
    }
)
"""Short names and aliases of flags, the same in every command."""

COMMON = {
    "--quiet": "show no progress",
    "--strict": "exit with status 1 instead of 0 if the command skipped something",
}
"""Flags of every command, with their purpose."""

_OF_ALL = (
    f"Every command accepts {', and '.join(f'{name}: {about}' for name, about in COMMON.items())}. "
    "`--help-all` shows rare flags too."
)


@attrs.frozen
class Command:
    """A command, imported on use.

    Args:
        place: the command's function, `module:name` in this package. Its arguments become flags, and its
            docstring becomes the help.
        example: an example command line, starting with the command's name.
        summary: short description for the list of commands.
    """

    place: str
    example: str
    summary: str

    def load(self) -> Callable[..., Any]:
        """Return the function."""
        module, _, name = self.place.partition(":")
        function: Callable[..., Any] = getattr(import_module(f"{__package__}.{module}"), name)
        return function

    def run(self, program: str, arguments: Sequence[str]) -> None:
        """Parse the flags, and call the command's function.

        Args:
            program: the words before the arguments.
            arguments: the words after `program`.

        Raises:
            SystemExit: after `--help`, or for an unknown flag.
        """
        function = self.load()
        description = ""
        if not ASKING.isdisjoint(arguments) or ASKING_ALL in arguments:
            explained = inspect.cleandoc(function.__doc__ or "").partition("\n\nArgs:")[0]
            description = paragraphs(f"{explained}\n\n{_OF_ALL}")
        told, rest = split_common_flags(COMMON, arguments)
        with use_common(told):
            parse(function, rest, description=description, rules=FLAG_RULES, prog=program)


@attrs.frozen
class Commands:
    """A group of commands.

    Args:
        description: purpose of the group.
        groups: commands and further groups by name, under headings.
        example: see `Command`; empty for the top-level group.
        summary: see `Command`; empty for the top-level group.
    """

    description: str
    groups: Mapping[str, Mapping[str, Command | Commands]]
    example: str = ""
    summary: str = ""

    @property
    def members(self) -> dict[str, Command | Commands]:
        """The commands and groups by name."""
        return {name: one for group in self.groups.values() for name, one in group.items()}

    def run(self, program: str, arguments: Sequence[str]) -> None:
        """Run the command named by the first word, or list all commands.

        Args:
            program: the words before the arguments.
            arguments: the words after `program`.

        Raises:
            SystemExit: after `--help`, or without a command.
            ValueError: if there is no such command.
        """
        name = arguments[0].replace("_", "-") if arguments else ""
        if name in self.members:
            self.members[name].run(f"{program} {name}", arguments[1:])
        elif not name or not ASKING.isdisjoint(arguments):
            say(self.listed(program))
            sys.exit(0 if name else 2)
        else:
            near = nearest(arguments[0][:80], self.members, otherwise=f"{program} --help lists them")
            raise ValueError(f"there is no command {arguments[0][:80]!r}; {near}")

    def listed(self, program: str) -> str:
        """Return a line per command with example and summary."""
        width = max(len(one.example) for one in self.members.values())
        lines = [paragraphs(self.description)]
        for title, group in self.groups.items():
            lines += ["", title]
            lines += [f"  {one.example:{width}}  {one.summary}" for one in group.values()]
        return "\n".join([*lines, "", f"`{program} COMMAND --help` lists all flags of a command."])


def completion(shell: Positional[Literal["bash", "zsh", "tcsh"]] = "bash", /) -> None:
    """Print a script for shell completion of commands and flags; the script does not complete a recipe's own flags.

    source <(mobileclip completion)     # for this shell; add this line to ~/.bashrc for all shells

    Args:
        shell: the shell that will run the script.
    """
    with specs_read(FLAG_RULES), suppress(SystemExit):
        tyro.cli(_chosen_among(COMMANDS), prog="mobileclip", args=["--tyro-print-completion", shell])


def _chosen_among(group: Commands) -> Any:
    """Return a group of commands in tyro's form, a union of functions."""

    def member(name: str) -> Any:
        one = group.members[name]
        if not isinstance(one, Commands):
            return Annotated[Any, subcommand(name=name, constructor=reader_of(one.load(), FLAG_RULES))]

        def chosen(command: Any) -> None: ...

        chosen.__annotations__["command"] = tyro.conf.OmitSubcommandPrefixes[_chosen_among(one)]  # type: ignore[misc]
        return Annotated[Any, subcommand(name=name, constructor=chosen)]

    return reduce(or_, map(member, group.members))


_GROUPS = {
    "concept": (
        "Define your own concepts in an index of images, by texts and example images.",
        """
commands
  collections:add            add "my bike" --positive a.jpg  add a concept with examples
  collections:list_concepts  ls                         list an index's concepts
  collections:show           show "my bike"             print a concept's text and examples
  collections:remove         rm "my bike"               remove a concept
""",
    ),
    "eval": (
        "Evaluate models, and compare the results with published results; `run` may be omitted.",
        """
commands
  evaluation:evaluate  run s2.pt my_classes/                  evaluate models on data sets
  evaluation:report    report results.jsonl -m mobileclip_s0  compare with published results
""",
    ),
    "tokenizer": (
        "Train a tokenizer on your own texts.",
        """
commands
  training:train_tokenizer  train german.txt -o tokenizer.json  train on text files
""",
    ),
    "recipes": (
        "List the published recipes, or copy a recipe to edit.",
        """
commands
  training:list_recipes  ls                       list the published recipes
  training:copy          cp train_s2 -o my_s2.py  copy a recipe to edit
""",
    ),
    "data": (
        "Inspect data sets, join published data sets with images, and select samples.",
        """
look
  data:inspect       inspect shard.tar -o a.html            print a sample and its augmentations
  data:count         count 'shards/{000..127}.tar'          write sample counts to sizes.json
  data:check         check DataCompDR-12M                   check shards against their card
join
  data:urls          urls DataComp-12M -o urls.parquet      write the URLs for img2dataset
  data:join          join DataCompDR-12M images -o joined/  put images into shards
choose
  data:score         score DataCompDR-12M -o scores         compare captions with their images
  data:filter_       filter scores -o kept.npy              select samples with the best captions
  data:dedup         dedup scores -o kept.npy               keep one of several near duplicates
  data:tune_scale    tune-scale held_out.tar                find a logit scale per teacher
""",
    ),
    "hub": (
        "Write models in a form that open_clip and timm load, and push them to the hub.",
        """
commands
  hub:save  save s2.safetensors -o s2/ --license mit  write a folder for the hub
  hub:push  push s2.safetensors me/s2 --license mit   push a model to the hub
""",
    ),
}


def _listed(description: str, text: str, example: str = "", summary: str = "") -> Commands:
    """Parse a list of commands under titles; each line has a function or group name, an example and a summary."""
    groups: dict[str, dict[str, Command | Commands]] = {}
    for line in text.strip().splitlines():
        if not line.startswith(" "):
            group = groups[line] = {}
            continue
        place, *about = re.split(r"  +", line.strip())
        name = about[0].split()[0]
        group[name] = _listed(*_GROUPS[place], *about) if place in _GROUPS else Command(place, *about)
    return Commands(description, groups, example, summary)


COMMANDS = _listed(
    """
    Use, evaluate and train fast image-text models, and search images.

    `mobileclip --version` prints the version. With `--import MODULE`, any command first imports your own
    module, given by its name or file path, to register its components.
    """,
    """
use a model
  models:classify       classify photo.jpg "a cat" "a dog"             find the best text for an image
  models:embed          embed photos/ -o photos.npz                    write embeddings as a NumPy archive
  export:export         export s2.pt -o s2_onnx                        export for phones, browsers, servers
  models:list_models    list                                           list the named models and towers
  models:info           info mobileclip_s2                             print spec, form and size of a model
search images
  indexing:index        index photos/                                  create or update a search index
  collections:search    search "a red bicycle"                         find images by text or image
  collections:dedup     dedup photos/                                  list near-duplicate images
  collections:serve     serve                                          search in a browser
  indexing:merge        merge a.index b.index -o c.index               merge indexes with the same model
  indexing:upgrade      upgrade --to mobileclip_s2                     move an index to another model
  collections:tag       tag --vocabulary words.txt                     tag images with words
  concept               concept add "my bike"                          define concepts by examples
measure
  eval                  eval s2.pt my_classes/                         evaluate models on data sets
  export:verify         verify s2_onnx                                 compare an export with its model
  models:check_weights  check-weights mobileclip_s0                    compare with published outputs
train
  training:train        train s2 --tiny                                train with a recipe
  training:reinforce    reinforce datacompdr12m --tiny                 add captions and embeddings
  training:finetune     finetune --tiny                                train on your own images
  tokenizer             tokenizer train german.txt -o t.json           train a tokenizer on your texts
  recipes               recipes ls                                     list or copy published recipes
  training:runs         runs outputs/a outputs/b                       compare training runs
files and shells
  data                  data inspect shard.tar -o a.html               inspect, join and filter data
  models:convert        convert s2.pt -o s2.safetensors                convert weights to another layout
  hub                   hub save s2.safetensors -o s2/                 publish models on the hub
  commands:completion   completion                                     print a shell completion script
""",
)
