"""A model that many ask at once: every answer its own, whatever computes it, in other processes too."""

import copy
import importlib
import json
import logging
import os
import pickle
import shutil
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path

import pytest
import torch

import mobileclip
from mobileclip.data import Tokenizer
from mobileclip.export import ExportSpec, export_model
from mobileclip.inference import Form, OptimizedTower
from mobileclip.inference.forms import ReadyDualEncoder
from tests.errors import fails
from tests.export.litert import EXPORT
from tests.export.models import small_model
from tests.preloaded import preloaded

THREADS = 8
COMPUTED_BY = ["eager", "onnx", "openvino", "torch", "litert", "openvino program", "executorch", "compiled program"]
# Threads and copies of the others are asked by the contract suite of targets each time.
BY_DEFAULT = ["eager", "openvino", "openvino program"]
NEEDED = {"litert": "ai_edge_litert", "executorch": "executorch"}


@pytest.fixture(scope="session")
def exported(small_export):
    """What gives an export of a small model for a target."""

    def folder(target):
        importlib.import_module(NEEDED.get(target, "torch"))
        return EXPORT if target == "litert" else small_export(target)

    return folder


@pytest.fixture(scope="session")
def asked(exported):
    """What gives a model, computed by something, made once."""

    @cache
    def model(kind):
        if kind == "eager":
            return mobileclip.ImageTextModel(small_model(kind))
        if kind.endswith(" program"):
            return program(kind.partition(" ")[0])
        return mobileclip.load(exported(kind), trust=True)

    return model


def program(engine):
    """A small model with a program for each tower, whichever is the fastest here."""
    model = small_model(engine)
    size = model.spec.image.input.size
    images, texts = torch.rand(1, 3, size, size), Tokenizer(model.spec.text.input)(["two people"])
    towers = []
    for tower, inputs in ((model.image_encoder, images), (model.text_encoder, texts)):
        towers.append(OptimizedTower(tower, form=Form(engine=engine, precision="float32", max_batch_size=1)))
        towers[-1].compile_for(inputs)
    return mobileclip.ImageTextModel(ReadyDualEncoder(*towers).eval())


def soak(clip, requests):
    """Have eight threads ask, and check that each is given its own answer."""
    size = clip.transform.image_input.size
    pictures = torch.randint(0, 256, (20, 1, size, size, 3), dtype=torch.uint8)
    questions = [(clip.encode_text, name) for name in NAMES] + [(clip.encode_pixels, picture) for picture in pictures]
    answers = [ask(question) for ask, question in questions]
    together = threading.Barrier(THREADS)

    def one_thread(number):
        together.wait()
        for request in range(number, requests, THREADS):
            place = request * 7 % len(questions)
            ask, question = questions[place]
            torch.testing.assert_close(ask(question), answers[place], rtol=0, atol=1e-5)

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(one_thread, range(THREADS)))


NAMES = ("cat dog house tree boat car bird fish apple key lamp ring star moon cloud book clock chair bell leaf").split()


@pytest.mark.parametrize("kind", BY_DEFAULT)
def test_every_answer_is_its_own_and_a_copy_answers_beside_what_it_was_made_of(asked, kind):
    clip = asked(kind)
    soak(clip, 80)
    for other in (pickle.loads(pickle.dumps(clip)), copy.deepcopy(clip)):
        torch.testing.assert_close(other.encode_text("a cat"), clip.encode_text("a cat"), rtol=0, atol=1e-6)
        soak(other, 40)


@pytest.mark.slow
@pytest.mark.parametrize("kind", COMPUTED_BY)
def test_every_answer_is_its_own_of_thousands(asked, kind):
    soak(asked(kind), 2000)


def answered(pickled, text):
    """Write what a model answers that came from another process beside it."""
    torch.save(pickle.loads(Path(pickled).read_bytes()).encode_text(text), f"{pickled}.answer")


@pytest.mark.parametrize(
    "kind", [pytest.param(one, marks=[pytest.mark.slow] * (one != "openvino")) for one in COMPUTED_BY]
)
def test_a_model_goes_to_another_process(asked, kind, tmp_path):
    """To one that has imported what the library needs to start, and no runtime."""
    clip, pickled = asked(kind), tmp_path / "model.pickle"
    pickled.write_bytes(pickle.dumps(clip))
    done = preloaded().call("tests.export.test_threads:answered", str(pickled), "a cat", folder=tmp_path)
    assert done.status == 0, done.output
    answer = torch.load(f"{pickled}.answer")
    torch.testing.assert_close(answer, clip.encode_text("a cat"), rtol=0, atol=1e-5)


