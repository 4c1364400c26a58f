"""How good a model is on data that it has not been trained on."""

from mobileclip.evaluation.classification import (
    ClassificationResult,
    classification_accuracy,
    embed_classes,
    ensemble_prompts,
    zero_shot_classification,
)
from mobileclip.evaluation.embedding import ImageTextModel, Tokenize, embed_images, embed_labelled_images, embed_texts
from mobileclip.evaluation.retrieval import Recall, RetrievalResult, retrieval, retrieval_recall

__all__ = [
    "ClassificationResult",
    "ImageTextModel",
    "Recall",
    "RetrievalResult",
    "Tokenize",
    "classification_accuracy",
    "embed_classes",
    "embed_images",
    "embed_labelled_images",
    "embed_texts",
    "ensemble_prompts",
    "retrieval",
    "retrieval_recall",
    "zero_shot_classification",
]
