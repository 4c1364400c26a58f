"""Tasks keep the contract of tasks, and each way to break it is told."""

from __future__ import annotations

import shutil

import pytest

from mobileclip.evaluation import BenchmarkSample
from tests.contracts.tasks import check_task
from tests.evaluation.models import COLOURS, session_of
from tests.evaluation.public_layout import write_benchmark
from tests.evaluation.tasks.test_evaluate import encoded


@pytest.fixture
def session():
    return session_of(batch_size=4)


def test_a_task_keeps_the_contract(session, tmp_path):
    def write(noise):
        shutil.rmtree(tmp_path / "wds_vtab-pets_test", ignore_errors=True)
        samples = [
            BenchmarkSample(key=f"{number}", image=encoded(colour, noise=noise, seed=number), label=number % 4)
            for number, colour in enumerate([*COLOURS.values()] * 3)
        ]
        choices = {"class_names": list(COLOURS), "templates": ["{}"]}
        write_benchmark(tmp_path / "wds_vtab-pets_test", samples, **choices)

    write(0.0)
    check_task("vtab/pets", tmp_path, session, change=lambda: write(40.0))
