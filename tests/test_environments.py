"""What is said of Pythons and of the lowest versions, in the places that say it."""

import re
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from tests import environments

ROOT = Path(__file__).parents[1]
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def workflow(name):
    return yaml.safe_load((ROOT / ".github" / "workflows" / name).read_text(encoding="utf-8"))


def test_the_workflow_tests_every_python_that_is_promised():
    promised = re.findall(r"Python :: (3\.\d+)", PROJECT)
    jobs = workflow("test.yml")["jobs"]
    assert tuple(jobs["all"]["strategy"]["matrix"]["python"]) == environments.PYTHONS
    assert promised
    assert set(promised) <= set(environments.PYTHONS)
    (lowest,) = re.findall(r'requires-python = "(.+)"', PROJECT)
    assert environments.PYTHONS[0] in SpecifierSet(lowest)
    assert "3.9" not in SpecifierSet(lowest)
    (setup,) = [step["with"] for step in jobs["lowest"]["steps"] if "setup-python" in step.get("uses", "")]
    assert setup["python-version"] == environments.PYTHONS[0]


def test_the_page_says_the_lowest_versions_of_the_package():
    page = (ROOT / "docs" / "using.md").read_text(encoding="utf-8")
    said = dict(re.findall(r"^\| (PyTorch|rich|tokenizers) \| (\S+) \|", page, re.MULTILINE))
    allowed = dict(re.findall(r'^    "(\w+)>=([\w.]+)",', PROJECT, re.MULTILINE))
    names = {"PyTorch": "torch", "rich": "rich", "tokenizers": "tokenizers"}
    assert said == {name: allowed[package] for name, package in names.items()}


def test_only_what_publishes_may_sign_for_the_project():
    jobs = workflow("publish.yml")["jobs"]
    assert {name for name, job in jobs.items() if "id-token" in job.get("permissions", {})} == {"upload"}
    assert not [step for step in jobs["upload"]["steps"] if "run" in step]


def test_every_room_is_there():
    assert [room for room in environments.ROOMS if not (ROOT / "tests" / room).exists()] == []


def test_a_requirement_is_asked_for_without_its_marker():
    assert environments._plain(Requirement("moto[s3]>=5; extra == 'test'")) == "moto[s3]>=5"
