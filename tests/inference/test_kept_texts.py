"""Embeddings of texts that are kept: nothing is encoded twice, and nothing is kept too long."""

import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import mobileclip
from mobileclip.encoders import save_model
from mobileclip.inference import KeptTexts, keep_on_disk
from tests.cli.test_cli import IMAGES, run
from tests.encoders.small import SMALL, randomised

LABELS = [f"label {number}" for number in range(120)]


@pytest.fixture
def clip(small_file):
    return mobileclip.load(small_file)


@pytest.fixture
def encoded(monkeypatch):
    """How many texts went into any text tower, one number a batch."""
    from mobileclip.encoders import TextEncoder

    seen, whole = [], TextEncoder.embed
    monkeypatch.setattr(TextEncoder, "embed", lambda self, tokens: (seen.append(len(tokens)), whole(self, tokens))[1])
    return seen


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "mobileclip" / "texts"


class TestMemory:
    def test_labels_are_encoded_for_the_first_picture_alone(self, clip, encoded):
        picture, templates = torch.zeros(64, 64, 3, dtype=torch.uint8).numpy(), ["a photo of a {}", "a {}"]
        first = clip.classify(picture, LABELS, template=templates)
        assert sum(encoded) == 2 * len(LABELS)
        assert clip.classify(picture, LABELS, template=templates) == first
        assert list(clip.classify(picture, LABELS[:3], template=templates[1])) != []
        assert sum(encoded) == 2 * len(LABELS)

    def test_several_templates_are_the_mean_of_unit_length_embeddings(self, clip):
        picture, templates = torch.zeros(64, 64, 3, dtype=torch.uint8).numpy(), ["a photo of a {}", "the {}, drawn"]
        rows = clip.encode_text([one.replace("{}", label) for label in LABELS for one in templates])
        classes = torch.nn.functional.normalize(rows.reshape(len(LABELS), 2, -1).mean(1), dim=-1)
        with torch.no_grad():
            logits = clip.model.similarity_scale * clip.encode_image([picture]) @ classes.T
        found = clip.classify(picture, LABELS, template=templates)
        assert [found[label] for label in LABELS] == pytest.approx(logits[0].softmax(-1).tolist(), rel=1e-4)

    def test_what_is_kept_is_what_is_encoded(self, clip, encoded):
        for normalize in (True, False):
            expected = clip.encode_text(LABELS, normalize=normalize)
            for _ in range(2):
                found = clip.encode_text([*LABELS, LABELS[0]], normalize=normalize, keep=True)
                torch.testing.assert_close(found, torch.cat([expected, expected[:1]]), rtol=1e-5, atol=1e-6)
        assert sum(encoded) == 3 * len(LABELS), "unless it is asked for, nothing is taken from memory"

    @pytest.mark.parametrize("write", ["in place", "data", "another"])
    def test_weights_that_change_are_noticed(self, clip, write):
        before = clip.encode_text("a cat", keep=True)
        weight = clip.model.text_encoder.project.weight
        with torch.no_grad():
            if write == "in place":
                weight.requires_grad_(requires_grad=False).neg_()
            elif write == "data":
                weight.data.neg_()
            else:
                clip.model.text_encoder.project.weight = torch.nn.Parameter(-weight)
        torch.testing.assert_close(clip.encode_text("a cat", keep=True), -before)

    def test_no_more_is_kept_than_was_allowed_and_the_longest_unused_goes_first(self):
        kept, asked = KeptTexts(most_bytes=3 * (4 * 100 + 60)), []

        def encode(texts):
            asked.extend(texts)
            return torch.tensor([[float(ord(text))] * 100 for text in texts])

        for text in ("a", "b", "c", "a", "d", "a", "b"):
            assert kept.embeddings([text], encode)[0, 0] == ord(text)
        assert asked == ["a", "b", "c", "d", "b"]
        many = kept.embeddings(["x", "y", "z", "u", "v", "x"], encode)
        assert many[:, 0].tolist() == [*map(float, map(ord, "xyzuvx"))], "more than fit are all returned"

    def test_threads_get_their_own_texts(self, clip):
        expected = {label: clip.encode_text(label)[0] for label in LABELS}
        with ThreadPoolExecutor(4) as pool:
            turns = [LABELS[start : start + 20] for start in range(0, 100, 10)] * 2
            for texts, rows in zip(
                turns, pool.map(lambda texts: clip.encode_text(texts, keep=True), turns), strict=True
            ):
                torch.testing.assert_close(rows, torch.stack([expected[text] for text in texts]), rtol=1e-4, atol=1e-5)

    def test_what_is_pickled_takes_nothing_along(self, clip, encoded):
        clip.encode_text(LABELS, keep=True)
        other = pickle.loads(pickle.dumps(clip))
        encoded.clear()
        other.encode_text(LABELS, keep=True)
        assert sum(encoded) == len(LABELS)


