"""The files for clusters are what their programs read, and the flags in them are those of the recipe."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.recipes.running import shown_run

CLUSTER = Path(__file__).parents[2] / "examples" / "cluster"
BATCH = CLUSTER / "train_s2.sbatch"


JOB = yaml.safe_load((CLUSTER / "kubernetes-job.yaml").read_text())["spec"]
POD = JOB["template"]["spec"]
(CONTAINER,) = POD["containers"]


def test_the_recipe_takes_the_flags(capsys):
    line = re.search(r"python (recipes/train_s2\.py .*)", BATCH.read_text())[1]
    command = CONTAINER["command"]
    for flags in (shlex.split(line)[1:], command[command.index("recipes/train_s2.py") + 1 :]):
        data = shown_run(capsys, "train_s2", *flags).data
        assert (data.num_workers, bool(data.shards)) == (10, True)


@pytest.mark.parametrize(("status", "ends_with"), [(0, 0), (75, 99), (143, 99), (1, 1)])
def test_the_script_starts_again_what_was_stopped(tmp_path, status, ends_with):
    """With programs in place of SLURM's: what they are told is what the script decides."""
    directives = dict(re.findall(r"^#SBATCH --([a-z-]+)=?(\S*)", BATCH.read_text(), re.MULTILINE))
    assert directives["signal"].startswith("USR1@")
    assert directives["ntasks-per-node"] == directives["gpus-per-node"]
    assert "requeue" in directives
    for name, code in (("srun", status), ("scontrol", 99)):
        (tmp_path / name).write_text(f'#!/bin/sh\necho {name} "$@"\nexit {code}\n')
        (tmp_path / name).chmod(0o755)
    variables = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "17"}
    done = subprocess.run(["bash", str(BATCH)], env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == ends_with, done.stderr
    assert done.stdout.startswith("srun --kill-on-bad-exit=1 python recipes/train_s2.py --data joined/{00..64}/")
    assert ("scontrol requeue 17" in done.stdout) == (ends_with == 99)


def test_the_job_of_kubernetes_starts_again_what_was_evicted():
    rule = {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]}
    assert JOB["podFailurePolicy"]["rules"] == [rule]
    assert POD["restartPolicy"] == "Never"  # or Kubernetes refuses the policy
    mounted, volumes = ({one["name"] for one in several} for several in (CONTAINER["volumeMounts"], POD["volumes"]))
    assert mounted == volumes
    assert f"--nproc-per-node={CONTAINER['resources']['limits']['nvidia.com/gpu']}" in CONTAINER["command"]
