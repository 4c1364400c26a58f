import gc
import logging
import os
import random
import signal
import sys
import zlib
from collections import Counter
from contextlib import contextmanager
from functools import cache

import filelock
import numpy as np
import pytest
import torch
from hypothesis import settings

from mobileclip.encoders import save_model
from tests.collections.pictures import telling
from tests.encoders.small import SMALL, randomised
from tests.extras import NOT_INSTALLED, Missing
from tests.golden.checkpoints import golden

# How long an example takes says how busy the machine is.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")

# A shell that puts the tests into the background has them, and all that they start, ignore Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# After which a test that is marked `slow` fails; pyproject.toml has the time of the others.
SLOW_SECONDS = 3600

# Export targets that `make test` does not install.
TARGETS_OF_EXTRAS = {"openvino", "executorch", "coreml", "litert"}

# The device of tests marked `gpu`. `GPU_TESTS_ON=cpu pytest -m gpu` tries those that run elsewhere too.
GPU = os.environ.get("GPU_TESTS_ON", "cuda")


def pytest_addoption(parser):
    told = "what is installed: as by make test-core, test or test-full; a test whose extra is not is skipped"
    parser.addoption("--environment", choices=tuple(NOT_INSTALLED), default="test", help=told)


def pytest_configure(config):
    config.missing = Missing(config.option.environment)
    sys.meta_path.append(config.missing)


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Ten thousand tests are no garbage: none is looked for among them while they are collected, nor while they run.

    What tests leave is looked for less often than after every 700 objects, which takes a twentieth of the time.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.set_threshold(10_000)
        gc.enable()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """Files with few tests come first: most have whole runs in them, and must not be the last of a process."""
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.timeout(SLOW_SECONDS))
    num_tests = Counter(item.path for item in items)
    items.sort(key=lambda item: num_tests[item.path])


def pytest_unconfigure(config):
    gc.unfreeze()
    sys.meta_path.remove(config.missing)


def pytest_runtest_setup(item):
    item.config.missing.require(extra for marker in item.iter_markers("extra") for extra in marker.args)
    choices = item.callspec.params.values() if hasattr(item, "callspec") else ()
    named = {one.partition(" ")[0] for one in choices if isinstance(one, str)}  # a target is called as its extra
    item.config.missing.require(named & TARGETS_OF_EXTRAS)
    is_moved = GPU != "cuda" and "gpu" in getattr(item, "fixturenames", ())
    if item.get_closest_marker("gpu") and not is_moved and not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")


# Another one than code and tests choose themselves: two models that are built alike by chance would hide a difference.
SEED = 2311


def seed_all(seed):
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - of whatever draws from it
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


@contextmanager
def seeded_apart(name):
    """Seed with a name, and leave the generators as they were: what is drawn depends on nothing that ran before."""
    before = random.getstate(), np.random.get_state(), torch.default_generator.get_state()  # noqa: NPY002
    seed_all(zlib.crc32(name.encode()))
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        torch.default_generator.set_state(before[2])


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    """What a file draws when it is imported is of its name."""
    with seeded_apart(collector.nodeid):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef, request):
    """What a fixture draws that several tests share is of its name, whichever of them needs it first."""
    if fixturedef.scope == "function":
        return (yield)
    with seeded_apart(f"{fixturedef.baseid} {fixturedef.argname} {getattr(request, 'param_index', 0)}"):
        return (yield)


@pytest.fixture(autouse=True)
def seeded():
    """What a test draws, and a fixture of its own, is the same in every run."""
    seed_all(SEED)


@pytest.fixture
def gpu():
    """The device of a test marked `gpu`."""
    return torch.device(GPU)


@pytest.fixture(scope="session", autouse=True)
def state_of_its_own(tmp_path_factory):
    """What programs remember of what their user did is not the user's who runs the tests."""
    os.environ["XDG_STATE_HOME"] = str(tmp_path_factory.mktemp("state"))


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_the_disk():
    """No test cuts the power, so none waits until what it writes is on the disk; those that look at it see it asked."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture
def another_machine(monkeypatch, tmp_path):
    """Where nothing is remembered of what was written here."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another machine"))


