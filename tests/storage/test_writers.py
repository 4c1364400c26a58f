"""Whatever writes a file that stays goes through `storage`, so that it is there whole or not at all."""

import re
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "mobileclip"
# A file that is written where it is, by Python or by a library.
WRITES = re.compile(
    r"(?<!storage)\.write_(text|bytes)\(|\.open\(\"[wax]|\bopen\([^)]*\"[wax]b?\"|shutil\.(copy|move)\w*\(|\.savefig\(path"
    r"|os\.(rename|replace)\(|\.rename\(|\.replace\(target\)|\.touch\("
)
REASONS = {
    "storage/": "it is how the others write",
    "export/": "in the folder that `working_folder` puts in its place",
    "interop/folder.py": "in the folder that `atomic_folder` puts in its place",
    "interop/open_clip_models.py": "in a temporary folder",
    "recipes/tiny/models.py": "a small world for `--tiny`, which is made again",
    "recipes/finetuning/tiny.py": "in the folder that `atomic_folder` puts in its place",
    "recipes/files.py": "to the path that `atomic_path` gives",
    "encoders/checkpoints/hub.py": "to the path that `atomic_path` gives",
    "training/records/metrics.py": "a log, line by line; a torn last line is dropped",
    "reinforce/manifest.py": "a ledger, line by line; a torn last line is cut off",
    "engines/in_order.py": "in a temporary folder",
    "data/buckets.py": "in a scratch folder, which the next job removes",
    "data/skips.py": "in a temporary folder, which processes share",
    "datasets/joining/matching.py": "in a scratch folder",
    "datasets/joining/records.py": "to the path that `atomic_path` gives",
    "data/samples/uids.py": "to the path that `atomic_path` gives",
    "collections/store/vectors.py": "it grows; what no transaction counts is cut off",
    "collections/indexing/update.py": "a mark, which is empty",
    "testing/": "in a temporary folder",
    "terminal/streams.py": "on the null device",
}


def found():
    """The files of the package that write so, with the first line that does."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for line in path.read_text(encoding="utf-8").split("\n"):
            if WRITES.search(line) and "storage.rename" not in line:
                yield path.relative_to(PACKAGE).as_posix(), line.strip()
                break


def test_who_writes_a_file_where_it_is_has_a_reason():
    without = [(name, line) for name, line in found() if not any(name.startswith(place) for place in REASONS)]
    assert not without


def test_reasons_are_of_files_that_write():
    writing = [name for name, _ in found()]
    assert not [place for place in REASONS if not any(name.startswith(place) for name in writing)]
