/** The page's interface to the worker; each request returns a promise. */

import { PageError } from "./errors.js";

export class Engine {
  #worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
  #waiting = new Map();
  #count = 0;
  #texts = new Map();
  /** Callback for the progress of loading an export. */
  onProgress = () => {};

  constructor() {
    this.#worker.onmessage = ({ data }) => this.#receive(data);
    this.#worker.onerror = (event) => {
      event.preventDefault();
      this.#fail(new PageError(`The page's worker has stopped: ${event.message ?? "its file cannot be loaded"}`));
    };
  }

  /**
   * Loads an export.
   * @param {string} folder URL of the export.
   * @param {"webgpu"|"wasm"|null} backend backend; null for the fastest backend that passes the golden check.
   */
  load(folder, backend) {
    return this.#ask("load", { folder, backend });
  }

  /**
   * Encodes an image.
   * @param {Blob} blob image file.
   * @param {{name: string, thumbnail?: number}} options name of the image, and longer side of an additional small copy.
   */
  image(blob, { name, thumbnail }) {
    return this.#ask("image", { blob, name, thumbnail });
  }

  /**
   * Encodes texts, and caches the embeddings.
   * @param {string[]} texts texts to encode.
   * @returns {Promise<{embeddings: Float32Array[], milliseconds: number, count: number}>} `count` is the number of
   *   texts that were not cached.
   */
  async texts(texts) {
    const fresh = [...new Set(texts)].filter((text) => !this.#texts.has(text));
    if (fresh.length === 0)
      return { embeddings: texts.map((text) => this.#texts.get(text)), milliseconds: 0, count: 0 };
    const { embeddings, milliseconds } = await this.#ask("texts", { texts: fresh });
    fresh.forEach((text, i) => this.#texts.set(text, embeddings[i]));
    return { embeddings: texts.map((text) => this.#texts.get(text)), milliseconds, count: fresh.length };
  }

  /** Returns the sample images of the export, as files, and sample labels. */
  samples() {
    return this.#ask("samples");
  }

  #ask(action, values) {
    const id = this.#count++;
    this.#worker.postMessage({ id, action, values });
    return new Promise((resolve, reject) => this.#waiting.set(id, { resolve, reject }));
  }

  #receive({ id, result, error, progress }) {
    if (progress) return this.onProgress(progress);
    const { resolve, reject } = this.#waiting.get(id);
    this.#waiting.delete(id);
    if (error) reject(error.known ? new PageError(error.message) : new Error(error.message));
    else resolve(result);
  }

  #fail(error) {
    for (const { reject } of this.#waiting.values()) reject(error);
    this.#waiting.clear();
  }
}
