import sys

from mobileclip.extras import install
from mobileclip.training import MetricLog, last_metrics, read_metrics
from tests.errors import fails


def test_a_resumed_log_drops_what_comes_again_and_a_line_cut_short(tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    log = MetricLog(path)
    for step in range(5):
        log.write(step, {"loss": step / 3})
    with path.open("a") as file:
        file.write('{"step": 5, "lo')
    assert [line["step"] for line in read_metrics(path)] == [0, 1, 2, 3, 4]
    MetricLog(path, resume_step=3).write(3, {"loss": 7.0})
    assert [(line["step"], line["loss"]) for line in read_metrics(path)] == [(0, 0.0), (1, 1 / 3), (2, 2 / 3), (3, 7.0)]


def test_the_last_line_of_a_long_file_a_new_one_of_one_cut_short_and_of_a_broken_one(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert last_metrics(path) is None
    path.write_text('{"step": 0')
    assert last_metrics(path) is None
    log = MetricLog(path)
    for step in range(5000):
        log.write(step, {"loss": step / 3})
    with path.open("a") as file:
        file.write('{"step": 5000, "lo')
    assert path.stat().st_size > 1 << 17
    assert last_metrics(path) == {"step": 4999, "loss": 4999 / 3} == read_metrics(path)[-1]
    for read, then in ((last_metrics, ""), (read_metrics, '{"step": 2}\n')):
        path.write_text(f'{{"step": 0}}\nnonsense\n{then}')
        with fails(ValueError, "nonsense"):
            read(path)


def test_tensorboard_reads_what_is_logged(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tmp_path / "tensorboard"
    log = MetricLog(tmp_path / "metrics.jsonl", tensorboard=folder)
    for step in range(4):
        log.write(step, {"loss": 3.0 - step, "seconds": 0.5})
    events = EventAccumulator(str(folder)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(0, 3.0), (1, 2.0), (2, 1.0), (3, 0.0)]
    resumed = MetricLog(tmp_path / "metrics.jsonl", resume_step=2, tensorboard=folder)
    resumed.write(2, {"loss": 7.0})
    assert [line["loss"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [3.0, 2.0, 7.0]


def test_without_tensorboard_its_install_command_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with fails(ModuleNotFoundError, install("tensorboard")):
        MetricLog(tmp_path / "metrics.jsonl", tensorboard=tmp_path)
