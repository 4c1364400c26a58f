"""The noisy captions of the drawings: keywords that people gave to them."""

from examples.quickstart.emoji.captions import keyword_caption
from examples.quickstart.emoji.concepts import Concept


def concept(*keywords):
    return Concept(
        code="1f600",
        label="grinning face",
        tags=(),
        keywords=keywords,
        group="smileys",
        subgroup="faces",
        family="1f600",
    )


class TestCaptions:
    WORDS = ("cheerful", "face", "grin", "happy", "smile", ":)")

    def test_a_real_caption_is_some_of_the_keywords(self):
        captions = {keyword_caption(concept(*self.WORDS), key=f"picture {index}", seed=0) for index in range(200)}
        lists = [caption.split(", ") for caption in captions]
        assert {len(words) for words in lists} == {1, 2, 3, 4}
        assert {word for words in lists for word in words} == set(self.WORDS) - {":)"}
        assert all(len(set(words)) == len(words) for words in lists)

    def test_it_depends_on_picture_and_seed_alone(self):
        one, again, other = (keyword_caption(concept(*self.WORDS), key="a", seed=seed) for seed in (0, 0, 1))
        assert one == again != other

    def test_a_concept_without_keywords_has_its_kind(self):
        assert set(keyword_caption(concept(), key="a", seed=0).split(", ")) <= {"smileys", "faces"}
