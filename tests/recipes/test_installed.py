"""Every recipe runs where the package is installed from its wheel, in an empty folder, with no clone beside it."""

import importlib
import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from mobileclip.recipes import recipe_files

pytestmark = pytest.mark.slow  # a wheel is built, and an environment for it
ROOT = Path(__file__).parents[2]
NAMES = sorted(recipe_files())
SHOW_ALL = """
import json, runpy, sys
from pathlib import Path
import mobileclip
from mobileclip.recipes import recipe_files
from mobileclip.recipes.files import copy_recipe, run_file
sys.path.remove("")
for name in recipe_files():
    copy = copy_recipe(name, Path.cwd())
    row = [*runpy.run_path(str(copy), run_name=name).get("ROWS", ())][:1]
    run_file(copy, [*row, "--tiny", "--show"], program=name)
print(json.dumps([str(Path(mobileclip.__file__).parent), *recipe_files()]))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder of programs of an environment that has the wheel, and this environment's other packages."""
    place = tmp_path_factory.mktemp("installed")
    programs = place / "venv" / "bin"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    options = ["--no-deps", "--no-index", "--no-build-isolation", "--no-cache-dir"]
    subprocess.run([*pip, "wheel", *options, "--wheel-dir", place / "dist", ROOT], check=True)
    venv.create(place / "venv", with_pip=False, symlinks=True)
    own = run(programs / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", folder=place)
    # Files that add folders to the path, such as that of the clone, are read in an environment's own folder alone.
    Path(own.strip(), "others.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    wheels = (place / "dist").glob("*.whl")
    command = [*pip, "--python", programs / "python", "install", "--ignore-installed", *options, *wheels]
    subprocess.run(command, check=True)
    return programs


def run(program, *arguments, folder):
    """Return what a program prints that ends well."""
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [program, *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False, timeout=3000)
    assert done.returncode == 0, (*command, done.stderr[-3000:])
    return done.stdout


def test_every_recipe_states_its_run_from_a_copy_without_a_clone(installed, tmp_path):
    place, *names = json.loads(run(installed / "python", "-c", SHOW_ALL, folder=tmp_path).splitlines()[-1])
    assert Path(place).is_relative_to(installed.parent)
    assert names == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_and_the_command_run_without_a_clone(installed, tmp_path, name):
    row = [*getattr(importlib.import_module(f"recipes.{name}"), "ROWS", ())][:1]
    listed = run(installed / "mobileclip", "recipes", "ls", folder=tmp_path).splitlines()
    commands = [line.partition("\t")[0].split()[1:] for line in listed if line.startswith("mobileclip ")]
    typed = {"python": [f"{name}.py"], "mobileclip": commands[NAMES.index(name)]}
    if typed["mobileclip"] == ["eval"]:
        typed.pop("mobileclip")  # the command without --tiny
    for program, words in typed.items():
        (tmp_path / program).mkdir()
        run(installed / "mobileclip", "recipes", "cp", name, "-o", ".", folder=tmp_path / program)
        run(installed / program, *words, *row, "--tiny", folder=tmp_path / program)
