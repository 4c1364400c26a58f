import sys
import types

import pytest

from mobileclip.blocks import models
from mobileclip.registry import Registry


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
