/**
 * Computes query embeddings and ranks images, like `mobileclip.collections`; tests compare both implementations.
 */

import { PageError } from "./errors.js";

// Weight of the excluded embeddings in a query; `NEGATIVE_WEIGHT` of `mobileclip.collections.queries`.
const AWAY = 0.5;
const TINY = 2 ** -126;
const NUMBERS = ["size", "width", "height", "latitude", "longitude", "time"];
const TEXTS = ["path", "part", "camera", "taken", "sha256"];
const CONDITION = /^\s*([A-Za-z_0-9]+)\s*(<=|>=|!=|==|=|<|>|~)\s*(.*?)\s*$/s;
const DATE = /^(\d{4})(?:-(\d\d?)(?:-(\d\d?)(?:[T ](\d\d?)(?::(\d\d?)(?::(\d\d?))?)?)?)?)?$/;
const MOMENT = "0000-01-01T00:00:00";
// Sorts after all digits and separators of a date.
const END = "~";
const EXPECTED = "Expected a column, a comparison and a value, such as width>1000, taken>=2024-05 or path~holiday.";
const COMPARE = {
  "=": (one, other) => one === other,
  "!=": (one, other) => one !== other,
  "<": (one, other) => one < other,
  "<=": (one, other) => one <= other,
  ">": (one, other) => one > other,
  ">=": (one, other) => one >= other,
  "~": (one, other) => folded(one).includes(folded(other)),
};

/** Returns a vector scaled to unit length. */
export function unit(vector) {
  let squares = 0;
  for (const value of vector) squares += value * value;
  const length = Math.max(Math.sqrt(squares), TINY);
  return Float32Array.from(vector, (value) => value / length);
}

/**
 * Returns the query embedding: the mean wanted embedding, minus half of the mean excluded embedding.
 * @param {Float32Array[]} wanted embeddings of texts and images, of unit length.
 * @param {Float32Array[]} unwanted embeddings to exclude, of unit length.
 */
export function direction(wanted, unwanted = []) {
  const mean = (vectors, i) => vectors.reduce((sum, vector) => sum + vector[i], 0) / vectors.length;
  const away = (i) => (unwanted.length ? AWAY * mean(unwanted, i) : 0);
  return unit(Array.from(wanted[0], (_, i) => mean(wanted, i) - away(i)));
}

/**
 * Returns images with their scores, best first; images with equal scores keep their order.
 * @template {{embedding: Float32Array, facts: object}} Picture an embedding of unit length, and metadata by column.
 * @param {Picture[]} pictures images to rank.
 * @param {Float32Array} query query embedding, see `direction`.
 * @param {{where?: string[], allFrames?: boolean}} options conditions that all results must meet, and whether to return
 *   several frames of a video.
 * @returns {{picture: Picture, score: number}[]}
 * @throws {PageError} if a condition is invalid.
 */
export function rank(pictures, query, { where = [], allFrames = false } = {}) {
  const conditions = where.map(parseCondition);
  const seen = new Set();
  const isFirst = ({ path, time }) => allFrames || time === undefined || (!seen.has(path) && seen.add(path));
  return pictures
    .filter(({ facts }) => conditions.every((condition) => condition(facts)))
    .map((picture) => ({ picture, score: product(picture.embedding, query) }))
    .sort((one, other) => other.score - one.score)
    .filter(({ picture }) => isFirst(picture.facts));
}

function product(one, other) {
  let sum = 0;
  for (let i = 0; i < one.length; i++) sum += one[i] * other[i];
  return sum;
}

/** Returns a function that tests the metadata of an image with a condition, such as `width>1000`. */
export function parseCondition(text) {
  const [, name, sign, given] = CONDITION.exec(text) ?? [];
  if (!given) throw new PageError(`'${text}' is no condition. ${EXPECTED}`);
  const column = name.toLowerCase();
  const comparison = sign === "==" ? "=" : sign;
  if (![...NUMBERS, ...TEXTS].includes(column))
    throw new PageError(`There is no column '${column}'; expected one of ${[...NUMBERS, ...TEXTS].join(", ")}.`);
  const met = meets(column, comparison, given);
  // An image without a value meets no condition on the column.
  return (facts) => facts[column] !== undefined && met(facts[column]);
}

function meets(column, comparison, given) {
  const compare = COMPARE[comparison];
  if (NUMBERS.includes(column)) {
    const number = Number(given);
    if (!Number.isFinite(number) || comparison === "~")
      throw new PageError(`${column} is a number: ${comparison}${given} compares it with none. ${EXPECTED}`);
    return (value) => compare(value, number);
  }
  if (column !== "taken" || comparison === "~") return (value) => compare(value, given);
  const first = dateOf(given);
  const isWithin = (value) => value >= first && value <= first + END;
  if (comparison === "=") return isWithin;
  if (comparison === "!=") return (value) => !isWithin(value);
  const bound = comparison === "<" || comparison === ">=" ? first : first + END;
  return comparison.startsWith("<") ? (value) => value < bound : (value) => value >= bound;
}

/** Returns a complete or partial date in ISO format: `2024-06-01T09` for `2024-6-1 9`. */
function dateOf(text) {
  const parts = DATE.exec(text)?.slice(1).filter(Boolean) ?? [];
  const moment = parts.map((part, i) => ["", "-", "-", "T", ":", ":"][i] + part.padStart(2, "0")).join("");
  const whole = moment + MOMENT.slice(moment.length);
  const date = new Date(`${whole}Z`);
  if (!parts.length || parts[0] === "0000" || !(date > -Infinity) || !date.toISOString().startsWith(whole))
    throw new PageError(`taken is a date, and '${text}' is none; expected one such as 2024, 2024-06 or 2024-06-01T12:30.`);
  return moment;
}

/** Returns a text in lower case, letter by letter, like Python's casefold. */
export function folded(text) {
  return Array.from(text, (letter) => (letter === "ı" ? letter : letter.toUpperCase().toLowerCase())).join("");
}
