"""Errors end with what to type next, and what they name exists."""

import re
import shlex

import pytest
import torch

from mobileclip.cli import main
from mobileclip.encoders import save_model
from tests.data.made_samples import encoded
from tests.encoders.small import SMALL, randomised

TINY = "`mobileclip {} --tiny`"
NEXT = [
    ("search 'a dog'", "create an index: `mobileclip index FOLDER`"),
    ("search 'a dog' --index nowhere", "give the folder of an index, or an indexed image folder"),
    ("dedup photos --model mobileclip_s22", "`mobileclip list`"),
    ("info mobileclip_s22", "did you mean 'mobileclip_s2' .* `mobileclip list`"),
    ("classify photos/0.jpg a -m frobnicate", "no similar name exists\\. .* `mobileclip list`"),
    ("classify photos/0.jpg a -m smal.safetensors", "did you mean 'small.safetensors' or 'there.safetensors'\\?"),
    ("classify photos/3.jpg a -m small.safetensors", "did you mean '2.jpg' or '1.jpg' or '0.jpg'\\?"),
    ("eval report --model mobileclip_s22", "did you mean 'mobileclip_s2' .*\\?"),
    ("train s22", "did you mean 's2'\\? All: `mobileclip recipes ls`"),
    ("train smal.py", "`mobileclip recipes ls` lists the published recipes"),
    ("train ther.py", "did you mean 'there.py' .*`mobileclip recipes ls` lists the published recipes"),
    ("train s2", TINY.format("train s2")),
    ("reinforce datacompdr12m", TINY.format("reinforce datacompdr12m")),
    ("finetune", "--model is missing: .* `mobileclip finetune --tiny`"),
    ("finetune -m small.safetensors", "--data is missing: .* `mobileclip finetune --tiny`"),
    ("train vit_b16_12m", "`--help` shows their titles"),
    ("train s2 nowhere.json", "write one: `mobileclip train s2 --show > nowhere.json`"),
    ("reinforce datacompdr12m --status -o nowhere", "start .* without `--status`"),
    ("recipes cp s2 -o there.py", "`--overwrite`"),
    ("embed photos -o there.npz -m small.safetensors", "`--overwrite`"),
    ("convert small.safetensors -o there.safetensors", "`--overwrite`"),
    ("export small.safetensors -o photos", "`--overwrite`"),
    ("classify photos/0.jpg a -m small.safetensors --device mps", "available: .*cpu. .* `--device cpu`"),
    ("runs photos", "`mobileclip train` writes this file"),
    ("data dedup photos -o kept.npy", "make scores: `mobileclip data score SHARDS -o photos`"),
    ("search a --import no_such_parts", "no module 'no_such_parts' in .*"),
]


@pytest.fixture(scope="session")
def small_place(tmp_path_factory):
    """A folder with pictures, a checkpoint, and files that are in the way."""
    folder = tmp_path_factory.mktemp("next")
    for name in ("photos", "home"):
        (folder / name).mkdir()
    for name in ("0.jpg", "1.jpg", "2.jpg"):
        (folder / "photos" / name).write_bytes(encoded(32, 32))
    for name in ("there.npz", "there.py", "there.safetensors"):
        (folder / name).write_text("x")
    save_model(randomised(SMALL), folder / "small.safetensors")
    return folder


@pytest.mark.parametrize(("line", "end"), NEXT, ids=[line for line, _ in NEXT])
def test_an_error_ends_with_what_to_type_next(line, end, small_place, capsys, monkeypatch):
    if "mps" in line and torch.backends.mps.is_available():
        pytest.skip("there is one")
    monkeypatch.chdir(small_place)
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(small_place / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    before = sorted(small_place.glob("[!h]*/**"))
    with pytest.raises(SystemExit) as ended:
        main(shlex.split(line))
    assert ended.value.code, "an error is no success"
    said = " ".join(f"{capsys.readouterr().err} {ended.value.code}".split())
    assert re.search(end, said), said
    assert "--device" not in line or len(said) < 300, "a device that is not there is told in a line"
    assert sorted(small_place.glob("[!h]*/**")) == before, "nothing was made"
