"""Hosts for phones hold an export to the same bounds as the library, and read the contract's fields by their names."""

import re
from pathlib import Path

import pytest

from mobileclip.inference.comparison import LEAST_COSINE

HOSTS = Path(__file__).parents[2] / "examples" / "phones"


@pytest.mark.parametrize("host", ["core_ml/MobileCLIP.swift", "onnx_runtime/MobileClip.kt"])
def test_a_host_has_the_least_cosines_of_the_library(host):
    said = dict(re.findall(r'"([\w-]+)"(?::| to) (0\.\d+)', (HOSTS / host).read_text(encoding="utf-8")))
    assert len(said) >= 3
    assert {name: float(bound) for name, bound in said.items()} == {name: LEAST_COSINE[name] for name in said}


def test_a_host_reads_fields_that_the_contract_has(small_export):
    text = (small_export("torch") / "mobileclip.json").read_text(encoding="utf-8")
    host = (HOSTS / "onnx_runtime" / "MobileClip.kt").read_text(encoding="utf-8")
    asked = re.findall(r'get(?:String|Int|Long|Double|JSON\w+)\("(\w+)"\)', host)
    assert len({*asked}) > 10
    assert [name for name in asked if f'"{name}"' not in text and name != "data_offsets"] == []
