/** Caches the embeddings of images in the browser's database. */

const NAME = "mobileclip";
const KIND = "pictures";

/** Returns the SHA-256 of a file; null on a page without a secure context, where browsers compute no hashes. */
export async function hashOf(blob) {
  if (!globalThis.crypto?.subtle) return null;
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", await blob.arrayBuffer()));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** A cache of embeddings by model and hash of the image file. */
export class Store {
  #database;
  #model;

  /** @param {string} model hash of the image tower's file. */
  constructor(model) {
    this.#model = model;
    this.#database = open();
  }

  /** Returns the stored values of an image, or undefined. */
  async get(hash) {
    const database = hash && (await this.#database);
    return database ? answer(database.transaction(KIND).objectStore(KIND).get(`${this.#model} ${hash}`)) : undefined;
  }

  /** Stores the values of an image; ignores errors from a full disk or a private window. */
  async put(hash, value) {
    const database = hash && (await this.#database);
    if (!database) return;
    const request = database.transaction(KIND, "readwrite").objectStore(KIND).put(value, `${this.#model} ${hash}`);
    await answer(request).catch(() => {});
  }
}

async function open() {
  try {
    const request = indexedDB.open(NAME, 1);
    request.onupgradeneeded = () => request.result.createObjectStore(KIND);
    return await answer(request);
  } catch {
    return null;
  }
}

function answer(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}
