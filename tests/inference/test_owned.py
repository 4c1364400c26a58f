"""What was loaded stays as it was, whatever becomes of the file that it came from: a child process tries each way."""

import importlib
import os
import shutil
from pathlib import Path

import attrs
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mobileclip.encoders import ClassifierSpec, load_model, save_model
from mobileclip.export import ExportSpec, export_model, load_export
from mobileclip.inference import ModelIdentity
from mobileclip.inference.embedding import Embeddings, read_embeddings, write_embeddings
from mobileclip.reinforce import OpenClipTeacher, TransformersTeacher
from mobileclip.training.checkpoint import StateFile, read_state
from tests.encoders.small import SMALL, TEXT, inputs, randomised
from tests.export.models import CONVOLUTIONAL, pixels, seeing
from tests.preloaded import preloaded
from tests.reinforce.open_clip_models import write_tiny_models
from tests.reinforce.tiny_transformers import write_siglip

EXPORTS = ("onnx", "torch", "openvino", "executorch")
FOLDERS = ("open_clip_model", "transformers_model", *EXPORTS)
KINDS = ("native", "official", "stream", "plain_safetensors", "open_clip", "timm", "classifier", "state", "archive")
WAYS = ("save", "copy", "-o", "truncate")
SUFFIXES = {"archive": ".npz", "official": ".pt", "stream": ".pt", "open_clip": ".bin", "timm": ".bin"}
PACKAGES = {
    "onnx": ("onnx", "onnxruntime"),
    "openvino": ("openvino",),
    "executorch": ("executorch",),
    "open_clip_model": ("open_clip",),
    "transformers_model": ("transformers",),
}


def write(kind, place, seed):
    """Write what is loaded; another seed gives other numbers, of the same size."""
    if kind in EXPORTS:
        export_model(seeing(CONVOLUTIONAL, seed), ExportSpec(output=place, target=kind))
    elif kind == "transformers_model":
        write_siglip(place, seed=seed)
    elif kind == "open_clip_model":
        write_tiny_models(place, seed=seed)
    elif kind == "archive":
        rows = np.random.default_rng(seed).random((200, 24), dtype=np.float32)
        identity = ModelIdentity(weights_sha256="0" * 64, spec="{}", version="0")
        write_embeddings(place, Embeddings(model=identity, image=rows, image_paths=tuple(map(str, range(len(rows))))))
    elif kind == "state":
        numbers = torch.rand(3, 5000, generator=torch.Generator().manual_seed(seed))
        names = ("objective/w", "average/w", "optimizer/w/exp_avg")
        StateFile(tensors=dict(zip(names, numbers, strict=True)), metadata={}).write(place)
    elif kind == "classifier":
        save_model(randomised(ClassifierSpec(image=SMALL.image, num_classes=5), seed), place)
    elif kind in ("stream", "plain_safetensors"):
        save_model(randomised(SMALL, seed), place.with_suffix(".zip"), layout="official")
        tensors = torch.load(place.with_suffix(".zip"))
        if kind == "stream":
            torch.save(tensors, place, _use_new_zipfile_serialization=False)
        else:
            save_file(tensors, place)
    else:
        model = randomised(SMALL, seed)
        layout = "mobileclip" if kind == "native" else kind
        save_model(model.image_encoder if kind == "timm" else model, place, layout=layout)


