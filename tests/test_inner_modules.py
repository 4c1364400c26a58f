"""Tests import public names, or what a folder lists for the rest of the house, so that modules can move within it."""

import importlib.util
import re
from pathlib import Path

from api_rooms import WHOLE_MODULES

ROOT = Path(__file__).parents[1]
MOST = 49
REASONS = {
    "mobileclip.cli.flags": "commands are read as they are typed, and not run",
    "mobileclip.cli.renamed": "every old name has a line in a test",
    "mobileclip.cli.sharing": "what the flags of several commands build",
    "mobileclip.collections.searching.coding": "blocks are of 100 codes, and a conversion ends between two of them",
    "mobileclip.collections.searching.two_spaces": "what a query proposes is asked without models",
    "mobileclip.collections.store.concepts": "a writer ends at a moment that no command chooses",
    "mobileclip.collections.store.database": "a table is damaged that no command writes so",
    "mobileclip.collections.store.small": "codes are fitted to few pictures",
    "mobileclip.collections.store.store": "a disk of another machine is pretended",
    "mobileclip.collections.store.vectors": "which embeddings are mapped is not seen from outside",
    "mobileclip.data.loading.uid_list": "a list of more than 134 million uids is not sorted",
    "mobileclip.data.loading.crew": "tests do not wait as long as a stopped loader may take to end",
    "mobileclip.data.loading.chunks": "a reader gives up after 100,000 samples in a row",
    "mobileclip.data.samples.inflate": "zlib-ng and zlib are tried in one process, and their steps counted",
    "mobileclip.datasets.sources.records": "an image ends at 256 MiB",
    "mobileclip.data.text.tokenizer": "the patterns are those of another library, for every character",
    "mobileclip.datasets.videos.opening": "a video ends at 48 hours, and its decoding at 64 gigapixels",
    "mobileclip.data.workers": "how often processes are looked at, and what they are given to finish",
    "mobileclip.encoders.checkpoints.coca": "open_clip builds its own model of what is written, to be compared with",
    "mobileclip.engines.run": "a file of a log has 1,000 lines",
    "mobileclip.evaluation.encoding.timing": "how long a model takes is measured for two seconds",
    "mobileclip.export.describing": "targets are tried with one tower, of which no whole export is made",
    "mobileclip.export.running": "a checkpoint and pixels are compared without a runtime",
    "mobileclip.export.targets.coreml.convert": "what a format's own program or file holds",
    "mobileclip.export.targets.executorch.backends": "what a format's own program or file holds",
    "mobileclip.export.targets.executorch.lower": "what a format's own program or file holds",
    "mobileclip.export.targets.litert.convert": "what a format's own program or file holds",
    "mobileclip.export.targets.litert.weights": "what a format's own program or file holds",
    "mobileclip.export.targets.litert.file": "what a format's own program or file holds",
    "mobileclip.export.targets.quiet": "what a format's own program or file holds",
    "mobileclip.export.targets.torch.pt2": "what a format's own program or file holds",
    "mobileclip.export.trust": "what a machine remembers of exports is asked without a runtime",
    "mobileclip.hardware.devices": "a machine without float64 is pretended",
    "mobileclip.inference.loading": "which names are understood, without weights",
    "mobileclip.inference.optimization.programs": "the runtime of a machine that has none",
    "mobileclip.inference.quickening": "few pictures stand for the hundreds from which on a form is tried",
    "mobileclip.inference.text_towers": "which tower reads a text is compared with a page's own choice",
    "mobileclip.losses.reinforced": "fewer than 512 pairs are computed by the tiles too, to be compared",
    "mobileclip.losses.tiled.tiles": "a batch that can be compared fits into one tile",
    "mobileclip.recipes.tiny.shapes": "drawn pictures have other names than tests give them",
    "mobileclip.reinforce.watched_source": "two threads meet at moments that a job does not choose",
    "mobileclip.reinforce.verify": "what is drawn of 200 million samples is asked without them",
    "mobileclip.reinforce.worker": "engines run its work with a listener that kills it",
    "mobileclip.storage.connection": "a bound to the byte, which no server's answer can be counted to",
    "mobileclip.terminal.signal_state": "tests do not wait as long as tidying up may take, which no command changes",
    "mobileclip.testing.losses": "processes of a check are forked, and do not start anew",
    "mobileclip.training.cpu.norm_sum": "a sum of norms that no block has",
    "mobileclip.training.prefetching": "a GPU, a signal and a slow source meet at moments that a run does not choose",
    "mobileclip.training.heartbeats": "processes fall silent at moments that a run does not choose",
}


def inner_modules():
    """Return the modules without `__all__`, below a room; not those that are documented as a whole."""
    paths = [path for path in sorted((ROOT / "mobileclip").rglob("*.py")) if path.stem not in {"__init__", "__main__"}]
    named = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in paths}
    return {
        module
        for module, path in named.items()
        if module.count(".") > 1 and module not in WHOLE_MODULES and "__all__" not in path.read_text(encoding="utf-8")
    }


def listed(module):
    """Return what a module lists; nothing where tests only speak of it."""
    there = importlib.util.find_spec(module)
    return getattr(importlib.import_module(module), "__all__", ()) if there else ()


def named_by_tests():
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py") if path != Path(__file__)]
    words = {word for text in texts for word in re.findall(r"\bmobileclip(?:\.\w+)+", text)}
    pairs = {
        f"{module}.{name}"
        for text in texts
        for module, names in re.findall(r"^ *from (mobileclip[\w.]*) import \(?([^)\n]+|[^)]+\))", text, re.MULTILINE)
        for name in re.findall(r"\w+", names)
        if name not in listed(module)
    }
    dotted = {".".join(word.split(".")[:end]) for word in words | pairs for end in range(3, 8)}
    return inner_modules() & dotted


def test_the_inner_modules_that_tests_name_have_reasons():
    assert named_by_tests() == REASONS.keys()
    assert len(REASONS) <= MOST
