import os
import sys
import types
from importlib import metadata
from pathlib import Path

import pytest

from mobileclip import build_model
from mobileclip.blocks import models, named_spec
from mobileclip.registry import MODULES, Registry, nearest, with_parts
from tests.errors import fails
from tests.plugins import install
from tests.preloaded import preloaded


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """A function that installs packages: kind, name and source of what each adds, by its name."""
    monkeypatch.syspath_prepend(tmp_path)

    def add(kind, **sources):
        for package, (name, source) in sources.items():
            install(tmp_path, package, kind, name, source)

    return add


def test_names_lead_to_values():
    registry = Registry("colour")
    registry.add("red", 1)
    assert registry.register("green")(2) == 2
    assert dict(registry) == {"red": 1, "green": 2}
    assert registry.resolve("red") == 1
    with fails(ValueError, "colour", "red"):
        registry.add("red", 2)

    for _ in range(2):  # a cell that runs twice registers twice

        @registry.register("mine")
        class Mine:
            pass

    assert registry["mine"] is Mine
    with fails(ValueError):
        registry.add("mine", 3)
    registry.add("mine", 3, replace=True)
    assert registry.register("mine", replace=True)(4) == registry["mine"] == 4


def test_what_is_installed_is_read_once_for_all_registries(monkeypatch):
    asked, whole = [], metadata.entry_points
    monkeypatch.setattr(metadata, "entry_points", lambda **choices: asked.append(choices) or whole(**choices))
    monkeypatch.syspath_prepend("another place")
    assert [list(Registry(kind)) for kind in ("first", "second", "third")] == [[], [], []]
    assert len(asked) == 1


def test_what_is_installed_later_is_found_by_whoever_looks_then(packages):
    for name, known in (("first", ["first"]), ("second", ["first", "second"])):
        packages("stain", **{f"{name}_stain_plugin": (name, "VALUE = 1\n")})
        assert sorted(Registry("stain")) == known


def test_an_unknown_name_suggests_the_nearest_or_lists_all():
    with fails(ValueError, "model", "mobileclip_s22", "did you mean 'mobileclip_s2'"):
        models.resolve("mobileclip_s22")
    registry = Registry("attention_backend")
    registry.add("sdpa", 1)
    with fails(ValueError, "attention", "backend 'x'", "known: sdpa"):
        registry.resolve("x")
    for wrong, said in (("rde", "did you mean 'red'?"), ("x", "see the list")):
        assert nearest(wrong, ["red", "blue"], otherwise="see the list") == said


def test_a_package_adds_names_by_entry_point_and_is_imported_for_its_own_alone(packages):
    packages("tint", wanted_plugin=("mint", "VALUE = 1\n"), other_plugin=("lime", "VALUE = 2\n"))
    registry = Registry("tint")
    assert registry["mint"] == 1
    assert ("wanted_plugin" in sys.modules, "other_plugin" in sys.modules) == (True, False)
    assert sorted(registry) == ["lime", "mint"]


def test_a_package_may_register_by_decorator_what_it_names_as_entry_point(packages, monkeypatch):
    """To load an entry point is to import its module, which registers by then."""
    registry = Registry("shade")
    monkeypatch.setitem(sys.modules, "shades", types.SimpleNamespace(registry=registry))
    packages("shade", dark=("dark", "import shades\n@shades.registry.register('dark')\nclass VALUE: ...\n"))
    assert list(registry) == ["dark"]


def test_a_broken_package_is_named_and_harms_nobody(packages):
    broken = ("torn", "raise RuntimeError('no such driver')\n")
    packages("hue", broken_plugin=broken, sound_plugin=("whole", "VALUE = 3\n"))
    registry = Registry("hue")
    registry.add("own", 1)
    assert (registry.resolve("own"), registry["whole"]) == (1, 3)
    with pytest.warns(UserWarning, match=r"torn.*broken_plugin 1\.0.*no such driver"):
        assert sorted(registry) == ["own", "whole"]
    with fails(ValueError, "torn", "broken_plugin 1.0", "no such driver"):
        registry.resolve("torn")


