/** Files out of what people drop. */

/**
 * Returns the files in a drop, those in folders included, with their paths.
 * @param {DataTransfer} transfer what was dropped.
 * @returns {Promise<{file: File, path: string}[]>}
 */
export async function filesOfDrop(transfer) {
  // All entries at once: the transfer is empty after the first wait.
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry()).filter(Boolean);
  const found = await Promise.all(entries.map(filesOfEntry));
  return found.flat();
}

/** Returns the files of an input with their paths in the chosen folder. */
export function filesOfInput(input) {
  return [...input.files].map((file) => ({ file, path: file.webkitRelativePath || file.name }));
}

/** Returns those that may be images: folders hold other things too. */
export function imagesAmong(entries) {
  return entries.filter(({ file }) => file.type.startsWith("image/"));
}

/** Returns whether a file is called like pictures that `mobileclip index --web` wrote. */
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
    // A hundred at a time, until there are no more.
    const more = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (more.length === 0) break;
    inside.push(...more);
  }
  return (await Promise.all(inside.map(filesOfEntry))).flat();
}
