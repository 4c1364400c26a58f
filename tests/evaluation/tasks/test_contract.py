"""A task of classes keeps the contract of tasks."""

from mobileclip.evaluation import BenchmarkSample
from tests.contracts.tasks import check_task
from tests.evaluation.models import COLOURS, session_of
from tests.evaluation.public_layout import write_benchmark
from tests.evaluation.tasks.test_evaluate import encoded


def test_a_task_keeps_the_contract(tmp_path):
    def write(noise):
        images = [encoded(colour, noise=noise, seed=number) for number, colour in enumerate([*COLOURS.values()] * 3)]
        samples = [
            BenchmarkSample(key=f"{number}", image=image, label=number % 4) for number, image in enumerate(images)
        ]
        write_benchmark(tmp_path / "wds_vtab-pets_test", samples, class_names=list(COLOURS), templates=["{}"])

    write(0.0)
    check_task("vtab/pets", tmp_path, session_of(batch_size=4), change=lambda: write(40.0))
