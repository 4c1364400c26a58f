import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { gunzipSync } from "node:zlib";

import { readSafetensors } from "../../../web/src/safetensors.js";
import { cosine } from "../../../web/src/similarity.js";
import { knownShare, makeTextEncoder } from "./text.js";

const { folder, texts } = JSON.parse(readFileSync(process.env.MOBILECLIP_VALUES, "utf-8"));
const unpacked = (name) => gunzipSync(readFileSync(`${folder}/${name}`));
const tensors = readSafetensors(new Uint8Array(unpacked("index.bin")).buffer);
const encode = makeTextEncoder(JSON.parse(unpacked("catalogue.bin")).towers, tensors);

for (const { text, shares, tower, vector } of texts) {
  test(`${JSON.stringify(text.slice(0, 20))} goes to Python's tower, and gives its vector`, () => {
    shares.forEach((share, i) => {
      const found = knownShare(tensors.get(`${i}.ngrams`).rows[0], text);
      assert.ok(Math.abs(found - share) < 1e-9, `tower ${i} knows ${found}, in Python ${share}`);
    });
    const found = encode(text);
    assert.equal(found.tower, tower);
    assert.ok(cosine(found.vector, vector) > 0.999, `cosine ${cosine(found.vector, vector)}`);
  });
}