def loaded(kind, place):
    """Load it, and return a function that gives numbers of all that was loaded."""
    if kind == "archive":
        found = read_embeddings(place)
        return lambda: found.image
    if kind == "state":
        tensors = read_state(place).tensors
        return lambda: torch.stack([tensors[name] for name in sorted(tensors)])
    if kind in EXPORTS:
        model = load_export(place, trust=True)
        images, (_, tokens) = pixels(CONVOLUTIONAL.image.input)[:2], inputs(CONVOLUTIONAL)
        return lambda: torch.cat([model.encode_image(images), model.encode_text(tokens)])
    images, tokens = inputs(SMALL)
    if kind in ("open_clip_model", "transformers_model"):
        if kind == "transformers_model":
            teacher = TransformersTeacher(model=str(place)).build()
        else:
            model, weights = (str(place / f"tiny_vit.{suffix}") for suffix in ("json", "safetensors"))
            teacher = OpenClipTeacher(model=model, pretrained=weights).build()
        small = (images[:, :, :32, :32] * 255).byte()
        return lambda: torch.cat([teacher.encode_images(small), teacher.encode_texts(["a cat", "two dogs"])])
    spec = {"timm": SMALL.image, "classifier": None}.get(kind, SMALL)
    model = load_model(place, None if kind in ("native", "classifier") else spec, fold=False)
    if kind in ("timm", "classifier"):
        return lambda: model(images)
    return lambda: torch.cat([model.encode_image(images), model.encode_text(tokens)])


def change(way, place, other):
    """Change the files that something was loaded from, and leave them the same files of the disk."""
    for path in [place] if place.is_file() else [path for path in place.rglob("*") if path.is_file()]:
        if way == "save":
            torch.save({"a": torch.ones(100)}, path)
        elif way == "copy":
            shutil.copyfile(other / path.relative_to(place) if path != place else other, path)
        else:
            os.truncate(path, 0)


def stays(kind):
    """Write two of a kind, load, change in each way, and compare: to be called in a process of its own."""
    suffix = "" if kind in FOLDERS else SUFFIXES.get(kind, ".safetensors")
    first, second = (Path(f"{kind}-{seed}{suffix}").absolute() for seed in (0, 1))
    for seed, place in enumerate((first, second)):
        write(kind, place, seed)
    with torch.inference_mode():
        for way in WAYS:
            place = Path(way).with_suffix(suffix)
            (shutil.copytree if first.is_dir() else shutil.copyfile)(first, place)
            answer = loaded(kind, place)
            before = np.array(answer())
            change(way, place, second)
            assert np.array_equal(before, np.array(answer())), f"the numbers changed with the file: {way}"
        assert not np.array_equal(before, np.array(loaded(kind, second)())), "both files are alike: nothing is tested"


@pytest.mark.parametrize("kind", [*KINDS, *(pytest.param(kind, marks=pytest.mark.slow) for kind in FOLDERS)])
def test_what_was_loaded_stays_whatever_becomes_of_the_file(kind, tmp_path):
    for package in PACKAGES.get(kind, ()):
        importlib.import_module(package)
    done = preloaded().call("tests.inference.test_owned:stays", kind, folder=tmp_path)
    assert done.status == 0, done.output


# 76 MB in many tensors, of which none is large.
WIDE = attrs.evolve(TEXT, width=512, num_heads=8, depth=6)


@pytest.mark.parametrize("layout", ["mobileclip", "official"])
def test_loading_takes_the_memory_of_one_model(layout, tmp_path):
    path = tmp_path / f"model{'.safetensors' if layout == 'mobileclip' else '.pt'}"
    model = WIDE.build()
    save_model(model, path, layout=layout)
    largest = max(tensor.nbytes for tensor in model.state_dict().values())
    done = preloaded().call("tests.inference.test_owned:prints_growth", str(path), folder=tmp_path)
    assert done.status == 0, done.output
    rest = 32 * 2**20  # modules, and what the allocator keeps
    assert int(done.output) <= path.stat().st_size + largest + rest


def prints_growth(path):
    """Print how many bytes a process needed beyond what it had, at most, to load a model."""
    load_model(path, WIDE, fold=False)  # imports what it needs
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = _resident("VmRSS")
    model = load_model(path, WIDE, fold=False)
    print(_resident("VmHWM") - before)
    del model


def _resident(name):
    lines = Path("/proc/self/status").read_text(encoding="ascii").split("\n")
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
