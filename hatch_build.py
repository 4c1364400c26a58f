"""What the build makes of the metadata: long description and URLs, from the README and one address."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface


class CustomMetadataHook(MetadataHookInterface):
    """Fills in `readme` and `urls`."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Add both to the metadata."""
        sys.path.append(str(Path(self.root) / "docs" / "site"))
        from long_description import long_description, urls

        metadata["readme"] = {"content-type": "text/markdown", "text": long_description()}
        metadata["urls"] = urls()
