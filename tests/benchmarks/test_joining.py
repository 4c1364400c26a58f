"""The benchmark of matching: it runs, and finds what it has planted."""

from benchmarks.joining import JoiningBenchSpec, run


def test_it_matches_and_measures(tmp_path, capsys):
    steps = run(JoiningBenchSpec(num_keys=30_000, shard_keys=1_000, folder=tmp_path))
    assert [step.name for step in steps][1:] == ["matched", "handed out shard by shard", "placeholders"]
    assert all(step.seconds > 0 and step.num_bytes > 30_000 * 69 for step in steps)
    assert "peak memory (MB)" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
