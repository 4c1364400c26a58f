"""Tables of pairs are reinforced as shards are: by ranges of rows, with what cannot be used counted."""

from mobileclip.data import AugmentationSpec, read_reinforced_samples
from mobileclip.datasets import RowOptions, as_source
from mobileclip.reinforce import ReinforcementSpec, reinforce
from tests.reinforce.conftest import picture


def test_nested_tables_become_nested_shards(tmp_path, teachers):
    (tmp_path / "images").mkdir()
    for number in range(3):
        (tmp_path / "images" / f"{number}.png").write_bytes(picture(number))
    for name in ("one", "two"):
        rows = [f"../../images/{number}.png,{name} {number},{number:031d}{len(name)}" for number in range(4)]
        (tmp_path / "lists" / name).mkdir(parents=True)
        (tmp_path / "lists" / name / "00000.csv").write_text("\n".join(["file,words,uid", *rows]))
    options = RowOptions(path_column="file", caption_columns=("words",), inside=False)
    spec = ReinforcementSpec(
        source=as_source(tmp_path / "lists", samples_per_shard=2, rows=options),
        output=tmp_path / "out",
        augmentation=AugmentationSpec(size=32, reference_size=32, scale=(0.3, 1.0)),
        num_augmentations=2,
        batch_size=4,
        num_compared=0,
    )
    report = reinforce(spec, teachers=teachers, show_progress=False)
    assert report.skipped == {"missing_image": 2}
    names = [f"{name}/00000-{index:05d}.tar" for name in ("one", "two") for index in range(2)]
    assert list(report.shards) == [str(tmp_path / "out" / name) for name in names]
    samples = list(read_reinforced_samples(report.shards))
    assert [sample.captions for sample in samples] == [
        (f"{name} {number}",) for name in ("one", "two") for number in range(3)
    ]
    assert samples[0].metadata["uid"] == samples[0].key
    assert reinforce(spec, teachers=teachers, show_progress=False).num_done_before == 4
    (tmp_path / "images" / "0.png").write_bytes(picture(9))
    assert reinforce(spec, teachers=teachers, show_progress=False).num_done_before == 2
