/** Texts to rows of ids. */

import { Tokenizer } from "@huggingface/tokenizers";

/**
 * Returns a function from a text to the whole padded row that the text tower takes.
 * @param {object} file what `tokenizer.json` holds.
 * @param {{contextLength: number, padId: number, startId: number, endId: number}} contract of the text tower.
 * @returns {(text: string) => BigInt64Array}
 */
export function makeTokenizer(file, { contextLength, padId, startId, endId }) {
  const tokenizer = new Tokenizer(file, {});
  return (text) => {
    // It pads and cuts nothing itself. Texts that are too long are cut in front of the end.
    const { ids } = tokenizer.encode(text, { add_special_tokens: false });
    const row = [startId, ...ids.slice(0, contextLength - 2), endId];
    const padding = new Array(contextLength - row.length).fill(padId);
    return BigInt64Array.from([...row, ...padding], BigInt);
  };
}
