/** Reads reference values of Pillow, `tokenizers` and mobileclip, written by `pytest tests/examples/test_web.py`. */

import { readFileSync } from "node:fs";
import { join } from "node:path";

/** Reads a JSON file of reference values. */
export function values(name) {
  const folder = process.env.MOBILECLIP_VALUES;
  if (!folder)
    throw new Error("Run these tests by: pytest tests/examples/test_web.py, which has Python give the values");
  return JSON.parse(readFileSync(join(folder, name), "utf-8"));
}

/** Decodes base64. */
export function bytes(text) {
  return new Uint8Array(Buffer.from(text, "base64"));
}
