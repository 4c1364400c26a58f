"""The files for clusters are what their programs read, and the flags in them are those of the recipe."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.recipes.running import run_named

CLUSTER = Path(__file__).parents[2] / "examples" / "cluster"
BATCH = CLUSTER / "train_s2.sbatch"


def job() -> dict:
    return yaml.safe_load((CLUSTER / "kubernetes-job.yaml").read_text())


def commands() -> tuple[list[str], list[str]]:
    """Return what is given to the recipe in each file: SLURM's and that of Kubernetes."""
    line = re.search(r"python (recipes/train_s2\.py .*)", BATCH.read_text())[1]
    (container,) = job()["spec"]["template"]["spec"]["containers"]
    recipe = container["command"].index("recipes/train_s2.py")
    return shlex.split(line)[1:], container["command"][recipe + 1 :]


def test_the_recipe_takes_the_flags(capsys):
    for flags in commands():
        run_named("train_s2", *flags, "--show")
        shown = json.loads(capsys.readouterr().out)
        assert (shown["data"]["num_workers"], bool(shown["data"]["shards"])) == (10, True)


def test_the_script_of_slurm_is_one():
    subprocess.run(["bash", "-n", str(BATCH)], check=True)
    text = BATCH.read_text()
    directives = dict(re.findall(r"^#SBATCH --([a-z-]+)=(\S+)", text, re.MULTILINE))
    assert directives["signal"].startswith("USR1@")
    assert directives["ntasks-per-node"] == directives["gpus-per-node"]
    assert "#SBATCH --requeue" in text


@pytest.mark.parametrize(("status", "ends_with"), [(0, 0), (75, 99), (143, 99), (1, 1)])
def test_the_script_starts_again_what_was_stopped(tmp_path, status, ends_with):
    """With programs in place of SLURM's: what they are told is what the script decides."""
    for name, code in (("srun", status), ("scontrol", 99)):
        program = tmp_path / name
        program.write_text(f'#!/bin/sh\necho {name} "$@"\nexit {code}\n')
        program.chmod(0o755)
    variables = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "17"}
    done = subprocess.run(["bash", str(BATCH)], env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == ends_with, done.stderr
    assert done.stdout.startswith("srun --kill-on-bad-exit=1 python recipes/train_s2.py --data joined/{00..64}/")
    assert ("scontrol requeue 17" in done.stdout) == (ends_with == 99)


def test_the_job_of_kubernetes_starts_again_what_was_evicted():
    spec = job()["spec"]
    (rule,) = spec["podFailurePolicy"]["rules"]
    assert rule == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]}
    assert spec["template"]["spec"]["restartPolicy"] == "Never"  # or Kubernetes refuses the policy
    (container,) = spec["template"]["spec"]["containers"]
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in spec["template"]["spec"]["volumes"]}
    per_node = next(part for part in container["command"] if part.startswith("--nproc-per-node="))
    assert per_node == f"--nproc-per-node={container['resources']['limits']['nvidia.com/gpu']}"
