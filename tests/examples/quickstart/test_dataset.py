from __future__ import annotations

import io
import json
from pathlib import Path

import attrs
import numpy as np
import pytest
from hypothesis import given, strategies as st
from PIL import Image

from examples.quickstart.emoji import EmojiDataSpec, build_dataset
from examples.quickstart.emoji.captions import with_article
from examples.quickstart.emoji.concepts import join_names, make_concepts, phrase, read_concepts
from examples.quickstart.emoji.rendering import colour_name, render, render_all
from examples.quickstart.emoji.sources import STYLES, _svg, download, read_drawings
from examples.quickstart.emoji.splits import TRAIN
from examples.quickstart.spec import QuickstartSpec
from mobileclip.data import decode_image
from tests.examples.quickstart.drawings import SPEC, concept_entries, messages, write_packages


def test_every_drawing_is_in_one_split_or_left_out_for_a_reason(dataset):
    keys = {name: {sample.key for sample in split.samples()} for name, split in dataset.splits.items()}
    assert all(keys.values())
    assert sum(map(len, keys.values())) == len(set().union(*keys.values()))
    for name, split in dataset.splits.items():
        assert len(keys[name]) == split.num_samples
    held_out_concepts = set(dataset.splits["test_concepts"].class_names)
    # Six styles of nineteen concepts, less the held-out style's drawings of held-out concepts.
    assert sum(map(len, keys.values())) == 6 * 19 - len(held_out_concepts)
    assert not {s.metadata["label"] for s in dataset.train.samples()} & held_out_concepts
    styles = {name: {s.metadata["style"] for s in split.samples()} for name, split in dataset.splits.items()}
    assert styles["test_style"] == {"openmoji"}
    assert not any("openmoji" in styles[name] for name in styles if name != "test_style")


def test_families_are_held_out_together(dataset):
    for split in dataset.splits.values():
        by_style: dict[str, set[str]] = {}
        for sample in split.samples():
            if "mage" in sample.metadata["label"]:
                by_style.setdefault(sample.metadata["style"], set()).add(sample.metadata["label"])
        assert all(labels == {"mage", "man mage", "woman mage"} for labels in by_style.values())


def test_a_share_of_the_concepts_is_a_smaller_set_of_the_same_pictures(dataset, tmp_path):
    write_packages(tmp_path / "download" / "node_modules")
    part = build_dataset(attrs.evolve(SPEC, concept_share=0.6), tmp_path)
    for name, split in part.splits.items():
        keys = {sample.key for sample in split.samples()}
        assert keys <= {sample.key for sample in dataset.splits[name].samples()}
        assert set(split.class_names) <= set(dataset.splits[name].class_names)
    assert 0.2 < part.train.num_samples / dataset.train.num_samples < 0.9


def test_teachers_that_know_more_have_seen_no_test_picture(dataset, tmp_path):
    spec = QuickstartSpec(concept_share=0.6, teacher_share=1.0)
    write_packages(tmp_path / "own" / "download" / "node_modules")
    own = build_dataset(attrs.evolve(SPEC, concept_share=spec.data.concept_share), tmp_path / "own")
    assert attrs.evolve(spec.data, concept_share=1.0) == spec.teacher_data
    taught = {sample.key for sample in dataset.train.samples()}
    assert taught > {sample.key for sample in own.train.samples()}
    assert not taught & {sample.key for split in own.tests for sample in split.samples()}
    with pytest.raises(ValueError, match="at least the student's concepts"):
        QuickstartSpec(teacher_share=0.1)


def test_classes_and_pictures_belong_together(dataset):
    for split in dataset.splits.values():
        samples = list(split.samples())
        for sample, index in zip(samples, split.class_indices(samples), strict=True):
            assert split.class_names[index] == sample.metadata["label"] == sample.captions[0]
            assert decode_image(sample.image).size == (48, 48)
    assert dataset.splits["test_style"].class_names == dataset.train.class_names


def test_captions_say_what_the_picture_shows(dataset):
    for sample in dataset.train.samples():
        assert sample.metadata["label"] == sample.captions[0]
        assert len(sample.captions) == 3
        described = [text for text in sample.syn_captions["syn_text"] if "white background" in text]
        colour, _, shape = sample.metadata["label"].partition(" ")
        if colour in {"red", "green", "blue", "yellow"}:
            assert f"in {colour} on" in described[0]
            assert ("wide" in described[0]) == (shape == "bar")


