"""Sets of captions side by side: how well they fit their pictures, how long and how varied they are.

Who writes captions is in `reinforce`; how models are scored, in `evaluation.tasks`.
"""

from mobileclip.evaluation.captions.judging import Judgement, agreement, judge_captions
from mobileclip.evaluation.captions.measures import distinct_ngrams, mean_words, names_recalled
from mobileclip.evaluation.captions.page import judged_table, write_captions_page
from mobileclip.evaluation.captions.sets import Captioned, read_caption_sets

__all__ = [
    "Captioned",
    "Judgement",
    "agreement",
    "distinct_ngrams",
    "judge_captions",
    "judged_table",
    "mean_words",
    "names_recalled",
    "read_caption_sets",
    "write_captions_page",
]
