"""The quickstart's test splits in the public layout."""

from collections import Counter

from examples.quickstart.emoji.benchmark import captioned_samples, write_benchmarks
from mobileclip.data import ImageTextSample, SkipReport
from mobileclip.evaluation import open_benchmark


def test_every_picture_of_a_test_split_has_its_class(dataset, tmp_path):
    written = {one.name: one for one in write_benchmarks(dataset, tmp_path, templates=("{}", "an emoji of {}"))}
    for split in dataset.tests:
        benchmark = written[f"emoji-{split.name}"]
        assert benchmark == open_benchmark(tmp_path / f"wds_emoji-{split.name}_test")
        assert benchmark.class_names == split.class_names
        found = {
            sample.key: (sample.image, benchmark.class_names[sample.label])
            for sample in benchmark.samples(SkipReport())
        }
        assert found == {sample.key: (sample.image, sample.metadata["label"]) for sample in split.samples()}


def test_captions_ask_for_one_picture(dataset, tmp_path):
    written = {one.name: one for one in write_benchmarks(dataset, tmp_path, templates=("{}",))}
    # One vendor's drawings, so that each caption is one picture's; five vendors draw the held-out concepts.
    benchmark = written["emoji-test_style-captions"]
    samples = list(benchmark.samples(SkipReport()))
    assert {sample.key: sample.captions for sample in samples} == {
        sample.key: sample.captions for sample in dataset.splits["test_style"].samples()
    }
    counts = Counter(caption.lower() for sample in samples for caption in sample.captions)
    assert set(counts.values()) == {1}
    assert "emoji-test_concepts-captions" not in written


def test_captions_that_several_pictures_have_are_left_out():
    captions = {"a": ("One", "shared"), "b": ("two", "Shared"), "c": ("SHARED",)}
    samples = [ImageTextSample(key=key, captions=texts, image=b"picture") for key, texts in captions.items()]
    assert {one.key: one.captions for one in captioned_samples(samples)} == {"a": ("One",), "b": ("two",)}
