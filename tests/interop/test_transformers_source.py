"""Which model of transformers is meant by a name or a folder."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch

from mobileclip.reinforce import TransformersTeacher
from tests.errors import fails
from tests.lazily import lazily
from tests.reinforce.tiny_transformers import write_siglip

transformers = lazily("transformers")


@pytest.mark.parametrize("revision", [None, "v1"])
def test_a_name_on_the_hub(revision, monkeypatch):
    asked, name = [], "google/siglip2-base-patch16-224"

    def away(model, **options):
        asked.append((model, options))
        raise OSError("no connection")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", away)
    with pytest.raises(ValueError, match=name):
        TransformersTeacher(model=name, revision=revision).build()
    assert asked == [(name, {"revision": revision or "main", "trust_remote_code": False})]


def test_what_is_neither_a_folder_nor_a_name():
    for model in ("siglip", "a/b/c", "./siglip", "/siglip", "~/siglip", "../siglip", ""):
        with fails(ValueError, model or "model"):
            TransformersTeacher(model=model).build()


def test_a_folder_is_called_by_its_name_and_its_weights(tmp_path, monkeypatch):
    write_siglip(tmp_path / "models" / "mine")
    monkeypatch.chdir(tmp_path)
    teacher = TransformersTeacher(model="models/mine").build()
    assert teacher.name == f"mine-{teacher.weights_sha256[:8]}"
    with fails(ValueError, "revision='main'"):
        TransformersTeacher(model="models/mine", revision="main").build()


@pytest.mark.slow
def test_threads_that_load_at_once_leave_torch_as_it_was(tmp_path):
    source = TransformersTeacher(model=str(write_siglip(tmp_path / "mine")))
    begin, linspace = Barrier(4), torch.linspace
    level = transformers.utils.logging.get_verbosity()

    def load(_):
        begin.wait()
        return source.build().weights_sha256

    with ThreadPoolExecutor(4) as pool:
        assert len({*pool.map(load, range(8))}) == 1
    assert torch.linspace is linspace
    assert transformers.utils.logging.get_verbosity() == level
