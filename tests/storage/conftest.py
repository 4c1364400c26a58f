"""Two stores that run here."""

from tests.stores import s3, site  # noqa: F401  fixtures
