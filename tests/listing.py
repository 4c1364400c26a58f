"""`python -m tests.listing` writes the kept table of models, which `mobileclip list` shows."""

import json
from pathlib import Path

from mobileclip.cli.models import LISTED
from mobileclip.inference.catalogue import rows

if __name__ == "__main__":
    Path(str(LISTED)).write_text("".join(f"{json.dumps(row)}\n" for row in rows()), encoding="utf-8")
