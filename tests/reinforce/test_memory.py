"""Memory stays flat: what a shard needed is given back before the next."""

import subprocess
import sys
from pathlib import Path

import pytest

from mobileclip.data import AugmentationSpec, write_shard
from mobileclip.reinforce import ReinforcementSpec
from mobileclip.serialization import to_json
from tests.reinforce.conftest import plain_sample

WATCH = """
import sys
from pathlib import Path
from mobileclip.engines import InlineEngine, Listener
from mobileclip.reinforce import ReinforcementSpec
from mobileclip.reinforce.worker import ReinforcementWork
from mobileclip.serialization import from_json

class Watch(Listener):
    def finished(self, unit, entry):
        resident = next(line for line in open("/proc/self/status") if line.startswith("VmRSS"))
        print(int(resident.split()[1]) / 1024)

spec = from_json(open(sys.argv[1]).read(), ReinforcementSpec)
Path(spec.output).mkdir()
InlineEngine(device="cpu").run(ReinforcementWork(spec=spec), spec.source.units(), Watch())
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_fifty_shards_need_no_more_than_ten(small_teachers, tmp_path):
    shards = [
        write_shard(tmp_path / f"{shard:02d}.tar", [plain_sample(f"{shard}-{index}", index) for index in range(40)])
        for shard in range(50)
    ]
    spec = ReinforcementSpec(
        source=shards,
        output=tmp_path / "out",
        teachers=small_teachers,
        augmentation=AugmentationSpec(size=64),
        num_augmentations=10,
    )
    (tmp_path / "spec.json").write_text(to_json(spec))
    said = subprocess.check_output([sys.executable, "-c", WATCH, str(tmp_path / "spec.json")], text=True)
    resident = [float(line) for line in said.split()]
    assert len(resident) == 50
    assert max(resident[40:]) < max(resident[:10]) + 20, resident
