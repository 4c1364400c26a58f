/** The page's side of the worker: each request is a promise. */

import { PageError } from "./errors.js";

export class Engine {
  #worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
  #waiting = new Map();
  #count = 0;
  #texts = new Map();
  /** Told of bytes while an export is loaded. */
  onProgress = () => {};

  constructor() {
    this.#worker.onmessage = ({ data }) => this.#receive(data);
    this.#worker.onerror = (event) => {
      event.preventDefault();
      this.#fail(new PageError(`The page's worker has stopped: ${event.message ?? "its file cannot be loaded"}`));
    };
  }

  /**
   * Opens an export.
   * @param {string} folder its address.
   * @param {"webgpu"|"wasm"|null} backend what computes; the fastest that is correct where it is null.
   */
  load(folder, backend) {
    return this.#ask("load", { folder, backend });
  }

  /**
   * Embeds a picture.
   * @param {Blob} blob its file.
   * @param {{name: string, thumbnail?: number}} options its name, and the longer side of a small copy.
   */
  image(blob, { name, thumbnail }) {
    return this.#ask("image", { blob, name, thumbnail });
  }

  /**
   * Embeds texts, each of them once.
   * @param {string[]} texts to be embedded.
   * @returns {Promise<{embeddings: Float32Array[], milliseconds: number, count: number}>} `count` of them were new.
   */
  async texts(texts) {
    const fresh = [...new Set(texts)].filter((text) => !this.#texts.has(text));
    if (fresh.length === 0)
      return { embeddings: texts.map((text) => this.#texts.get(text)), milliseconds: 0, count: 0 };
    const { embeddings, milliseconds } = await this.#ask("texts", { texts: fresh });
    fresh.forEach((text, i) => this.#texts.set(text, embeddings[i]));
    return { embeddings: texts.map((text) => this.#texts.get(text)), milliseconds, count: fresh.length };
  }

  /** Returns the pictures that came with the export, as files, and labels to try on them. */
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
