"""Strict types for specs and bounded parsing of JSON.

What checks a value without knowing what it is for belongs here.
"""

from mobileclip.strict.fields import NOT_IN_JSON, fitting, strict
from mobileclip.strict.json_text import parse_json
from mobileclip.strict.lines import split_lines
from mobileclip.strict.repeated import repeated

__all__ = ["NOT_IN_JSON", "fitting", "parse_json", "repeated", "split_lines", "strict"]
