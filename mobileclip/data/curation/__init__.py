"""Which pairs of a reinforced data set are worth training on, from what its teachers stored; no teacher runs again.

Scores of shards, lists of uids made from them, near duplicates. Whatever needs a model belongs elsewhere.
"""

from mobileclip.data.curation.duplicates import DuplicatesSpec, find_duplicates
from mobileclip.data.curation.filtering import FilterSpec, filter_samples
from mobileclip.data.curation.logit_scales import LogitScaleReport, LogitScaleSpec, tune_scales
from mobileclip.data.curation.scores import Scores, ScoreSpec, score_shards

__all__ = [
    "DuplicatesSpec",
    "FilterSpec",
    "LogitScaleReport",
    "LogitScaleSpec",
    "ScoreSpec",
    "Scores",
    "filter_samples",
    "find_duplicates",
    "score_shards",
    "tune_scales",
]
