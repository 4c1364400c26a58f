"""Short text towers: what context, depth and vocabulary cost, and what they are good for, as rows of one table.

Command:   python -m examples.languages.short_towers         (with the extra `quickstart` installed)
Hardware:  any computer, about 3 GiB of memory
Time:      a minute or two of one core for each row and seed; it may be stopped, and goes on
Result:    outputs/short_towers: results.jsonl, a line for each tower, and table.md

Every tower is distilled from the text tower of `icons`, from the English captions that its pictures have, and then
finds held-out drawings by their names.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, product
from pathlib import Path
from statistics import mean, stdev
from time import process_time

import attrs
import tokenizers

import mobileclip
from examples.icons import IconDataSpec, build_dataset
from examples.icons.sets import FREE_SETS
from examples.languages.scoring import Pool
from examples.languages.training import TEACHER
from examples.quickstart.emoji import DrawnDataset
from mobileclip import ImageTextModel
from mobileclip.data import Tokenizer
from mobileclip.recipes.distilling import DistilSpec, distil
from mobileclip.serialization import from_json, to_json
from mobileclip.storage import write_text
from mobileclip.training import CosineSchedule

CAPTIONS, TOKENIZER, WHOLE = "captions.txt", "tokenizer.json", "whole vocabulary"
STUDENT = DistilSpec(model=TEACHER, kind="transformer", width=64, batch_size=512)
ROWS = {
    f"{context} tokens, {layers}": attrs.evolve(STUDENT, context_length=context, depth=depth)
    for depth, layers, contexts in ((0, "no layer", (6, 8, 12, 24)), (1, "one layer", (12, 24)))
    for context in contexts
} | {f"12 tokens, no layer, {WHOLE}": attrs.evolve(STUDENT, context_length=12, depth=0)}


@attrs.frozen(kw_only=True)
class ShortTowersSpec:
    """The choices.

    Args:
        output: folder of everything that is made.
        icons: the data set of icons.
        steps: of a training.
        learning_rate: peak of the cosine schedule.
        num_seeds: trainings of every row.
    """

    output: Path = Path("outputs/short_towers")
    icons: IconDataSpec = IconDataSpec(sets=tuple(one.name for one in FREE_SETS))
    steps: int = 2000
    learning_rate: float = 5e-3
    num_seeds: int = 3


@attrs.frozen(kw_only=True)
class Tower:
    """What a tower takes, and what it finds.

    Args:
        row: what it is.
        seed: of its training; None for the teacher.
        recall: R@5 of the names of held-out drawings, in per cent.
        parameters: their number.
        minutes: of one core, from its texts on.
    """

    row: str
    seed: int | None
    recall: float
    parameters: int
    minutes: float


def make(spec: ShortTowersSpec) -> Path:
    """Train the towers that are not there, and return the table of all.

    Raises:
        ValueError: if npm fails, or a folder holds a run with other choices.
    """
    dataset = build_dataset(attrs.evolve(spec.icons, output=spec.output / "icons"))
    teacher = mobileclip.load(TEACHER)
    pool = Pool.of(teacher, dataset)
    write_text(spec.output / CAPTIONS, "".join(f"{text}\n" for text in sorted(set(captions(dataset)))))
    write_text(spec.output / TOKENIZER, used_tokens(teacher.tokenizer, set(captions(dataset))))
    results = spec.output / "results.jsonl"
    found = read(results) if results.exists() else [measured(f"{TEACHER}, the teacher", None, teacher, pool, minutes=0)]
    for seed, row in product(range(spec.num_seeds), ROWS):
        if (row, seed) not in {(one.row, one.seed) for one in found}:
            start = process_time()
            student = mobileclip.load(TEACHER, text_model=trained(spec, row, seed))
            found.append(measured(row, seed, student, pool, minutes=(process_time() - start) / 60))
            write_text(results, "".join(to_json(one) + "\n" for one in found))
    path = spec.output / "table.md"
    write_text(path, "\n".join(table(found)) + "\n")
    return path


def captions(dataset: DrawnDataset) -> Iterator[str]:
    """Yield every caption, written by people or made, that the pictures have."""
    for sample in dataset.train.samples():
        yield from (" ".join(text.split()) for text in chain(sample.captions, *sample.syn_captions.values()))


def used_tokens(tokenizer: Tokenizer, texts: Iterable[str]) -> str:
    """Return a `tokenizer.json` of byte pairs without the tokens that no text uses; bytes stay, for other texts."""
    parsed = json.loads(tokenizer.to_json())
    model, special = parsed["model"], parsed["post_processor"]["special_tokens"]
    whole = tokenizers.Tokenizer.from_str(tokenizer.to_json())
    made = {first + second for first, second in model["merges"]}
    kept = (model["vocab"].keys() - made) | {token for text in texts for token in whole.encode(text).tokens}
    for first, second in reversed(model["merges"]):  # which are of tokens that earlier ones made
        kept |= {first, second} if first + second in kept else set()
    model["merges"] = [pair for pair in model["merges"] if {*pair, "".join(pair)} <= kept]
    model["vocab"] = {token: index for index, token in enumerate(one for one in model["vocab"] if one in kept)}
    for entry in parsed["added_tokens"]:
        entry["id"] = model["vocab"][entry["content"]]
        special[entry["content"]]["ids"] = [entry["id"]]
    return json.dumps(parsed)


def trained(spec: ShortTowersSpec, row: str, seed: int) -> Path:
    """Return the file of a tower."""
    schedule = CosineSchedule(peak=spec.learning_rate, warmup_steps=spec.steps // 20, total_steps=spec.steps)
    chosen = attrs.evolve(
        ROWS[row],
        data=(str(spec.output / CAPTIONS),),
        texts=spec.output / "texts",
        tokenizer=None if row.endswith(WHOLE) else spec.output / TOKENIZER,
        output=spec.output / f"{row.replace(', ', '_').replace(' ', '_')}_{seed}",
        seed=seed,
        device="cpu",
        training=attrs.evolve(ROWS[row].training, schedule=schedule, seed=seed, checkpoint_every_steps=spec.steps),
    )
    tower = distil(chosen, title=row)
    assert tower is not None, "there is one process"
    return tower


def measured(row: str, seed: int | None, clip: ImageTextModel, pool: Pool, *, minutes: float) -> Tower:
    """Return what a model's text tower takes, and what it finds."""
    parameters = sum(one.numel() for one in clip.model.text_encoder.parameters())
    names = list(dict.fromkeys(pool.names))
    return Tower(row=row, seed=seed, recall=pool.recall(clip, names, names), parameters=parameters, minutes=minutes)


def read(path: Path) -> list[Tower]:
    """Return the towers that were measured."""
    return [from_json(line, Tower) for line in path.read_text(encoding="utf-8").splitlines()]


def table(found: Sequence[Tower]) -> Iterator[str]:
    """Yield the lines of the table: means over seeds, and their standard deviations."""
    yield "| tower | parameters | R@5 | minutes of one core |"
    yield "|---|---|---|---|"
    for row in dict.fromkeys(one.row for one in found):
        own = [one for one in found if one.row == row]
        recalls = [one.recall for one in own]
        spread = f" ± {stdev(recalls):.1f}" if len(own) > 1 else ""
        minutes = "" if own[0].seed is None else f" {mean(one.minutes for one in own):.1f}"
        yield f"| {row} | {own[0].parameters:,} | {mean(recalls):.1f}{spread} |{minutes} |"


if __name__ == "__main__":
    from mobileclip.recipes import started
    from mobileclip.terminal.printing import say

    with started(ShortTowersSpec, "short_towers", __doc__, default=ShortTowersSpec()) as chosen:
        say(f"The table is {make(chosen)}.")
