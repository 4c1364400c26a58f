/** A collection of the user's images, with embeddings for searches. */

import { PageError } from "./errors.js";
import { readIndexed } from "./indexed.js";
import { direction, rank, unit } from "./ranking.js";
import { cosine } from "./similarity.js";
import { hashOf } from "./store.js";

const THUMBNAIL = 480;
// Minimum cosine between a text's embeddings by this model and by the index's model; int8 reaches more than 0.98.
const LEAST_COSINE = 0.97;

export class Collection {
  #engine;
  #store;
  #pictures = new Map();

  /**
   * @param {import("./engine.js").Engine} engine engine with a loaded model.
   * @param {import("./store.js").Store} store cache of embeddings.
   */
  constructor(engine, store) {
    this.#engine = engine;
    this.#store = store;
  }

  /** Number of images. */
  get size() {
    return this.#pictures.size;
  }

  /**
   * Adds images, without duplicates.
   * @param {{file: File, path: string}[]} entries files to add.
   * @param {{signal: AbortSignal, onProgress: Function}} options `onProgress` receives the number of finished
   *   images, the number of images from the cache, and the estimated remaining seconds.
   * @returns {Promise<string[]>} one message per unreadable file.
   */
  async add(entries, { signal, onProgress }) {
    const failures = [];
    let known = 0;
    const start = performance.now();
    for (const [i, { file, path }] of entries.entries()) {
      if (signal.aborted) break;
      try {
        known += await this.#addOne(file, path);
      } catch (error) {
        if (!(error instanceof PageError)) throw error;
        failures.push(error.message);
      }
      const computed = i + 1 - known;
      const left = entries.length - i - 1;
      const seconds = computed ? ((performance.now() - start) / computed / 1000) * left : 0;
      onProgress({ done: i + 1, total: entries.length, known, seconds });
    }
    return failures;
  }

  /**
   * Adds the images of an exported index.
   * @param {File} file file written by `mobileclip index --output`.
   * @throws {PageError} if the file is not an exported index, or has embeddings of another model.
   */
  async open(file) {
    const { probes, pictures } = await readIndexed(file);
    const { embeddings } = await this.#engine.texts(probes.texts);
    const cosines = embeddings.map((embedding, i) =>
      embedding.length === probes.embeddings[i]?.length ? cosine(embedding, probes.embeddings[i]) : 0,
    );
    const least = Math.min(...cosines);
    if (!(least >= LEAST_COSINE))
      throw new PageError(
        `The images of ${file.name} were indexed with another model (cosine ${least.toFixed(3)} for a text). ` +
          "Index the images with the checkpoint of this page's export.",
      );
    for (const picture of pictures)
      this.#enter(`${file.name} ${picture.path}`, { ...picture, file: picture.thumbnail });
  }

  /**
   * Returns all images that meet the conditions, best first.
   * @param {{text?: string, picture?: File, like?: string, not?: string, where?: string[], allFrames?: boolean}} query
   *   text of the query, example image, id of an example in the collection, text to exclude, and conditions.
   */
  async search({ text = "", picture = null, like = null, not = "", where = [], allFrames = false }) {
    const texts = [text, not].filter(Boolean);
    const { embeddings, milliseconds } = await this.#engine.texts(texts);
    const units = new Map(texts.map((one, i) => [one, unit(embeddings[i])]));
    const wanted = text ? [units.get(text)] : [];
    if (picture) wanted.push(unit((await this.#engine.image(picture, { name: picture.name })).embedding));
    if (like !== null) wanted.push(unit(this.#pictures.get(like).embedding));
    const query = direction(wanted, not ? [units.get(not)] : []);
    return { ranked: rank([...this.#pictures.values()], query, { where, allFrames }), milliseconds };
  }

  #enter(id, { thumbnail, ...picture }) {
    this.#pictures.set(id, { id, ...picture, address: URL.createObjectURL(thumbnail) });
  }

  /** Adds an image, and returns whether its embedding was known. */
  async #addOne(file, path) {
    const hash = await hashOf(file);
    const id = hash ?? `${path} ${file.size} ${file.lastModified}`;
    if (this.#pictures.has(id)) return true;
    const stored = await this.#store.get(hash);
    const seen = stored ?? (await this.#engine.image(file, { name: path, thumbnail: THUMBNAIL }));
    const { embedding, thumbnail, width, height } = seen;
    if (!stored) await this.#store.put(hash, { embedding, thumbnail, width, height });
    this.#enter(id, { path, file, facts: { path, size: file.size, width, height }, embedding: unit(embedding), thumbnail });
    return Boolean(stored);
  }
}
