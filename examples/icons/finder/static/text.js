/** Encodes texts: runs the text towers of a model, with int8 token embeddings, without an inference runtime. */

import { folded } from "../../../web/src/ranking.js";
import { makeTokenizer } from "../../../web/src/tokens.js";

const EPSILON = 1e-5;
// Constants of the hash function in `mobileclip.data.text.ngrams`.
const [GOLDEN, ODD] = [0x9e3779b97f4a7c15n, 0xd6e8feb86659fd93n];
const NUM_PLACES = 6;
const LOW = 0xffffffffn;

/**
 * Returns a function that encodes a text with the tower that knows the largest share of the text's n-grams.
 * @param {object[]} towers towers with `contract`, `tokenizer`, `heads`, `depth` and `pool`.
 * @param {Map} tensors tensors of all towers; each name begins with the number of the tower.
 */
export function makeTextEncoder(towers, tensors) {
  const sides = towers.map((tower, i) => makeTower(tower, (name) => tensors.get(`${i}.${name}`).rows));
  return (text) => {
    const shares = sides.map(({ ngrams }) => knownShare(ngrams, text));
    const number = shares.indexOf(Math.max(...shares));
    return { tower: number, vector: sides[number].encode(text) };
  };
}

function makeTower({ contract, tokenizer, heads, depth, pool }, rows) {
  const idsOf = makeTokenizer(tokenizer, { ...contract, dtype: "int32" });
  const [table, scales, position] = [rows("tokens"), rows("scales")[0], rows("position")];
  const norm = (name, x) => layerNorm(x, rows(`${name}.weight`)[0], rows(`${name}.bias`)[0]);
  const linear = (name, x) => times(rows(`${name}.weight`), x, rows(`${name}.bias`)[0]);
  const layer = (xs, i) => {
    const qkv = xs.map((x) => linear(`${i}.qkv`, norm(`${i}.attention_norm`, x)));
    const attended = attend(qkv, heads).map((x) => linear(`${i}.project`, x));
    return xs.map((x, place) => {
      const y = plus(x, attended[place]);
      return plus(y, linear(`${i}.fc2`, linear(`${i}.fc1`, norm(`${i}.ffn_norm`, y)).map(gelu)));
    });
  };
  const encode = (text) => {
    const ids = idsOf(text);
    let features = Array.from(ids, (id, place) => position[place].map((value, i) => value + table[id][i] * scales[id]));
    for (let i = 0; i < depth; i++) features = layer(features, i);
    const end = ids.indexOf(contract.endId);
    const inside = pool === "end" ? [features[end]] : features.slice(0, end + 1);
    const pooled = inside.reduce(plus).map((value) => value / inside.length);
    return times(rows("project"), norm("norm", pooled));
  };
  return { encode, ngrams: rows("ngrams")[0] };
}

const dot = (one, other) => {
  let sum = 0;
  for (let i = 0; i < one.length; i++) sum += one[i] * other[i];
  return sum;
};
const plus = (one, other) => one.map((value, i) => value + other[i]);
const times = (matrix, x, bias) => Float32Array.from(matrix, (row, i) => dot(row, x) + (bias ? bias[i] : 0));

function layerNorm(x, weight, bias) {
  const mean = x.reduce((sum, value) => sum + value, 0) / x.length;
  const variance = x.reduce((sum, value) => sum + (value - mean) ** 2, 0) / x.length;
  const length = Math.sqrt(variance + EPSILON);
  return x.map((value, i) => ((value - mean) / length) * weight[i] + bias[i]);
}

function attend(qkv, heads) {
  const width = qkv[0].length / 3;
  const size = width / heads;
  const part = (row, which, head) => row.subarray(which * width + head * size, which * width + (head + 1) * size);
  return qkv.map((row) => {
    const found = new Float32Array(width);
    for (let head = 0; head < heads; head++) {
      const logits = qkv.map((other) => dot(part(row, 0, head), part(other, 1, head)) / Math.sqrt(size));
      const most = Math.max(...logits);
      const powers = logits.map((value) => Math.exp(value - most));
      const sum = powers.reduce((total, power) => total + power, 0);
      qkv.forEach((other, i) => {
        part(other, 2, head).forEach((value, j) => (found[head * size + j] += (value * powers[i]) / sum));
      });
    }
    return found;
  });
}

/** Returns GELU, with an approximation of the error function to 1.5e-7 (Abramowitz and Stegun, 7.1.26). */
function gelu(x) {
  const z = Math.abs(x) / Math.SQRT2;
  const t = 1 / (1 + 0.3275911 * z);
  const series = [1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592].reduce((sum, a) => sum * t + a);
  const erf = 1 - series * t * Math.exp(-z * z);
  return (x * (1 + Math.sign(x) * erf)) / 2;
}

/** Returns the share of a text's n-grams in a Bloom filter, from 0 to 1. */
export function knownShare(bits, text) {
  const hashes = new Set(wordsOf(text).flatMap(hashesOf));
  const numBits = BigInt(8 * bits.length);
  const isSet = (place) => (bits[place >> 3] & (128 >> (place & 7))) !== 0;
  let known = 0;
  for (const hash of hashes) {
    const [first, step] = [hash & LOW, (hash >> 32n) | 1n];
    const places = Array.from({ length: NUM_PLACES }, (_, i) => Number((first + BigInt(i) * step) % numBits));
    known += places.every(isSet);
  }
  return hashes.size ? known / hashes.size : 0;
}

function wordsOf(text) {
  return folded(text.normalize("NFKC")).match(/[\p{L}\p{M}\p{N}]+/gu) ?? [];
}

function hashesOf(word) {
  const codes = Array.from(`\n${word}\n`, (letter) => letter.codePointAt(0));
  const hashOf = (run, size) =>
    BigInt.asUintN(
      64,
      run.reduce((sum, code, at) => sum + mixed(code, at, size), 0n),
    );
  const runs = (size) => codes.slice(size - 1).map((_, i) => hashOf(codes.slice(i, i + size), size));
  return [hashOf(codes.slice(0, -1), 0), ...runs(2), ...runs(3)];
}

function mixed(code, at, size) {
  const product = (one, other) => BigInt.asUintN(64, one * other);
  let value = BigInt.asUintN(64, BigInt(code) * GOLDEN + BigInt(at + 1024 * size + 1) * ODD);
  for (const shift of [32n, 29n]) value = product(value ^ (value >> shift), ODD);
  return value ^ (value >> 32n);
}