def test_a_model_whose_files_have_changed_is_not_unpickled(exported, tmp_path):
    folder = shutil.copytree(exported("onnx"), tmp_path / "export")
    pickled = pickle.dumps(mobileclip.load(folder))
    shutil.copy(folder / "image.onnx", folder / "text.onnx")
    with fails(ValueError, "text.onnx"):
        pickle.loads(pickled)


_COUNTING = """
import json, os, sys, time, warnings
warnings.simplefilter("ignore")
import torch, mobileclip

def worked():
    spent = {}
    for task in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{task}/schedstat") as file:
            spent[task] = int(file.read().split()[0])
    return spent

def at_work(of_torch, num_threads):
    torch.set_num_threads(of_torch)
    trust = {} if sys.argv[1] == "icons" else {"trust": True}
    clip = mobileclip.load(sys.argv[1], num_threads=num_threads, **trust)
    size = clip.transform.image_input.size
    pictures = torch.zeros(16, size, size, 3, dtype=torch.uint8)
    # Threads of PyTorch wait for work in a loop for a while after they had some.
    time.sleep(0.5)
    before = worked()
    for _ in range(8):
        clip.encode_pixels(pictures)
    spent = [spent - before.get(task, 0) for task, spent in worked().items()]
    return sum(one > 0.04 * sum(spent) for one in spent)

print([at_work(*asked) for asked in json.loads(sys.argv[2])])
"""


TOGETHER = [(2, 1), (1, None), (1, 2)]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="there is no /proc")
@pytest.mark.parametrize(
    ("kind", "processes"),
    [
        *((one, [TOGETHER]) for one in ("onnx", "openvino", "eager", "torch")),
        # Of which a process has one number of threads.
        *((one, [[(2, 1)], [(1, 2)]]) for one in ("litert", "executorch")),
    ],
)
def test_a_model_is_computed_by_as_many_threads_as_it_is_given(kind, processes, export_once, tmp_path):
    """By the time that the system says they computed, for each pair of PyTorch's number and the model's."""
    model, counts = {"eager": "icons", "litert": EXPORT}.get(kind), []
    if model is None:  # the packaged model has work for more than one thread
        model = export_once(f"icons_{kind}", lambda out: export_model("icons", ExportSpec(output=out, target=kind)))
    for pairs in processes:
        arguments = ("-c", _COUNTING, str(model), json.dumps(pairs))
        done = preloaded().call("tests.preloaded:python", *arguments, folder=tmp_path)
        assert done.status == 0, done.output
        counts += json.loads(done.output.splitlines()[-1])
    *given, more = counts
    assert set(given) == {1}
    assert more > 1


def test_pytorch_has_its_threads_back_after_a_call():
    before = torch.get_num_threads()
    mobileclip.load("icons", num_threads=before + 1).encode_text("a cat")
    assert torch.get_num_threads() == before


@pytest.mark.slow
def test_executorch_has_one_number_of_threads_a_process(exported):
    first = mobileclip.load(exported("executorch"), trust=True)
    with fails(ValueError, "num_threads", "17"):
        mobileclip.load(exported("executorch"), trust=True, num_threads=17)
    assert first.encode_text("a cat").isfinite().all()


@pytest.mark.extra("openvino", "litert")
def test_exports_that_are_loaded_at_once_leave_loggers_and_streams_as_they_were(exported):
    """Replacing a model while it answers: what was silenced for one may not stay so by another."""

    def process():
        return logging.root.manager.disable, sys.stdout, os.fstat(2).st_ino, logging.getLoggerClass(), warnings.filters

    load = partial(mobileclip.load, trust=True)
    folders = [exported(target) for target in ("openvino", "torch", "litert", "openvino", "litert")]
    # The first time, libraries are imported, which have filters of their own.
    for folder in folders[:3]:
        load(folder)
    before = copy.copy(process())
    with ThreadPoolExecutor(6) as pool:
        for clip in pool.map(load, folders * 2):
            assert clip.encode_text("a cat").isfinite().all()
    assert process() == before


def test_what_a_runtime_cannot_do_is_no_fault_of_the_export(exported):
    """Files are checked when they are opened, so that advice to check them would send people the wrong way."""
    clip = mobileclip.load(exported("onnx"))

    def fail(_):
        raise RuntimeError("the device is lost")

    clip.model.text_encoder._run = fail
    with fails(ValueError, "text.onnx", "RuntimeError", "the device is lost") as caught:
        clip.encode_text("a cat")
    assert "verify" not in str(caught.value)
