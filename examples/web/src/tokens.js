/** Texts to rows of ids. */

import { Tokenizer } from "@huggingface/tokenizers";

/**
 * Returns a function from a text to the row that the text tower takes, padded to the shortest length that holds it.
 * @param {object} file what `tokenizer.json` holds.
 * @param {{contextLength: number, lengths: ?number[], padId: number, startId: ?number, endId: number, dtype: string}} contract of the text tower;
 *   a tokenizer that puts no token in front of a text has a start of null.
 * @returns {(text: string) => Int32Array|BigInt64Array}
 */
export function makeTokenizer(file, { contextLength, lengths, padId, startId, endId, dtype }) {
  const tokenizer = new Tokenizer(file, {});
  return (text) => {
    // It pads and cuts nothing itself. Texts that are too long are cut in front of the end.
    const { ids } = tokenizer.encode(text, { add_special_tokens: false });
    const start = startId === null ? [] : [startId];
    const words = [...start, ...ids.slice(0, contextLength - start.length - 1), endId];
    const length = (lengths ?? [contextLength]).find((one) => one >= words.length);
    const row = [...words, ...new Array(length - words.length).fill(padId)];
    return dtype === "int32" ? Int32Array.from(row) : BigInt64Array.from(row, BigInt);
  };
}
