"""What may come in from JSON and into the fields of specs: strict types, finite numbers, bounded sizes."""

from mobileclip.strict.fields import fitting, strict
from mobileclip.strict.json_text import parse_json

__all__ = ["fitting", "parse_json", "strict"]
