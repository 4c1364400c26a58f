"""Which model of transformers is meant: a folder, or a name on the hub; nothing is fetched."""

import pytest

from mobileclip.interop.transformers_models import TransformersSource
from tests.errors import fails


@pytest.mark.parametrize("revision", [None, "v1"])
def test_a_name_on_the_hub(revision):
    source = TransformersSource(model="google/siglip2-base-patch16-224", revision=revision)
    assert not source.is_folder
    assert source.name("0" * 64) == "google/siglip2-base-patch16-224"
    assert source.options() == {"revision": revision or "main", "trust_remote_code": False}


@pytest.mark.parametrize("model", ["siglip", "a/b/c", "./siglip", "/siglip", "~/siglip", "../siglip"])
def test_what_is_neither_a_folder_nor_a_name(model):
    with fails("interop.neither-folder-nor-owner", model):
        TransformersSource(model=model)
    with pytest.raises(ValueError, match="model"):
        TransformersSource(model="")


def test_a_folder_is_called_by_its_name_and_its_weights(tmp_path, monkeypatch):
    (tmp_path / "models" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    source = TransformersSource(model="models/mine")
    assert source.is_folder
    assert source.name("0123456789abcdef") == "mine-01234567"
    with pytest.raises(ValueError, match="is a folder, which has no revision 'main'; leave it out"):
        TransformersSource(model="models/mine", revision="main")
