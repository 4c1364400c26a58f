import assert from "node:assert/strict";
import { test } from "node:test";

import { checkGolden } from "../src/golden.js";
import { cosine, probabilities } from "../src/similarity.js";

test("cosines are blind to lengths", () => {
  assert.equal(cosine([3, 4], [6, 8]), 1);
  assert.equal(cosine([1, 0], [0, 2]), 0);
  assert.equal(cosine([1, 0], [-5, 0]), -1);
  assert.ok(Number.isNaN(cosine([0, 0], [1, 0])));
});

test("probabilities do not overflow", () => {
  assert.deepEqual(probabilities([1, 1], 1e6), [0.5, 0.5]);
  const [one, other] = probabilities([0.5, 0.25], 4);
  assert.ok(Math.abs(one / other - Math.E) < 1e-12);
});

const contract = {
  image: { inputName: "pixels", outputName: "image_embedding" },
  text: { inputName: "tokens", outputName: "text_embedding" },
};
const report = {
  checks: ["image", "text"].map((tower) => ({ name: `${tower} cosine, minimum`, bound: "> 0.9995", passed: true })),
};

function goldenOf(image) {
  const text = [[0, 1]];
  const rows = { pixels: [[1]], image_embedding: [image], tokens: [[1]], text_embedding: text };
  return new Map(Object.entries(rows).map(([name, values]) => [name, { rows: values }]));
}

for (const [embedding, passed] of [
  [[1, 0], true],
  [[1, 0.03], true],
  [[1, 0.04], false],
  [[0, 0], false],
  [[NaN, 1], false],
]) {
  test(`the golden check of ${JSON.stringify(embedding)} is ${passed}`, async () => {
    const model = { embed: async (tower) => (tower === "image" ? embedding : [0, 1]) };
    assert.equal((await checkGolden(model, goldenOf([1, 0]), contract, report)).passed, passed);
  });
}
