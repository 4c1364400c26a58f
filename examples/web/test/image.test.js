import assert from "node:assert/strict";
import { test } from "node:test";

import { planCrop } from "../src/geometry.js";
import { inputOf, pixelsOfInput, putOn } from "../src/image.js";
import { makeResampler } from "../src/resample.js";
import { bytes, values } from "./values.js";

const ROWS_AT_ONCE = 7;

for (const { width, height, size, interpolation, pixels, expected } of values("resampled.json")) {
  test(`${width} x ${height} to ${size}, ${interpolation}: Pillow's pixels to the bit`, () => {
    const rgb = bytes(pixels);
    const rgba = Uint8ClampedArray.from({ length: width * height * 4 }, (_, i) =>
      i % 4 === 3 ? i % 256 : rgb[Math.floor(i / 4) * 3 + (i % 4)],
    );
    const resampler = makeResampler({ ...planCrop({ width, height }, size), interpolation });
    for (let row = resampler.firstRow; row < resampler.endRow; row += ROWS_AT_ONCE) {
      const end = Math.min(row + ROWS_AT_ONCE, resampler.endRow);
      resampler.addRows(rgba.subarray(row * width * 4, end * width * 4));
    }
    assert.deepEqual(new Uint8Array(resampler.finish()), bytes(expected));
  });
}

for (const { background, pixels, expected } of values("composited.json")) {
  test(`transparent pictures on ${background}: Pillow's pixels to the bit`, () => {
    const rgba = putOn(bytes(pixels), background);
    assert.deepEqual(
      rgba.filter((_, i) => i % 4 !== 3),
      bytes(expected),
    );
  });
}

test("inputs are those of the library to the bit, and give back the pixels", () => {
  const { pixels, mean, std, inputs } = values("inputs.json");
  for (const [preprocess, expected] of Object.entries(inputs)) {
    const contract = { preprocess, mean, std };
    const input = inputOf(bytes(pixels), contract);
    assert.deepEqual(new Uint8Array(input.buffer), bytes(expected), preprocess);
    assert.deepEqual(new Uint8Array(pixelsOfInput(input, contract)), bytes(pixels), preprocess);
  }
});

test("a picture that is thousands of times as long as wide is refused", () => {
  assert.throws(() => planCrop({ width: 1, height: 3000 }, 256), /1 x 3000 pixels, which is too long and thin/);
  assert.deepEqual(planCrop({ width: 1, height: 2000 }, 256).to, { width: 256, height: 512000 });
});
