"""Which files an index is made of."""

from mobileclip.collections import scan
from mobileclip.collections.scan import estimated_pictures
from tests.collections.pictures import draw


def test_shards_and_videos_count_by_their_size(tmp_path):
    draw(tmp_path / "0.png", 0)
    with (tmp_path / "0.tar").open("wb") as file:
        file.truncate(2**26)
    with (tmp_path / "0.mp4").open("wb") as file:
        file.truncate(2**26)
    files = scan([str(tmp_path)]).files.values()
    assert {file.kind: estimated_pictures([file]) for file in files} == {
        "picture": 1,
        "shard": 1025,
        "video": 9,
    }
