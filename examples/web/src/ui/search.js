/** Searches many images. */

import { Collection } from "../collection.js";
import { Store } from "../store.js";
import { Search, count } from "../../../../mobileclip/collections/web/static/search.js";
import { byId, onDrop, settled, spell } from "./dom.js";
import { filesOfDrop, filesOfInput, imagesAmong, isIndex } from "./files.js";
import { clearNotices, guarded, notify } from "./notices.js";

const PAUSE = 300;
const MOST_NAMED = 5;

export class SearchPanel {
  #collection;
  #stopped = new AbortController();
  #isAdding = false;
  #search;

  /**
   * @param {import("../engine.js").Engine} engine engine with a loaded model.
   * @param {string} key key of the model in the cache of embeddings.
   */
  constructor(engine, key) {
    this.#collection = new Collection(engine, new Store(key));
  }

  /**
   * Adds event listeners.
   * @param {File[]} samples sample images.
   */
  start(samples) {
    const add = guarded((entries) => this.#add(entries));
    byId("use-samples").addEventListener("click", () => add(samples.map((file) => ({ file, path: file.name }))));
    const open = guarded((files) => this.#open(files));
    for (const [button, input] of [
      ["choose-folder", "folder-file"],
      ["choose-pictures", "pictures-file"],
    ]) {
      byId(button).addEventListener("click", () => byId(input).click());
      byId(input).addEventListener("change", ({ target }) => {
        add(filesOfInput(target));
        target.value = "";
      });
      byId(button).disabled = false;
    }
    byId("open-index").addEventListener("click", () => byId("index-file").click());
    byId("index-file").addEventListener("change", ({ target }) => {
      open([...target.files]);
      target.value = "";
    });
    byId("open-index").disabled = false;
    onDrop(
      byId("collection-drop"),
      guarded(async (transfer) => {
        const files = await filesOfDrop(transfer);
        const written = files.filter(({ path }) => isIndex(path));
        await (written.length ? this.#open(written.map(({ file }) => file)) : this.#add(files));
      }),
    );
    this.#search = new Search({
      search: (query) => this.#answer(query),
      address: (one, size) => (size === "small" ? one.address : (one.large ??= URL.createObjectURL(one.blob))),
      idle: () => (this.#collection.size ? `${this.#said()}: enter a query` : ""),
    });
    byId("text").addEventListener(
      "input",
      settled(() => this.#search.search(), PAUSE),
    );
    byId("stop").addEventListener("click", () => this.#stopped.abort());
  }

  async #open(files) {
    clearNotices();
    for (const file of files) await this.#collection.open(file);
    await this.#search.search();
  }

  async #add(entries) {
    clearNotices();
    const images = imagesAmong(entries);
    if (images.length === 0) return notify("There are no images among these files.", { kind: "warning" });
    if (this.#isAdding) return notify("Wait until the earlier images are done, or stop.", { kind: "warning" });
    this.#isAdding = true;
    this.#stopped = new AbortController();
    byId("work").hidden = false;
    this.#showProgress({ done: 0, total: images.length, known: 0, seconds: 0 });
    const refresh = settled(() => this.#search.search(), PAUSE);
    const onProgress = (progress) => {
      this.#showProgress(progress);
      if (progress.done === 1) this.#search.search();
      else refresh();
    };
    try {
      const failures = await this.#collection.add(images, { signal: this.#stopped.signal, onProgress });
      if (failures.length > 0) notify(listed(failures), { kind: "warning" });
    } finally {
      this.#isAdding = false;
      byId("work").hidden = true;
    }
    await this.#search.search();
  }

  #showProgress({ done, total, known, seconds }) {
    byId("work-bar").value = done / total;
    const left = seconds ? `, about ${spell(Math.max(1, Math.round(seconds)) * 1000).replace(".0", "")} left` : "";
    const before = known ? `, ${known} from the cache` : "";
    byId("work-text").textContent = `${done} of ${total} images${before}${left}`;
  }

  #said() {
    return count(this.#collection.size, "image", "images");
  }

  async #answer({ skip, k, ...query }) {
    byId("use-samples").hidden = this.#collection.size > 0;
    if (!this.#collection.size) return { matches: [], said: "There are no images to search yet; choose images." };
    const { ranked, milliseconds } = await this.#collection.search(query);
    const matches = ranked.slice(skip, skip + k).map(({ picture: { id, path, facts, file, address }, score }) => ({
      ...facts,
      id,
      score,
      name: path,
      file: path.split("/").at(-1),
      address,
      blob: file,
    }));
    const time = milliseconds > 1 ? ` (${spell(milliseconds)})` : "";
    return { matches, said: `${this.#said()}, most similar first${time}` };
  }
}

function listed(failures) {
  const more = failures.length - MOST_NAMED;
  return `${failures.slice(0, MOST_NAMED).join("; ")}${more > 0 ? `; and ${more} more` : ""}.`;
}
