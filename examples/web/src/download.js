/** Downloads the files of an export, and reports progress. */

import { fetchFile } from "./contract.js";

/**
 * Returns the contents of several files.
 * @param {string} folder URL of the export.
 * @param {string[]} names names of the files.
 * @param {(loaded: number, total: number) => void} onProgress receives numbers of bytes; an unknown total is 0.
 * @returns {Promise<Uint8Array[]>}
 */
export async function download(folder, names, onProgress) {
  const responses = await Promise.all(names.map((name) => fetchFile(folder, name)));
  const lengths = responses.map(({ headers }) => Number(headers.get("content-length")));
  const total = lengths.every((length) => length > 0) ? lengths.reduce((sum, length) => sum + length) : 0;
  let loaded = 0;
  return Promise.all(
    responses.map((response) =>
      bytesOf(response, (more) => {
        loaded += more;
        onProgress(loaded, total);
      }),
    ),
  );
}

async function bytesOf(response, onMore) {
  const parts = [];
  const reader = response.body.getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return new Uint8Array(await new Blob(parts).arrayBuffer());
    parts.push(value);
    onMore(value.length);
  }
}
