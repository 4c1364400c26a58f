"""`python -m tests.listing` writes the kept table of models, which `mobileclip list` shows."""

import json

from mobileclip.inference.catalogue import rows
from mobileclip.inference.listing import FILE

if __name__ == "__main__":
    FILE.write_text("".join(f"{json.dumps(row)}\n" for row in rows()), encoding="utf-8")
