/** Tokenizes texts. */

import { Tokenizer } from "@huggingface/tokenizers";

/**
 * Returns a function that converts a text to token ids, padded to the shortest sufficient length.
 * @param {object} file content of `tokenizer.json`.
 * @param {{contextLength: number, lengths: ?number[], padId: number, startId: ?number, endId: number, dtype: string}} contract contract of the
 *   text tower; `startId` is null for a tokenizer without a start token.
 * @returns {(text: string) => Int32Array|BigInt64Array}
 */
export function makeTokenizer(file, { contextLength, lengths, padId, startId, endId, dtype }) {
  const tokenizer = new Tokenizer(file, {});
  return (text) => {
    // The tokenizer neither pads nor truncates. Truncation keeps the end token.
    const { ids } = tokenizer.encode(text, { add_special_tokens: false });
    const start = startId === null ? [] : [startId];
    const words = [...start, ...ids.slice(0, contextLength - start.length - 1), endId];
    const length = (lengths ?? [contextLength]).find((one) => one >= words.length);
    const row = [...words, ...new Array(length - words.length).fill(padId)];
    return dtype === "int32" ? Int32Array.from(row) : BigInt64Array.from(row, BigInt);
  };
}
