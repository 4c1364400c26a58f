import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from mobileclip.blocks import models
from mobileclip.registry import MODULES, Registry, nearest, with_parts


def test_names_lead_to_values():
    registry = Registry("colour")
    registry.add("red", 1)
    assert registry.register("green")(2) == 2
    assert dict(registry) == {"red": 1, "green": 2}
    assert registry.resolve("red") == 1


def test_a_name_is_taken_once():
    registry = Registry("colour")
    registry.add("red", 1)
    with pytest.raises(ValueError, match="colour 'red' is registered already"):
        registry.add("red", 2)


def test_an_unknown_name_suggests_the_nearest_or_lists_all():
    with pytest.raises(ValueError, match="unknown model 'mobileclip_s22'; did you mean 'mobileclip_s2'"):
        models.resolve("mobileclip_s22")
    registry = Registry("attention_backend")
    registry.add("sdpa", 1)
    with pytest.raises(ValueError, match="unknown attention backend 'x'; known: sdpa"):
        registry.resolve("x")


def test_what_is_said_where_no_name_is_near_can_be_chosen():
    assert nearest("rde", ["red", "blue"], otherwise="see the list") == "did you mean 'red'?"
    assert nearest("x", ["red", "blue"], otherwise="see the list") == "see the list"


def test_a_package_adds_names_by_entry_point(tmp_path, monkeypatch):
    (tmp_path / "plugin.py").write_text("VALUE = 42\n")
    info = tmp_path / "plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[mobileclip.colour]\nblue = plugin:VALUE\n")
    monkeypatch.syspath_prepend(tmp_path)
    registry = Registry("colour")
    assert registry["blue"] == 42
    assert list(registry) == ["blue"]


def test_a_package_may_register_by_decorator_what_it_names_as_entry_point(tmp_path, monkeypatch):
    """To load an entry point is to import its module, which registers by then."""
    registry = Registry("shade")
    monkeypatch.setitem(sys.modules, "shades", types.SimpleNamespace(registry=registry))
    (tmp_path / "dark.py").write_text("import shades\n@shades.registry.register('dark')\nclass Dark: ...\n")
    (tmp_path / "other.py").write_text("class Dark: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    for package, taken in (("dark", False), ("other", True)):
        info = tmp_path / f"{package}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[mobileclip.shade]\ndark = {package}:Dark\n")
        registry._entry_points_read = False
        if taken:
            with pytest.raises(ValueError, match="shade 'dark' is registered already"):
                list(registry)
        else:
            assert list(registry) == ["dark"]


def test_parts_of_a_module_survive_the_process_that_registered_them(tmp_path):
    """A checkpoint whose mixer is somebody's own is read by any command that is told where it is registered."""
    parts = Path(__file__).parents[1] / "examples" / "models" / "own_parts.py"
    write = "from own_parts import *; stage = StageSpec(dim=16, depth=1, mixer=PoolingSpec())\n"
    write += "text = MCtSpec(width=32, num_heads=2, depth=0, embedding_dim=32)\n"
    write += "image = MCiSpec(stages=(stage,), embedding_dim=32, input=ImageInput(size=64))\n"
    write += "encoders.save_model(DualEncoderSpec(image=image, text=text).build(), 'own.safetensors')"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}

    def python(*arguments, **others):
        return subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=tmp_path, env=environment | others, capture_output=True, text=True, check=False,
        )  # fmt: skip

    written = python("-c", f"import sys; sys.path.append({str(parts.parent)!r})\n{write}")
    assert written.returncode == 0, written.stderr
    info = ("-m", "mobileclip.cli", "info", "own.safetensors")
    alone = python(*info)
    assert alone.returncode == 2
    assert "unknown token mixer 'pooling'; known: " in alone.stderr
    assert "with --import MODULE" in alone.stderr
    found = python(*info, **{MODULES: str(parts)})
    assert found.returncode == 0, found.stderr


def test_modules_that_lack_another_one_say_so(tmp_path, monkeypatch):
    (tmp_path / "lacking_parts.py").write_text("import nothing_like_this\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path])
    with pytest.raises(ModuleNotFoundError, match="nothing_like_this"):
        with_parts(["train", "--import", "lacking_parts"])
    with pytest.raises(ValueError, match=r"no_parts\.py cannot be imported: there is no module 'no_parts'"):
        with_parts(["--import=no_parts.py"])
