/** Embeddings in few bits, as `mobileclip.collections` codes them: compared as they are, and made whole for few. */

export class Coder {
  #mean;
  #basis;
  #scale;

  /** @param {{mean: Float32Array, basis: Float32Array, scale: Float32Array}} parts a row of the basis for each number. */
  constructor({ mean, basis, scale }) {
    if (basis.length !== mean.length * scale.length) throw new Error("the codes' parts do not belong together");
    [this.#mean, this.#basis, this.#scale] = [mean, basis, scale];
  }

  /** Returns the embedding that is nearest to codes. */
  embedding(codes) {
    const scaled = this.#scale.map((value, i) => value * codes[i]);
    return this.#mean.map((value, row) => value + product(this.#row(row), scaled));
  }

  /** Returns a function that gives the score of codes: their product with a query. */
  scorer(query) {
    const [turned, offset] = [new Float32Array(this.#scale.length), product(query, this.#mean)];
    query.forEach((value, row) => this.#row(row).forEach((one, i) => (turned[i] += value * one)));
    this.#scale.forEach((value, i) => (turned[i] *= value));
    return (codes) => offset + product(codes, turned);
  }

  #row(row) {
    return this.#basis.subarray(row * this.#scale.length, (row + 1) * this.#scale.length);
  }
}

/** Returns numbers of 4 bits, two of a byte with the low one first, as bytes. */
export function fromNibbles(bytes) {
  const values = new Int8Array(2 * bytes.length);
  bytes.forEach((byte, i) => {
    values[2 * i] = (byte << 28) >> 28;
    values[2 * i + 1] = (byte << 24) >> 28;
  });
  return values;
}

/** Returns the embedding of a picture, which may have codes instead. */
export function embeddingOf({ embedding, codes, coder }) {
  return embedding ?? coder.embedding(codes);
}

/** Returns a function that gives the scores of pictures with a query. */
export function scorerOf(query) {
  const scorers = new Map();
  return ({ embedding, codes, coder }) => {
    if (embedding) return product(embedding, query);
    if (!scorers.has(coder)) scorers.set(coder, coder.scorer(query));
    return scorers.get(coder)(codes);
  };
}

function product(one, other) {
  let sum = 0;
  for (let i = 0; i < one.length; i++) sum += one[i] * other[i];
  return sum;
}
