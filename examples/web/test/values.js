/** Values that Python gave: of Pillow, `tokenizers` and mobileclip. `pytest tests/examples/test_web.py` writes them. */

import { readFileSync } from "node:fs";
import { join } from "node:path";

/** Returns what a JSON file of the values holds. */
export function values(name) {
  const folder = process.env.MOBILECLIP_VALUES;
  if (!folder)
    throw new Error("Run these tests by: pytest tests/examples/test_web.py, which has Python give the values");
  return JSON.parse(readFileSync(join(folder, name), "utf-8"));
}

/** Returns bytes that were written as base64. */
export function bytes(text) {
  return new Uint8Array(Buffer.from(text, "base64"));
}
