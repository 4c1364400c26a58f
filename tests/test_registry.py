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