def test_keywords_in_place_of_names_are_for_training_alone(dataset, tmp_path):
    modules = write_packages(tmp_path / "download" / "node_modules")
    noisy = build_dataset(attrs.evolve(SPEC, train_captions="keywords"), tmp_path)
    keywords = {concept.label: set(concept.keywords) for concept in read_concepts(modules).values()}
    for name, split in noisy.splits.items():
        for sample, other in zip(split.samples(), dataset.splits[name].samples(), strict=True):
            if name == TRAIN:
                (caption,) = sample.captions
                assert set(caption.split(", ")) <= keywords[sample.metadata["label"]]
            else:
                assert sample.captions == other.captions
            for field in ("key", "image", "syn_captions", "metadata"):
                assert getattr(sample, field) == getattr(other, field)
    assert len({sample.captions for sample in noisy.train.samples()}) > 20


def test_the_card_keeps_licences_and_attribution(dataset):
    card = dataset.card
    assert [source["style"] for source in card["sources"]] == [style.name for style in STYLES]
    assert all(source["licence"]["spdx"] and source["author"]["name"] for source in card["sources"])
    assert all(source["package"].count("@") >= 1 for source in card["sources"])
    assert card["names"]["licence"]["spdx"] == "MIT"
    assert card["num_pictures"] == 6 * 19


def test_a_second_run_does_nothing_and_another_choice_is_refused(dataset):
    files = {path: path.stat().st_mtime_ns for path in dataset.root.rglob("*.tar")}
    again = build_dataset(attrs.evolve(SPEC, num_processes=2), dataset.root)
    assert again.splits == dataset.splits
    assert {path: path.stat().st_mtime_ns for path in dataset.root.rglob("*.tar")} == files
    with pytest.raises(ValueError, match="other choices"):
        build_dataset(attrs.evolve(SPEC, seed=1), dataset.root)


def test_an_interrupted_build_continues_with_what_is_rendered(dataset, tmp_path):
    write_packages(tmp_path / "download" / "node_modules")
    first = build_dataset(SPEC, tmp_path)
    rendered = {path: path.stat().st_mtime_ns for path in (tmp_path / "renderings").iterdir()}
    (tmp_path / "datacard.json").unlink()
    lost = tmp_path / "renderings" / "noto.tar"
    lost.unlink()
    second = build_dataset(SPEC, tmp_path)
    assert second.splits == first.splits
    for path, when in rendered.items():
        assert (path.stat().st_mtime_ns == when) == (path != lost)
    assert [shard.read_bytes() for shard in second.train.shards] == [s.read_bytes() for s in dataset.train.shards]


def test_sets_without_code_points_join_by_name(tmp_path):
    modules = write_packages(tmp_path / "node_modules")
    sets = {style.name: read_drawings(modules, style) for style in STYLES}
    concepts = read_concepts(modules)
    assert not any(drawing.code for drawing in sets["noto-v1"].drawings)
    names = join_names(concepts, sets.values())
    assert names["wizard"] == names["mage"] == "1f9d9"
    assert "secret" not in {drawing.name for drawing in sets["noto"].drawings}


def test_sizes_and_flips_of_icons_reach_the_picture():
    icon = {"body": '<path d="M0 0h8v4h-8z" fill="#f00"/>', "left": 0, "top": 0, "width": 16, "height": 8}
    plain = np.asarray(Image.open(io.BytesIO(render(_svg(icon), 32).png)))
    flipped = np.asarray(Image.open(io.BytesIO(render(_svg(icon | {"hFlip": True}), 32).png)))
    np.testing.assert_array_equal(plain[:, ::-1], flipped)
    red = (plain == (255, 0, 0)).all(-1)
    # Half as high as wide: centred in the square.
    assert red[8:16, :16].all()
    assert red.sum() == 8 * 16
    turned = np.asarray(Image.open(io.BytesIO(render(_svg(icon | {"rotate": 2}), 32).png)))
    np.testing.assert_array_equal(plain[::-1, ::-1], turned)


