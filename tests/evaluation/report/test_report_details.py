"""Worst classes and examples of retrieval, against counting by hand over every image and text."""

from __future__ import annotations

import io

import attrs
import numpy as np
import pytest
import torch
from PIL import Image

from mobileclip.data import SkipReport
from mobileclip.evaluation import Benchmark, Features, open_benchmark
from mobileclip.evaluation.report import dataset_details
from mobileclip.evaluation.report.pictures import LONGEST_SIDE, find_images, thumbnail
from tests.evaluation.datasets.test_benchmark import write_shard
from tests.evaluation.reports import CLASS_NAMES, classification, features_of, retrieval

BENCHMARK = Benchmark(name="things", kind="classification", class_names=("thing",), templates=("{}",), shards=())


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def naive_predictions(benchmark, features):
    """Return the nearest class of every image, in numpy and one at a time."""
    prompts = unit(features.text.double().numpy()).reshape(len(benchmark.class_names), len(benchmark.templates), -1)
    classes = unit(prompts.mean(axis=1))
    return [int(np.argmax([row @ one for one in classes])) for row in features.image.double().numpy()]


class TestConfusion:
    def test_against_counting(self, tmp_path):
        benchmark = classification(tmp_path)
        features = features_of(benchmark)[0]
        details = dataset_details(benchmark, features, model="colours")
        predicted, labels = naive_predictions(benchmark, features), features.labels.tolist()
        expected = {}
        for label, said in zip(labels, predicted, strict=True):
            row = expected.setdefault(CLASS_NAMES[label], {})
            row[CLASS_NAMES[said]] = row.get(CLASS_NAMES[said], 0) + 1
        recalls = {name: row.get(name, 0) / sum(row.values()) for name, row in expected.items()}
        assert [one.name for one in details.confused] == sorted(recalls, key=lambda name: recalls[name])
        assert len(details.confused) == 3
        for one in details.confused:
            row = dict(expected[one.name])
            assert one.num_images == sum(row.values())
            assert one.num_right == row.pop(one.name, 0)
            assert one.recall == pytest.approx(recalls[one.name])
            assert one.num_mistakes == len(row)
            assert list(one.taken_for.values()) == sorted(row.values(), reverse=True)[:3]
            assert all(row[name] == count for name, count in one.taken_for.items())
            assert CLASS_NAMES[labels[one.example]] == one.name
            assert CLASS_NAMES[predicted[one.example]] == next(iter(one.taken_for))
        assert details.absent_classes == (CLASS_NAMES[3],)
        assert (details.num_images, details.num_classes, details.num_lost) == (60, 4, 0)

    def test_the_example_is_the_image_behind_the_number(self, tmp_path):
        """Behind a broken image, which was not evaluated and so is not counted."""
        benchmark = classification(tmp_path)
        features = features_of(benchmark)[0]
        assert "00-broken" not in features.keys
        for one in dataset_details(benchmark, features, model="colours").confused:
            seen = np.asarray(one.picture.pixels()).reshape(-1, 3).mean(axis=0) / 255
            # The model knows an image by its mean colour, up to a scale of its batch norm.
            assert unit(seen) == pytest.approx(unit(features.image[one.example].numpy()), abs=0.05)

    def test_fewer_classes_and_a_perfect_model(self, tmp_path):
        benchmark = classification(tmp_path)
        features = features_of(benchmark)[0]
        worst = dataset_details(benchmark, features, model="colours").confused
        assert dataset_details(benchmark, features, model="colours", num_classes=1).confused == worst[:1]
        perfect = attrs.evolve(features, labels=torch.tensor(naive_predictions(benchmark, features)))
        assert dataset_details(benchmark, perfect, model="colours").confused == ()

    def test_classes_of_one_name_are_told_apart(self):
        benchmark = attrs.evolve(BENCHMARK, class_names=("crane", "crane", "dog"), templates=("{}",))
        features = Features(
            keys=("a", "b"),
            image=torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]),
            text=torch.eye(3),
            labels=torch.tensor([1, 2]),
        )
        (one,) = dataset_details(benchmark, features, model="m").confused
        assert one.name == "crane (class 1)"
        assert one.taken_for == {"crane (class 0)": 1}
        # The shards are gone: the picture is missing, and that is counted.
        assert one.picture is None

    def test_mistakes(self, tmp_path):
        benchmark = classification(tmp_path)
        features = features_of(benchmark)[0]
        with pytest.raises(ValueError, match="4 classes in 2 templates, but the features hold 7 texts"):
            dataset_details(benchmark, attrs.evolve(features, text=features.text[:7]), model="m")
        with pytest.raises(ValueError, match="colours is for classification: its features need one label"):
            dataset_details(benchmark, attrs.evolve(features, labels=None), model="m")
        with pytest.raises(ValueError, match="num_classes is 0, expected at least 1"):
            dataset_details(benchmark, features, model="m", num_classes=0)


