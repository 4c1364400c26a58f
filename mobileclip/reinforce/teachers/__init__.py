"""Teachers: image-text models whose embeddings are stored, and ensembles of them."""

from mobileclip.reinforce.teachers.ensemble import TeacherEnsemble
from mobileclip.reinforce.teachers.model import ModelTeacher, normalize_pixels
from mobileclip.reinforce.teachers.protocol import Teacher
from mobileclip.reinforce.teachers.weights import weights_sha256

__all__ = ["ModelTeacher", "Teacher", "TeacherEnsemble", "normalize_pixels", "weights_sha256"]
