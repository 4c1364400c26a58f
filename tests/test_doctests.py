"""Every public name of the subpackages below shows how it is used, in an example that runs."""

import doctest
import importlib
import inspect
from typing import get_origin

import pytest
import torch
from torch import nn

import mobileclip
from tests.once import programs_read_once

# Of the first subpackages every public name, of the others every spec.
SUBPACKAGES = (
    "mobileclip",
    *(f"mobileclip.{name}" for name in ("blocks", "reparam", "encoders", "losses", "interop", "testing")),
)
SUBPACKAGES_OF_SPECS = (
    *(f"mobileclip.{name}" for name in ("inputs", "data", "reinforce", "evaluation", "export", "training")),
    *("mobileclip.training.finetuning", "mobileclip.training.finetuning.run"),
)
SPECS = ("Spec", "Schedule", "ImageInput", "TextInput")


def documented(value):
    """Whether a public name has a docstring of its own: classes, functions and modules, and not aliases of types."""
    return get_origin(value) is None and (inspect.isclass(value) or inspect.isroutine(value) or inspect.ismodule(value))


def public():
    found = {}
    for name in (*SUBPACKAGES, *SUBPACKAGES_OF_SPECS):
        subpackage = importlib.import_module(name)
        for own in names(subpackage):
            value = getattr(subpackage, own)
            if documented(value) and (name in SUBPACKAGES or own.endswith(SPECS)):
                found.setdefault(value, pytest.param(subpackage, value, id=f"{name.removeprefix('mobileclip.')}.{own}"))
    return list(found.values())


def names(subpackage):
    return getattr(subpackage, "__all__", None) or [name for name in vars(subpackage) if not name.startswith("_")]


def given(subpackage):
    """What an example may use without importing it: `torch`, `nn`, `mobileclip` and the subpackage's public names."""
    common = {"torch": torch, "nn": nn, "mobileclip": mobileclip}
    return common | {name: getattr(subpackage, name) for name in names(subpackage)}


@pytest.mark.parametrize(("subpackage", "value"), public())
def test_public_name_has_an_example_that_runs(subpackage, value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # examples may write files
    name = value.__name__.rpartition(".")[2]
    test = doctest.DocTestParser().get_doctest(inspect.cleandoc(value.__doc__ or ""), given(subpackage), name, None, 0)
    assert "Examples:" in test.docstring, f"{name} has no example; end its docstring with a section `Examples:`"
    assert any(name in example.source for example in test.examples), f"no example of {name} uses it"
    assert any(example.want or example.exc_msg for example in test.examples), f"the examples of {name} show nothing"
    said = []
    with torch.random.fork_rng(), programs_read_once():
        torch.manual_seed(0)
        result = doctest.DocTestRunner(verbose=False).run(test, out=said.append)
    assert not result.failed, "".join(said)