class TestRetrieval:
    def test_against_ranking_every_pair(self, tmp_path):
        benchmark = retrieval(tmp_path)
        features = features_of(benchmark)[0]
        details = dataset_details(benchmark, features, model="m", num_queries=4, num_answers=3)
        captions = [sample.captions for sample in benchmark.samples(SkipReport(log=False))]
        texts = [(number, caption) for number, group in enumerate(captions) for caption in group]
        similarity = unit(features.image.double().numpy()) @ unit(features.text.double().numpy()).T
        assert len(details.text_queries) == len(details.image_queries) == 4
        for query in details.text_queries:
            (column,) = (number for number, (_, text) in enumerate(texts) if text == query.text)
            owner = texts[column][0]
            scores = similarity[:, column]
            found = [answer.similarity for answer in query.answers]
            assert found == pytest.approx(sorted(scores, reverse=True)[:3], abs=1e-5)
            better = sum(one > scores[owner] + 1e-6 for one in scores)
            ties = sum(abs(one - scores[owner]) <= 1e-6 for one in scores)
            assert better < query.rank <= better + ties
            assert [answer.right for answer in query.answers] == [number == query.rank for number in (1, 2, 3)]
            assert query.right.caption == captions[owner][0]
        for query in details.image_queries:
            (row,) = (number for number, group in enumerate(captions) if group[0] == query.caption)
            best = np.sort(similarity[row])[::-1][:3]
            assert [answer.similarity for answer in query.answers] == pytest.approx(best, abs=1e-5)
            for answer in query.answers:
                assert answer.right == (answer.text in captions[row])
            right = max(similarity[row, column] for column, (owner, _) in enumerate(texts) if owner == row)
            better = sum(one > right + 1e-6 for one in similarity[row])
            assert better < query.rank <= better + sum(abs(one - right) <= 1e-6 for one in similarity[row])
        assert details.num_lost == 0

    def test_queries_are_spread_and_never_more_than_there_are(self, tmp_path):
        benchmark = retrieval(tmp_path, num_images=3)
        features = features_of(benchmark)[0]
        details = dataset_details(benchmark, features, model="m", num_queries=100, num_answers=100)
        assert len(details.image_queries) == 3
        assert len(details.text_queries) == len(features.text)
        assert all(len(query.answers) == 3 for query in details.text_queries)
        (middle,) = dataset_details(benchmark, features, model="m", num_queries=1).image_queries
        assert "number 1" in "".join(answer.text for answer in middle.answers if answer.right)

    def test_what_cannot_be_read_again_is_counted(self, tmp_path):
        benchmark = retrieval(tmp_path)
        features = features_of(benchmark)[0]
        whole = dataset_details(benchmark, features, model="m", num_queries=4)
        gone = attrs.evolve(benchmark, shards=("/nowhere/0.tar",))
        details = dataset_details(gone, features, model="m", num_queries=4)
        assert details.text_queries == details.image_queries == ()
        shown = {answer.caption for query in whole.text_queries for answer in (*query.answers, query.right)}
        shown |= {query.caption for query in whole.image_queries}
        assert details.num_lost == 8 + len(shown)

    def test_mistakes(self, tmp_path):
        benchmark = retrieval(tmp_path)
        features = features_of(benchmark)[0]
        with pytest.raises(ValueError, match="there are 27 captions, but 2 embeddings"):
            dataset_details(benchmark, attrs.evolve(features, text=features.text[:2]), model="m")
        with pytest.raises(ValueError, match="captions is for retrieval: its features need a number of captions"):
            dataset_details(benchmark, attrs.evolve(features, num_captions=None), model="m")


class TestPictures:
    def test_small_copies(self):
        noise = np.random.default_rng(0).integers(0, 256, (900, 1600, 3), dtype=np.uint8)
        picture = thumbnail(Image.fromarray(noise))
        assert (picture.width, picture.height) == (LONGEST_SIDE, LONGEST_SIDE * 9 // 16)
        assert Image.open(io.BytesIO(picture.data)).format == "WEBP"
        # The worst there is to compress.
        assert len(picture.data) < 40_000
        line = thumbnail(Image.new("RGB", (2000, 1)))
        assert (line.width, line.height) == (LONGEST_SIDE, 1)
        small = thumbnail(Image.new("RGB", (5, 7), (200, 10, 10)))
        assert small.pixels().size == (5, 7)
        assert np.asarray(small.pixels()).mean(axis=(0, 1)) == pytest.approx([200, 10, 10], abs=8)

    def test_names_that_come_again(self, tmp_path):
        """Two shards with one name each twice, of which the first is broken: the second is the one that was used."""
        colours = {"0": [(250, 0, 0), None], "1": [(0, 250, 0), (0, 0, 250)]}
        for shard, pictures in colours.items():
            members = {}
            for key, colour in zip("ab", pictures, strict=True):
                members |= {f"{key}.png": _png(colour), f"{key}.cls": b"0"}
            write_shard(tmp_path / "test" / f"{shard}.tar", members)
        (tmp_path / "test" / "nshards.txt").write_text("2")
        (tmp_path / "classnames.txt").write_text("thing")
        (tmp_path / "zeroshot_classification_templates.txt").write_text("{c}")
        benchmark = open_benchmark(tmp_path)
        found = find_images(benchmark, ("a", "a", "b"), pictures=[0, 1, 2])
        means = [np.asarray(found.pictures[number].pixels()).mean(axis=(0, 1)) for number in range(3)]
        assert [int(mean.argmax()) for mean in means] == [0, 1, 2]

    def test_nothing_wanted_nothing_read(self):
        assert find_images(attrs.evolve(BENCHMARK, shards=("/nowhere",)), ("a",), pictures=[]).pictures == {}


def _png(colour):
    if colour is None:
        return b"broken"
    stream = io.BytesIO()
    Image.new("RGB", (16, 16), colour).save(stream, "PNG")
    return stream.getvalue()
