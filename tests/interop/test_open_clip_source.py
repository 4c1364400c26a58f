"""What models of open_clip are called, and that weights are read within bounds before open_clip reads them."""

import json
import sys

import pytest
import torch

from mobileclip.extras import install
from mobileclip.interop import OpenClipSource, load_open_clip, transformers_package
from tests.errors import fails

SHA256 = "0123456789abcdef" * 4
CONFIG = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "patch_size": 16, "head_width": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def test_names_are_the_published_ones_or_those_of_files_with_their_weights(tmp_path):
    (tmp_path / "mine.pt").write_bytes(b"weights")
    file, config = str(tmp_path / "mine.pt"), str(tmp_path / "mine.json")
    for model, pretrained, name in (
        ("ViT-B-32", "openai", "ViT-B-32/openai"),
        ("ViT-B-32", file, "ViT-B-32/mine-01234567"),
        (config, file, "mine-01234567"),
        (str(tmp_path / "other.json"), file, "other/mine-01234567"),
        ("hf-hub:owner/name", None, "hf-hub:owner/name"),
        (f"local-dir:{tmp_path / 'folder'}", None, "folder-01234567"),
    ):
        assert OpenClipSource(model=model, pretrained=pretrained).name(SHA256) == name


@pytest.mark.parametrize("nested", [True, False])
def test_an_architecture_may_be_a_file_alone_or_with_its_preprocessing(nested, tmp_path):
    import open_clip

    small = open_clip.CLIP(**CONFIG)
    torch.save(small.state_dict(), tmp_path / "mine.pt")
    whole = {"model_cfg": CONFIG, "preprocess_cfg": {"mean": [0.1, 0.2, 0.3]}} if nested else CONFIG
    (tmp_path / "mine.json").write_text(json.dumps(whole), encoding="utf-8")
    source = OpenClipSource(model=str(tmp_path / "mine.json"), pretrained=str(tmp_path / "mine.pt"))
    loaded = load_open_clip(source)
    assert loaded.name == f"mine-{loaded.weights_sha256[:8]}"
    assert (tuple(loaded.preprocess["mean"]) == (0.1, 0.2, 0.3)) == nested
    torch.testing.assert_close(dict(loaded.model.state_dict()), dict(small.state_dict()), rtol=0, atol=0)


@pytest.mark.parametrize("suffix", [".pt", ".npz", pytest.param(".npy", marks=pytest.mark.slow)])
def test_files_of_torch_are_read_by_the_reader_of_this_library_and_those_of_numpy_are_not(suffix, tmp_path):
    path = tmp_path / f"mine{suffix}"
    path.write_bytes(b"torn")
    with fails(ValueError, "ViT-B-32 with the weights") as raised:
        load_open_clip(OpenClipSource(model="ViT-B-32", pretrained=str(path)))
    assert ("cannot be used as a checkpoint" in str(raised.value)) == (suffix == ".pt")


def test_who_needs_transformers_is_told_what_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with fails(ImportError, f"needs transformers: `{install('transformers')}`"):
        transformers_package()
