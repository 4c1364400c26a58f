"""Embeddings of texts that are kept: nothing is encoded twice, and nothing is kept too long."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import mobileclip
from mobileclip.inference.texts import TextEmbeddingCache

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


class TestMemory:
    def test_labels_are_encoded_for_the_first_picture_alone(self, clip, encoded):
        picture, templates = np.zeros((64, 64, 3), np.uint8), ["a photo of a {}", "a {}"]
        first = clip.classify(picture, LABELS, template=templates)
        assert sum(encoded) == 2 * len(LABELS)
        assert clip.classify(picture, LABELS, template=templates) == first
        assert list(clip.classify(picture, LABELS[:3], template=templates[1])) != []
        assert sum(encoded) == 2 * len(LABELS)

    def test_several_templates_are_the_mean_of_unit_length_embeddings(self, clip):
        picture, templates = np.zeros((64, 64, 3), np.uint8), ["a photo of a {}", "the {}, drawn"]
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
        kept, asked = TextEmbeddingCache(max_bytes=3 * (4 * 100 + 60)), []

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
            found = pool.map(lambda texts: clip.encode_text(texts, keep=True), turns)
            for texts, rows in zip(turns, found, strict=True):
                torch.testing.assert_close(rows, torch.stack([expected[text] for text in texts]), rtol=1e-4, atol=1e-5)

    def test_what_is_pickled_takes_nothing_along(self, clip, encoded):
        clip.encode_text(LABELS, keep=True)
        other = pickle.loads(pickle.dumps(clip))
        encoded.clear()
        other.encode_text(LABELS, keep=True)
        assert sum(encoded) == len(LABELS)