@pytest.mark.parametrize("source", ["VALUE = 2\n", "from tones import registry\nregistry.add('plain', 2)\nVALUE = 2\n"])
def test_a_package_with_a_name_that_is_taken_is_named_and_harms_nobody(packages, monkeypatch, source):
    registry, package = Registry("tone"), f"colliding_{len(source)}"
    registry.add("plain", 1)
    monkeypatch.setitem(sys.modules, "tones", types.SimpleNamespace(registry=registry))
    packages("tone", **{package: ("plain", source)})
    assert registry.resolve("plain") == 1
    with pytest.warns(UserWarning, match=rf"plain.*{package} 1\.0"):
        assert dict(registry) == {"plain": 1}


def test_of_two_packages_with_one_name_the_second_is_named(packages):
    packages("ink", a_plugin=("black", "VALUE = 1\n"), b_plugin=("black", "VALUE = 2\n"))
    registry = Registry("ink")
    assert registry["black"] == 1
    with pytest.warns(UserWarning, match=r"black.*b_plugin 1\.0"):
        assert len(registry) == 1


def test_names_of_other_libraries_are_understood_and_what_could_be_two_is_not_guessed():
    known = {"MobileCLIP-S2": "mobileclip_s2", "MobileCLIP2-L-14": "mobileclip2_l14", "MOBILECLIP_B": "mobileclip_b"}
    known |= {"MCi2": "mci2", "fastvit_mci2": "mci2", "FastViT-MCi4": "mci4"}
    assert [named_spec(name) for name in known] == [named_spec(name) for name in known.values()]
    registry = Registry("paint")
    registry.add("a_b", 1)
    registry.add("ab", 2)
    assert registry.resolve("ab") == 2
    with fails(ValueError, "paint", "A-B"):
        registry.resolve("A-B")


def test_a_model_is_built_with_other_fields():
    assert build_model("mci0", embedding_dim=96, drop_path=0.1).spec.embedding_dim == 96
    with fails(TypeError, "MCiSpec", "drop_pth", "did you mean 'drop_path'"):
        build_model("mci0", drop_pth=0.1)


def test_parts_of_a_module_survive_the_process_that_registered_them(tmp_path):
    """A checkpoint whose mixer is somebody's own is read by any command that is told where it is registered."""
    parts = Path(__file__).parents[1] / "examples" / "models" / "own_parts.py"
    write = "from own_parts import *; stage = StageSpec(dim=16, depth=1, mixer=PoolingSpec())\n"
    write += "text = MCtSpec(width=32, num_heads=2, depth=0, embedding_dim=32)\n"
    write += "image = MCiSpec(stages=(stage,), embedding_dim=32, input=ImageInput(size=64))\n"
    write += "encoders.save_model(DualEncoderSpec(image=image, text=text).build(), 'own.safetensors')"

    def python(*arguments, **environment):
        return preloaded().call("tests.preloaded:python", *arguments, folder=tmp_path, environment=environment)

    written = python("-c", f"import sys; sys.path.append({str(parts.parent)!r})\n{write}")
    assert written.status == 0, written.output
    info = ("-m", "mobileclip.cli", "info", "own.safetensors")
    alone = python(*info)
    assert alone.status == 2
    assert "unknown token mixer 'pooling'; known: " in alone.output
    assert "--import MODULE" in alone.output
    found = python(*info, **{MODULES: str(parts)})
    assert found.status == 0, found.output


def test_a_file_that_is_named_is_imported_wherever_it_lies(tmp_path, monkeypatch):
    """By this process, and, through its environment, by those that it starts."""
    monkeypatch.setattr("sys.path", [*sys.path])
    monkeypatch.setenv(MODULES, "")
    sources = {"named_parts": "", "told_parts": "", "lacking_parts": "import nothing_like_this\n"}
    named, told, lacking = (tmp_path / f"{name}.py" for name in sources)
    for path in (named, told, lacking):
        path.write_text(sources[path.stem])
    assert with_parts(["train", "--import", str(named), "s2"]) == ["train", "s2"]
    assert ("named_parts" in sys.modules, os.environ[MODULES]) == (True, str(named))
    monkeypatch.setenv(MODULES, str(told))
    assert len(Registry("colour")) == 0
    assert "told_parts" in sys.modules
    monkeypatch.chdir(tmp_path)
    with fails(ModuleNotFoundError, "nothing_like_this"):
        with_parts(["train", "--import", "lacking_parts"])
    for wrong, word in ((["--import=no_parts.py"], "no_parts.py"), (["train", "--import"], "")):
        with fails(ValueError, word):
            with_parts(wrong)
