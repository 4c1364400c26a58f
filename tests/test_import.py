"""Importing the library: nothing slow, nothing read, nothing opened."""

import subprocess
import sys

import pytest

from mobileclip import list_models
from tests.preloaded import preloaded

HEAVY = {
    *("tokenizers", "ftfy", "webdataset", "cattrs", "rich", "tyro", "safetensors"),
    *("timm", "open_clip", "torchvision", "xformers", "ray", "huggingface_hub", "matplotlib", "transformers", "onnx"),
    *("simplejpeg", "zlib_ng", "peft", "tensorboard", "fsspec"),
}


def python(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    return done.stdout.strip()


@pytest.fixture
def after_torch(tmp_path):
    """What a process prints that has imported torch, and nothing of this library."""

    def run(code):
        done = preloaded("torch").call("tests.preloaded:python", "-c", code, folder=tmp_path)
        assert done.status == 0, done.output
        return done.output.strip()

    return run


def test_no_slow_or_optional_library_comes_along(after_torch):
    code = "import torch, sys; before = set(sys.modules); from mobileclip import *; print(*set(sys.modules) - before)"
    assert not HEAVY & set(after_torch(code).split())


def test_rooms_that_need_no_pytorch_come_without_it():
    """A child process, a benchmark or a script that only stores, prints or waits starts in a tenth of the time."""
    subpackages = ("storage", "terminal.interruption", "serialization", "registry", "inputs", "progress", "processes")
    code = f"import sys, {', '.join(f'mobileclip.{package}' for package in subpackages)}; print('torch' in sys.modules)"
    assert python(code) == "False"


def test_no_file_is_read_and_no_compiler_imported(after_torch):
    """Beyond modules and the stubs of folders: the vocabulary, specs and entry points are read when they are needed.

    What computes with shapes, sympy, takes PyTorch a second to import.
    """
    code = """
import sys, torch, einops, PIL.Image, PIL.ImageOps, numpy, attr, filelock
opened, sys.dont_write_bytecode = [], True  # where the package was just installed, there is none yet
sys.addaudithook(lambda event, arguments: opened.append(str(arguments[0])) if event == "open" else None)
import mobileclip.blocks, mobileclip.encoders, mobileclip.data, mobileclip.losses, mobileclip.training
from mobileclip import *
print(*(path for path in opened if not path.endswith((".py", ".pyc", ".pyi")) and "__pycache__" not in path))
from mobileclip.encoders.checkpoints import FORMS, tensor_shapes
assert all(len(tensor_shapes(specs.mci0(), form)) for form in FORMS)
assert not {"torch._dynamo.eval_frame", "sympy"} & sys.modules.keys()
"""
    assert not after_torch(code)


def test_adds_little_to_importing_torch():
    """At most two fifths of torch's own work; the processor's time, and any of several runs: others only ever add."""
    code = """
import time
start = time.process_time()
import torch
middle = time.process_time()
from mobileclip import *
print((time.process_time() - middle) / (middle - start))
"""
    assert any(float(python(code)) < 0.4 for _ in range(10))


@pytest.mark.parametrize(
    ("names", "subpackages"),
    [
        ("data.augmentation.policy import datacompdr_augmentation", {"data", "data.augmentation"}),
        ("data.images.transform import ImageTransform, load_image", {"data", "data.images"}),
        ("losses import ReinforcedLossSpec", {"losses"}),
    ],
)
def test_a_part_alone_imports_few_modules(after_torch, names, subpackages):
    code = f"import sys; from mobileclip.{names}; print(*(name for name in sys.modules if name[:11] == 'mobileclip.'))"
    imported = [name.split(".", 1)[1] for name in after_torch(code).split()]
    assert len(imported) <= 40, imported
    both = {name for package in imported for name in (package, ".".join(package.split(".")[:2]))}
    heavier = {"encoders", "inference", "datasets", "training", "reinforce", "evaluation", "export", "data.loading"}
    assert not (heavier - subpackages) & both


def test_names_and_subpackages_are_there_and_imported_when_they_are_asked_for(after_torch):
    code = """
import sys, mobileclip
subpackages = "collections data datasets engines evaluation export losses recipes reinforce storage".split()
before = [package for package in subpackages if f"mobileclip.{package}" in sys.modules]
assert not {"losses", "evaluation", "reinforce", "export", "collections"} & set(before), before
assert {*subpackages, *mobileclip.__all__} <= {*dir(mobileclip)}
assert all(getattr(mobileclip, package).__name__ == f"mobileclip.{package}" for package in subpackages)
assert [name for name in mobileclip.__all__ if not hasattr(mobileclip, name)] == []
assert not any(hasattr(mobileclip, name) for name in ("nothing", "_nothing", "nothing.below"))
print(mobileclip.losses.ReinforcedLoss.__name__, callable(mobileclip.specs.mci2))
try:
    mobileclip.lossses
except AttributeError as error:
    print(error)
"""
    assert after_torch(code) == "ReinforcedLoss True\nmodule 'mobileclip' has no attribute 'lossses'"


def test_models_are_listed_by_name():
    assert {"mobileclip_s0", "mci0", "text_mct", "icons"} <= set(list_models())
    assert list_models("MobileCLIP_S?") == [f"mobileclip_s{number}" for number in range(5)]
    assert "icons" in list_models(pretrained=True)
    assert "mci0" not in list_models(pretrained=True)


@pytest.mark.parametrize(
    ("names", "model"),
    [
        *(("build_model", "build_model('mci0')"), ("blocks import build_model", "build_model('mci0')")),
        *(("blocks import image_encoders", "image_encoders['mci0'].build()"), ("specs", "specs.mci0().build()")),
        ("load", "load('icons').model.image_encoder"),
        ("build_model, list_models", "build_model(list_models('mci0')[0])"),
    ],
)
def test_models_are_known_whatever_is_imported_first(after_torch, names, model):
    names = f".{names}" if " import " in names else f" import {names}"
    assert after_torch(f"from mobileclip{names}; print(type({model}).__name__)") == "MCi"
