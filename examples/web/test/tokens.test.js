import assert from "node:assert/strict";
import { test } from "node:test";

import { makeTokenizer } from "../src/tokens.js";
import { values } from "./values.js";

for (const { name, contract, file, rows } of values("tokens.json")) {
  test(`${rows.length} texts give the rows of Python's tokenizers: ${name}`, () => {
    const tokensOf = makeTokenizer(file, contract);
    assert.ok(rows.length > 10);
    for (const { text, ids } of rows) {
      assert.deepEqual(Array.from(tokensOf(text), Number), ids, JSON.stringify(text));
    }
  });
}