@pytest.fixture(autouse=True)
def root_level_as_before():
    """Recipes that are run in the tests' own process may make the root logger quieter."""
    level = logging.getLogger().level
    yield
    logging.getLogger().setLevel(level)


@pytest.fixture(scope="module")
def one_thread():
    """Models as small as those of tests gain nothing from a second thread, and wait long for it on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def small_file(tmp_path_factory):
    """A checkpoint of a small model, in the native layout and in training form."""
    path = tmp_path_factory.mktemp("small") / "small.safetensors"
    save_model(randomised(SMALL), path)
    return path


@pytest.fixture(scope="session")
def telling_file(tmp_path_factory):
    """A checkpoint of a small model that tells pictures apart."""
    path = tmp_path_factory.mktemp("telling") / "telling.safetensors"
    save_model(telling(), path)
    return path


@pytest.fixture(scope="session")
def s0_file(tmp_path_factory):
    """A full-size checkpoint in the official layout, with the golden weights."""
    path = tmp_path_factory.mktemp("checkpoints") / "mobileclip_s0.pt"
    torch.save(golden("apple_mobileclip_s0").state(), path)
    return path


@pytest.fixture(scope="session")
def s0_shapes(tmp_path_factory):
    """The names and shapes of that checkpoint, with zeros."""
    return golden("apple_mobileclip_s0").write_shapes(tmp_path_factory.mktemp("shapes") / "s0.safetensors")


@pytest.fixture(scope="session")
def clip2_s0_file(tmp_path_factory):
    """A full-size checkpoint in open_clip's layout, with the golden weights, whose image projection has a bias."""
    path = tmp_path_factory.mktemp("checkpoints") / "open_clip_pytorch_model.bin"
    torch.save(golden("openclip_MobileCLIP2-S0").state(), path)
    return path


@pytest.fixture(scope="session")
def export_once(state_of_its_own, tmp_path_factory):
    """What gives an export that nobody changes, by name: whichever process of the run needs it first, writes it."""
    from mobileclip.export.running import remember_export

    place = tmp_path_factory.getbasetemp()
    place = place.parent if "PYTEST_XDIST_WORKER" in os.environ else place
    (place / "exports").mkdir(exist_ok=True)
    state = os.environ["XDG_STATE_HOME"]

    @cache
    def folder(name, write):
        out = place / "exports" / name
        with pytest.MonkeyPatch.context() as patch, filelock.FileLock(f"{out}.lock"):
            patch.setenv("XDG_STATE_HOME", state)
            if not out.exists():
                write(out)
            remember_export(out)
        return out

    return folder


@pytest.fixture(scope="session")
def small_export(export_once):
    """What gives both towers of `small_model(target)` for a target, with everything as it is by default."""
    from mobileclip.export import ExportSpec, export_model
    from tests.export.models import small_model

    def folder(target, seed=0):
        def write(out):
            export_model(small_model(target, seed), ExportSpec(output=out, target=target), show_progress=False)

        return export_once(f"{target}_{seed}", write)

    return cache(folder)


@pytest.fixture
def generating(monkeypatch):
    """open_clip's `generate`, which it switches off where transformers has no beam search any more."""
    import open_clip
    import transformers

    monkeypatch.setattr(open_clip.coca_model, "_has_transformers", True)
    for kind, name in (("top_p", "TopPLogitsWarper"), ("top_k", "TopKLogitsWarper")):
        monkeypatch.setitem(open_clip.coca_model.GENERATION_TYPES, kind, getattr(transformers, name))
    for name in (
        *("LogitsProcessorList", "MinLengthLogitsProcessor", "RepetitionPenaltyLogitsProcessor"),
        *("MaxLengthCriteria", "StoppingCriteriaList"),
    ):
        monkeypatch.setattr(open_clip.coca_model, name, getattr(transformers, name), raising=False)
