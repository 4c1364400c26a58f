import assert from "node:assert/strict";
import { test } from "node:test";

import { makeTokenizer } from "../src/tokens.js";
import { values } from "./values.js";

const { contract, file, rows } = values("tokens.json");

test(`${rows.length} texts give the rows of Python's tokenizers`, () => {
  const tokensOf = makeTokenizer(file, contract);
  assert.ok(rows.length > 100);
  for (const { text, ids } of rows) {
    assert.deepEqual(Array.from(tokensOf(text), Number), ids, JSON.stringify(text));
  }
});