def test_what_cannot_be_seen_is_left_out():
    assert render('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9"/>', 16) is None
    assert render("<svg", 16) is None


@pytest.mark.slow
def test_processes_give_the_same_pictures():
    circle = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9"><circle cx="4" cy="4" r="{}"/></svg>'
    svgs = [circle.format(1 + index / 100) for index in range(210)]
    assert list(render_all(svgs, 16, num_processes=2)) == list(render_all(svgs, 16, num_processes=1))


@pytest.mark.parametrize(
    ("rgb", "name"),
    [
        ((0, 0, 0), "black"),
        ((255, 255, 255), "white"),
        ((128, 128, 128), "gray"),
        ((221, 46, 68), "red"),
        ((255, 204, 77), "yellow"),
        ((119, 178, 85), "green"),
        ((59, 136, 195), "blue"),
        ((102, 69, 50), "brown"),
        ((170, 60, 200), "purple"),
        ((244, 144, 12), "orange"),
        ((255, 150, 190), "pink"),
    ],
)
def test_colours_have_the_names_people_give_them(rgb, name):
    assert colour_name(*rgb) == name


@given(st.tuples(*[st.integers(0, 255)] * 3))
def test_every_colour_has_a_name(rgb):
    assert colour_name(*rgb).isalpha()


def test_labels_become_phrases():
    assert phrase("flag: Chad") == "flag of Chad"
    assert phrase("man: bald") == "bald man"
    assert phrase("family: man, woman, girl, boy") == "family of man, woman, girl and boy"
    assert phrase("woman walking: facing right") == "woman walking facing right"
    assert phrase("woman: red hair") == "woman with red hair"
    assert with_article("owl") == "an owl"
    assert with_article("scissors") == "scissors"


def test_components_are_no_concepts_and_families_share_a_code():
    concepts = make_concepts(concept_entries(), messages())
    assert len(concepts) == 19
    assert "1f3ff" not in concepts
    mages = {concept.family for concept in concepts.values() if "mage" in concept.label}
    assert len(mages) == 1
    assert len({concept.family for concept in concepts.values()}) == 17


def test_without_npm_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("examples.quickstart.emoji.sources.shutil.which", lambda _: None)
    monkeypatch.setattr("examples.quickstart.emoji.sources.importlib.util.find_spec", lambda _: None)
    with pytest.raises(ValueError, match="install Node"):
        download(tmp_path)


def test_a_failing_npm_is_quoted(tmp_path, monkeypatch):
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho 'ENOTFOUND the registry' >&2\nexit 1\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(ValueError, match=r"check the network(.|\n)*ENOTFOUND the registry"):
        download(tmp_path / "download")


def test_another_version_than_the_pinned_one_is_refused(tmp_path, monkeypatch):
    modules = write_packages(tmp_path / "download" / "node_modules")
    (modules / STYLES[0].package / "package.json").write_text(json.dumps({"version": "0.0.1"}))
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\nexit 0\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(ValueError, match=r"npm installed @iconify-json/noto 0\.0\.1"):
        download(tmp_path / "download")


@pytest.mark.slow
def test_the_real_download(tmp_path: Path):
    modules = download(tmp_path / "download")
    concepts = read_concepts(modules)
    sets = [read_drawings(modules, style) for style in STYLES]
    names = join_names(concepts, sets)
    found = [{drawing.code or names.get(drawing.name) for drawing in one.drawings} & concepts.keys() for one in sets]
    assert len(concepts) == 1914
    assert sum(map(len, found)) == 9670
    assert {one.licence["licence"]["spdx"] for one in sets} == {"Apache-2.0", "CC-BY-4.0", "CC-BY-SA-4.0", "MIT"}
    spec = EmojiDataSpec(image_size=64, max_train_images=500)
    dataset = build_dataset(spec, tmp_path)
    assert dataset.splits[TRAIN].num_samples == 500
    assert dataset.card["num_pictures"] == 9670
    assert dataset.splits["test_style"].num_samples == 1744
    assert dataset.splits["test_concepts"].num_samples == 688
    # Which drawings two vendors share depends a little on the size at which they are compared.
    assert 540 < dataset.splits["test_renderings"].num_samples < 580
