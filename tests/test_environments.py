"""What is said of Pythons and of the lowest versions, in the places that say it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from long_description import distribution
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from tests import environments
from tests.extras import NOT_TESTED, Missing, read_project

ROOT = Path(__file__).parents[1]
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


TEXTS = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / ".github" / "workflows").glob("*.yml")}
WORKFLOWS = {name: yaml.safe_load(text) for name, text in TEXTS.items()}
TORCH_LIMITS = [
    line for line in environments.TORCH_LIMITS.read_text(encoding="utf-8").splitlines() if not line.startswith("#")
]
STEPS = [
    (name, step) for name, flow in WORKFLOWS.items() for job in flow["jobs"].values() for step in job.get("steps", ())
]


def listed(name):
    """Return the words of a variable in the Makefile."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8").replace("\\\n", " ")
    return re.search(rf"^{name} := (.*)$", text, re.MULTILINE)[1].split()


def test_the_workflow_tests_every_python_that_is_promised():
    jobs = WORKFLOWS["test.yml"]["jobs"]
    whole = jobs["whole"]["strategy"]["matrix"]["python"]
    (lowest,) = {*jobs["core"]["strategy"]["matrix"]["only"]}.difference(environments.PYTHONS)
    core = [python for python in jobs["core"]["strategy"]["matrix"]["only"] if python != lowest]
    assert sorted([*whole, *core]) == sorted(environments.PYTHONS)
    assert lowest == environments.LOWEST
    promised = re.findall(r"Python :: (3\.\d+)", PROJECT)
    assert promised
    assert set(promised) <= set(environments.PYTHONS)
    (from_on,) = re.findall(r'requires-python = "(.+)"', PROJECT)
    assert environments.PYTHONS[0] in SpecifierSet(from_on)
    assert "3.9" not in SpecifierSet(from_on)


def test_torch_is_held_to_one_minor_version_where_warnings_are_errors():
    limits = {one.name: one.specifier for one in map(Requirement, TORCH_LIMITS)}
    assert {*limits} == {"torch", "torchvision"}
    for specifier in limits.values():
        (lowest,) = [Version(one.version) for one in specifier if one.operator == ">="]
        assert f"{lowest}.9" in specifier
        assert f"{lowest}.0+cpu" in specifier
        assert f"{lowest.major}.{lowest.minor + 1}" not in specifier


@pytest.mark.parametrize(
    ("arguments", "is_held"),
    [(["test"], True), (["test", "UV=uv"], True), (["test", "TORCH_LIMITS="], False), (["gpu"], False)],
)
def test_make_installs_with_these_limits_and_without_where_asked(arguments, is_held, tmp_path):
    """A GPU machine has a PyTorch of its own."""
    places = [f"VENV={tmp_path}/venv", f"GPU_VENV={tmp_path}/venv"]
    commands = subprocess.run(["make", "-n", *arguments, *places], cwd=ROOT, capture_output=True, text=True, check=True)
    (installing,) = [line for line in commands.stdout.splitlines() if "--editable" in line]
    assert ("--constraint requirements/torch.txt" in installing) == is_held


def test_every_action_is_pinned_by_its_commit_and_says_its_version():
    """A tag is whatever its owner, or who took the owner's account, makes of it."""
    lines = [line.strip(" -") for text in TEXTS.values() for line in text.splitlines() if "uses:" in line]
    used = [line for line in lines if not line.startswith("uses: ./")]
    assert len(used) > 5
    assert [line for line in used if not re.fullmatch(r"uses: [\w.-]+/[\w.-]+@[0-9a-f]{40} # v[\d.]+", line)] == []
    pins = {tuple(line.removeprefix("uses: ").split("@")) for line in used}
    assert len(pins) == len({action for action, _ in pins}), "one version of each"


def test_what_workflows_run_is_there():
    targets = {*re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)}
    commands = [step["run"] for _, step in STEPS if "run" in step]
    nightly = WORKFLOWS["nightly.yml"]["jobs"]["nightly"]["strategy"]["matrix"]["target"]
    made = [re.search(r"\bmake (?:\w+=(?:\"[^\"]*\"|[^\s\"]+) )*([\w-]+)(?: |$)", one) for one in commands]
    asked = [one[1] for one in made if one] + [one.split()[0] for one in nightly]
    assert {"test", "test-all", "mutants"} <= {*asked} <= targets
    modules = [module for one in commands for module in re.findall(r"python -m (tests\.\w+)", one)]
    assert modules
    assert [one for one in modules if not (ROOT / f"{one.replace('.', '/')}.py").is_file()] == []


def test_every_extra_and_group_is_tested_or_known_not_to_be():
    project = read_project()
    extras, groups = project["project"]["optional-dependencies"], project["dependency-groups"]
    tested = listed("TESTED")
    assert {*tested, "test", "core-test", *NOT_TESTED} == {*extras, *groups}
    assert set(tested).isdisjoint(NOT_TESTED)
    assert {*groups} == {"core-test", "test", "docs", "gpu", "mutants"}