class TestDisk:
    def test_another_process_encodes_no_label_again(self, small_file, cache, encoded, capsys):
        line = ("classify", f"{IMAGES}/coffee.png", *LABELS, "--template", "a {}", "--template", "{}", "-m", small_file)
        first = run(capsys, *line)
        assert first[0] == 0, first
        assert sum(encoded) == 2 * len(LABELS)
        assert len(list(cache.glob("*.safetensors"))) == 1
        assert run(capsys, *line)[:2] == first[:2]
        assert sum(encoded) == 2 * len(LABELS)
        assert run(capsys, *line, "--no-cache")[:2] == first[:2]
        assert sum(encoded) == 4 * len(LABELS)

    def test_few_texts_leave_no_file(self, clip, cache, encoded):
        keep_on_disk(clip, LABELS[:5], "{}")
        assert not cache.exists()
        assert encoded == []

    @pytest.mark.parametrize("damage", [lambda data: data[:100], lambda data: data[:-1] + b"~", lambda _: b""])
    def test_a_damaged_file_is_made_again(self, small_file, cache, encoded, damage, caplog):
        keep_on_disk(mobileclip.load(small_file), LABELS, "{}")
        (path,) = cache.iterdir()
        path.write_bytes(damage(path.read_bytes()))
        keep_on_disk(mobileclip.load(small_file), LABELS, "{}")
        assert sum(encoded) == 2 * len(LABELS)
        assert "is damaged and made again" in caplog.text
        keep_on_disk(mobileclip.load(small_file), LABELS, "{}")
        assert sum(encoded) == 2 * len(LABELS)

    def test_other_weights_and_other_texts_have_other_files(self, clip, cache, tmp_path):
        keep_on_disk(clip, LABELS, "{}")
        keep_on_disk(clip, LABELS[:-1], "{}")
        save_model(randomised(SMALL, seed=1), tmp_path / "other.safetensors")
        other = mobileclip.load(tmp_path / "other.safetensors")
        keep_on_disk(other, LABELS, "{}")
        keep_on_disk(other, LABELS, ["a {}", "{}"])
        assert len(list(cache.iterdir())) == 4
        torch.testing.assert_close(
            other.encode_text(LABELS, keep=True), other.encode_text(LABELS), rtol=1e-5, atol=1e-6
        )

    def test_files_stay_within_their_bound(self, clip, cache):
        keep_on_disk(clip, LABELS, "{}")
        (first,) = cache.iterdir()
        bound = 2 * first.stat().st_size
        for number in range(3):
            keep_on_disk(clip, LABELS, f"{number} {{}}", most_bytes=bound)
        left = list(cache.iterdir())
        assert len(left) == 2
        assert first not in left

    def test_a_cache_that_cannot_be_written_costs_nothing_else(self, clip, tmp_path, monkeypatch, caplog):
        (tmp_path / "file").write_text("", encoding="utf-8")
        monkeypatch.setenv("XDG_CACHE_HOME", str(Path(tmp_path, "file")))
        keep_on_disk(clip, LABELS, "{}")
        assert "embeddings are not kept" in caplog.text
