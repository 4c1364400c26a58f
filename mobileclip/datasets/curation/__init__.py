"""Chooses samples of a reinforced data set by its stored embeddings: scores, filters, near duplicates.

Scores of shards, lists of uids made from them, near duplicates. Whatever needs a model belongs elsewhere.
"""

from mobileclip.datasets.curation.duplicates import (
    DuplicatesSpec,
    VectorTable,
    find_centres,
    find_duplicates,
    members_of_clusters,
)
from mobileclip.datasets.curation.filtering import FilterSpec, filter_samples
from mobileclip.datasets.curation.logit_scales import SCALES, LogitScaleReport, LogitScaleSpec, tune_scales
from mobileclip.datasets.curation.scores import Scores, ScoreSpec, columns_of, image_vector, score_shards, similarities

__all__ = [
    "SCALES",
    "DuplicatesSpec",
    "FilterSpec",
    "LogitScaleReport",
    "LogitScaleSpec",
    "ScoreSpec",
    "Scores",
    "VectorTable",
    "columns_of",
    "filter_samples",
    "find_centres",
    "find_duplicates",
    "image_vector",
    "members_of_clusters",
    "score_shards",
    "similarities",
    "tune_scales",
]
