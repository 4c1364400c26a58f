/** Reads the files that the user drops or chooses. */

/**
 * Returns the dropped files, including files in folders, with their paths.
 * @param {DataTransfer} transfer data of the drop event.
 * @returns {Promise<{file: File, path: string}[]>}
 */
export async function filesOfDrop(transfer) {
  // All entries are read at once, because the transfer is empty after the first `await`.
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry()).filter(Boolean);
  const found = await Promise.all(entries.map(filesOfEntry));
  return found.flat();
}

/** Returns the files of an input element, with their paths in the chosen folder. */
export function filesOfInput(input) {
  return [...input.files].map((file) => ({ file, path: file.webkitRelativePath || file.name }));
}

/** Returns the entries that are images by type. */
export function imagesAmong(entries) {
  return entries.filter(({ file }) => file.type.startsWith("image/"));
}

/** Returns whether a file name has the suffix of an exported index, see `indexed.js`. */
export function isIndex(path) {
  return path.endsWith(".safetensors");
}

async function filesOfEntry(entry) {
  if (entry.isFile) {
    const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
    return [{ file, path: entry.fullPath.replace(/^\//, "") }];
  }
  const reader = entry.createReader();
  const inside = [];
  for (;;) {
    // Each call returns at most a hundred entries, and none after the last entry.
    const more = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (more.length === 0) break;
    inside.push(...more);
  }
  return (await Promise.all(inside.map(filesOfEntry))).flat();
}
