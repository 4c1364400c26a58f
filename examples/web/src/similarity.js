/** Embeddings beside each other. */

/** Returns the cosine of the angle between two vectors; NaN if one has no length. */
export function cosine(one, other) {
  let [product, first, second] = [0, 0, 0];
  for (let i = 0; i < one.length; i++) {
    product += one[i] * other[i];
    first += one[i] * one[i];
    second += other[i] * other[i];
  }
  return product / Math.sqrt(first * second);
}

/** Returns the probabilities of labels for a picture: the softmax of their scaled cosines. */
export function probabilities(cosines, logitScale) {
  const most = Math.max(...cosines);
  const powers = cosines.map((value) => Math.exp(logitScale * (value - most)));
  const sum = powers.reduce((total, power) => total + power, 0);
  return powers.map((power) => power / sum);
}