HERE, LIBRARY = __file__, str(ROOT / "mobileclip" / "extras.py")
FAILED, SKIPPED, MISSING = pytest.fail.Exception, pytest.skip.Exception, ModuleNotFoundError


@pytest.mark.parametrize(
    ("asked", "by", "outcome", "beside_the_core"),
    [
        ("import peft", HERE, MISSING, SKIPPED),
        ("import peft", LIBRARY, MISSING, MISSING),
        ("import s3fs", str(ROOT / "benchmarks" / "object_store.py"), MISSING, SKIPPED),
        ("import open_clip.factory", HERE, MISSING, SKIPPED),
        ("import cosmic_ray", HERE, SKIPPED, SKIPPED),
        ("import nothing_like_it", HERE, MISSING, MISSING),
        ("finder.require(['lora'])", HERE, FAILED, SKIPPED),
        ("finder.require(['mutants'])", HERE, SKIPPED, SKIPPED),
    ],
)
@pytest.mark.parametrize("missing", ["fail", "skip"])
def test_what_is_missing_is_skipped_where_it_may_be(monkeypatch, asked, by, outcome, beside_the_core, missing):  # noqa: PLR0917
    """What `make test` installs is never skipped there, nor, anywhere, what the library imports by itself."""
    finder = Missing(may_skip=missing == "skip")
    monkeypatch.setattr(sys, "meta_path", [finder])  # nothing can be found
    for name in [name for name in sys.modules if name.partition(".")[0] in {"peft", "open_clip", "s3fs", "cosmic_ray"}]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(beside_the_core if missing == "skip" else outcome):
        exec(compile(asked, by, "exec"), {"finder": finder})


def test_the_page_says_the_lowest_versions_of_the_package():
    page = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    said = dict(re.findall(r"^\| (PyTorch|tyro|rich|tokenizers) \| (\S+) \|", page, re.MULTILINE))
    allowed = dict(re.findall(r'^    "(\w+)>=([\w.]+)",', PROJECT, re.MULTILINE))
    names = {"PyTorch": "torch", "tyro": "tyro", "rich": "rich", "tokenizers": "tokenizers"}
    assert said == {name: allowed[package] for name, package in names.items()}


def test_only_what_publishes_may_sign_for_the_project():
    signing = {
        (name, job)
        for name, flow in WORKFLOWS.items()
        for job, said in flow["jobs"].items()
        if "id-token" in {**flow.get("permissions", {}), **said.get("permissions", {})}
    }
    assert signing == {("publish.yml", "upload"), ("docs.yml", "deploy")}
    assert not [step for name, job in signing for step in WORKFLOWS[name]["jobs"][job]["steps"] if "run" in step]


def test_pages_are_built_strictly_and_deployed_from_main_once_there_is_an_address():
    jobs = WORKFLOWS["docs.yml"]["jobs"]
    (public,) = [step["run"] for step in jobs["build"]["steps"] if step.get("id") == "address"]
    pattern = re.search(r"grep -q '\^(.+?)'", public)[1]
    extras = (ROOT / "mobileclip" / "extras.py").read_text(encoding="utf-8")
    (line,) = re.findall(r'^REPOSITORY = ".*"$', extras, re.MULTILINE)
    assert line.startswith(pattern) == bool(distribution()["REPOSITORY"])
    assert 'REPOSITORY = "https://forge.example/owner/name"'.startswith(pattern)
    assert jobs["deploy"]["needs"] == "build"
    assert "github.event_name == 'push'" in jobs["deploy"]["if"]
    assert "needs.build.outputs.public == 'yes'" in jobs["deploy"]["if"]
    assert "mkdocs build --strict" in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_nothing_is_published_before_all_tests_have_passed():
    jobs = WORKFLOWS["publish.yml"]["jobs"]
    assert jobs["tests"]["uses"] == "./.github/workflows/test.yml"
    assert "tests" in jobs["upload"]["needs"]
    assert jobs["build"]["needs"] == "tests"
    assert "tried" in jobs["upload"]["needs"]
    assert jobs["tried"]["needs"] == "build"
    matrix = jobs["tried"]["strategy"]["matrix"]
    assert (tuple(matrix["python"]), {*matrix["file"]}) == (environments.PYTHONS, {"*.whl", "*.tar.gz"})
    assert "workflow_call" in WORKFLOWS["test.yml"][True], "YAML reads `on` as a truth"


def test_every_room_is_there():
    assert [room for room in environments.ROOMS if not (ROOT / "tests" / room).exists()] == []


def test_a_requirement_is_asked_for_without_its_marker():
    assert environments._plain(Requirement("moto[s3]>=5; extra == 'test'")) == "moto[s3]>=5"
