"""Stores that fail at once, and two that run here."""

from tests.stores import no_pauses, s3, site  # noqa: F401  fixtures
