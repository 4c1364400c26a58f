"""How many samples shards hold: what stands beside them, what is counted, and what is too much to count."""

import json

import pytest

from mobileclip.cli import main
from mobileclip.data import ReinforcementCard, card_of_shards, write_card, write_shard, write_shards
from mobileclip.data.shards.sidecars import MOST_COUNTED, UncountedError, read_sizes, shard_sizes, write_sizes
from mobileclip.datasets.counting import count_shards
from tests.data.made_samples import make_sample
from tests.errors import fails


@pytest.fixture
def shards(tmp_path):
    """Two folders whose shards have the same names."""
    paths = [tmp_path / folder / f"{place}.tar" for folder in ("a", "b") for place in range(2)]
    for number, path in enumerate(paths, 1):
        path.parent.mkdir(exist_ok=True)
        write_shard(path, map(make_sample, range(number)))
    return [str(path) for path in paths]


def test_local_shards_are_counted_and_one_that_breaks_off_has_a_sample_to_be_told_of(shards, tmp_path):
    assert shard_sizes(shards) == (1, 2, 3, 4)
    (tmp_path / "a" / "1.tar").write_bytes(b"no tar file")
    assert shard_sizes([*shards, str(tmp_path / "missing.tar")]) == (1, 1, 3, 4, 1)


def test_what_stands_beside_them_is_taken(shards, tmp_path):
    write_sizes(tmp_path / "a", {"0.tar": 70, "1.tar": 80, "other.tar": 5})
    lines = [json.dumps({"shard": f"{n}.tar", "num_samples": size}) for n, size in ((0, 6), (1, 7), (0, 8))]
    (tmp_path / "b" / "manifest.jsonl").write_text("\n".join([*lines, '{"shard": "1.t']))
    assert shard_sizes(shards) == (70, 80, 8, 7)
    assert shard_sizes(shards[::-1]) == (7, 8, 80, 70)


@pytest.mark.parametrize(
    "content", ["[1, 2]", '{"0.tar": "3"}', '{"0.tar": -1}', '{"0.tar": true}', "{", '{"0.tar": 1e9}']
)
def test_damaged_files_are_named(shards, tmp_path, content):
    (tmp_path / "a" / "sizes.json").write_text(content)
    with fails(ValueError, "sizes.json"):
        shard_sizes(shards)


def test_too_many_or_too_far_away(tmp_path):
    many = [str(tmp_path / f"{place}.tar") for place in range(MOST_COUNTED + 1)]
    for names, word in ((many, "1,001 shards such as"), (["pipe:cat a.tar"], "pipe:cat a.tar")):
        with fails(UncountedError, word):
            shard_sizes(names)


class TestCommand:
    @pytest.mark.parametrize("num_workers", ["1", pytest.param("2", marks=pytest.mark.slow)])
    def test_it_writes_beside_the_shards(self, shards, tmp_path, capsys, num_workers):
        main(["data", "count", *shards[:2], str(tmp_path / "b" / "{0..1}.tar"), "-j", num_workers])
        assert capsys.readouterr().out == "10 samples in 4 shards\n"
        assert read_sizes(tmp_path / "a") == {"0.tar": 1, "1.tar": 2}
        assert read_sizes(tmp_path / "b") == {"0.tar": 3, "1.tar": 4}

    def test_what_is_known_is_not_counted_again(self, shards, tmp_path):
        write_sizes(tmp_path / "a", {"0.tar": 9, "old.tar": 1})
        assert count_shards(shards, show_progress=False).num_samples == 9 + 2 + 3 + 4
        assert read_sizes(tmp_path / "a") == {"0.tar": 9, "1.tar": 2, "old.tar": 1}
        assert count_shards(shards, again=True, show_progress=False).num_samples == 10
        assert read_sizes(tmp_path / "a") == {"0.tar": 1, "1.tar": 2}

    def test_what_cannot_be_read_is_named_and_left_out(self, shards, tmp_path, capsys):
        (tmp_path / "a" / "1.tar").write_bytes(b"no tar file")
        main(["data", "count", *shards, "--quiet", "--pause-seconds", "0"])
        assert "8 samples in 3 shards\n1 shards could not be counted; the first: " in capsys.readouterr().out
        assert read_sizes(tmp_path / "a") == {"0.tar": 1}
        with pytest.raises(SystemExit) as left:
            main(["data", "count", *shards, "--quiet", "--pause-seconds", "0", "--strict"])
        assert left.value.code == 1


class TestCards:
    def test_folders_have_one_card(self, shards, tmp_path):
        assert card_of_shards(shards) is None
        card = ReinforcementCard(layout="npz", seed=4)
        write_card(tmp_path, card)
        assert card_of_shards(shards) == card  # above several folders
        assert card_of_shards(shards[:2]) is None
        write_card(tmp_path / "a", ReinforcementCard(layout="npz", seed=5))
        with fails(ValueError, "a", str(tmp_path)):
            card_of_shards(shards)
        (tmp_path / "reinforcement.json").unlink()
        for _ in range(2):  # one folder has none, then another one
            with fails(ValueError, "a", "b"):
                card_of_shards(shards)
            write_card(tmp_path / "b", card)

    def test_a_name_alone(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        write_shards(tmp_path, [make_sample(0)])
        write_card(tmp_path, ReinforcementCard(layout="npz"))
        assert card_of_shards(["00000000.tar"]) is not None
