"""The kept table of models that `mobileclip list` shows.

`python -m tests.listing` writes it anew.
"""

import json

from mobileclip.encoders.checkpoints import PACKAGED
from mobileclip.inference.catalogue import rows
from mobileclip.inference.listing import FILE
from tests.names import FILE as NAMES


def own_rows() -> list[dict[str, str | None]]:
    """Return the rows of the library's own models, as they are computed."""
    registries = json.loads(NAMES.read_text(encoding="utf-8"))["registries"]
    own = {*PACKAGED}.union(*(registries[kind] for kind in ("model", "image_encoder", "text_encoder")))
    return [row for row in rows() if row["name"] in own]


if __name__ == "__main__":
    FILE.write_text("".join(f"{json.dumps(row)}\n" for row in own_rows()), encoding="utf-8")
