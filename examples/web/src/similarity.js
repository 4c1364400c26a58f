/** Compares embeddings. */

/** Returns the cosine similarity of two vectors; NaN if a vector is zero. */
export function cosine(one, other) {
  let [product, first, second] = [0, 0, 0];
  for (let i = 0; i < one.length; i++) {
    product += one[i] * other[i];
    first += one[i] * one[i];
    second += other[i] * other[i];
  }
  return product / Math.sqrt(first * second);
}

/** Returns the probabilities of labels for an image: the softmax of the scaled cosines. */
export function probabilities(cosines, logitScale) {
  const most = Math.max(...cosines);
  const powers = cosines.map((value) => Math.exp(logitScale * (value - most)));
  const sum = powers.reduce((total, power) => total + power, 0);
  return powers.map((power) => power / sum);
}
