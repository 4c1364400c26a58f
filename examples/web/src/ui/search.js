/** Many pictures, one text: which of them show it? */

import { Collection } from "../collection.js";
import { Store } from "../store.js";
import { byId, make, onDrop, settled, spell } from "./dom.js";
import { filesOfDrop, filesOfInput, imagesAmong, isIndex } from "./files.js";
import { clearNotices, guarded, notify } from "./notices.js";
import { showPicture, startViewer } from "./viewer.js";

const PAUSE = 300;
const PAGE = 60;
const MOST_NAMED = 5;

export class SearchPanel {
  #collection;
  #stopped = new AbortController();
  #isAdding = false;
  #shown = PAGE;

  /**
   * @param {import("../engine.js").Engine} engine with a model.
   * @param {string} key of the model, for what is stored.
   */
  constructor(engine, key) {
    this.#collection = new Collection(engine, new Store(key));
  }

  /**
   * Listens to what people do.
   * @param {File[]} samples pictures to try.
   */
  start(samples) {
    const add = guarded((entries) => this.#add(entries));
    byId("use-samples").addEventListener("click", () => add(samples.map((file) => ({ file, path: file.name }))));
    const open = guarded((files) => this.#open(files));
    startViewer();
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
    const search = guarded(() => this.#search());
    byId("query").addEventListener(
      "input",
      settled(() => {
        this.#shown = PAGE;
        search();
      }, PAUSE),
    );
    byId("query").disabled = false;
    byId("stop").addEventListener("click", () => this.#stopped.abort());
    byId("more").addEventListener("click", () => {
      this.#shown += PAGE;
      search();
    });
  }

  async #open(files) {
    clearNotices();
    for (const file of files) await this.#collection.open(file);
    await this.#search();
  }

  async #add(entries) {
    clearNotices();
    const images = imagesAmong(entries);
    if (images.length === 0) return notify("There are no images among these files.", { kind: "warning" });
    if (this.#isAdding) return notify("Wait until the pictures before are done, or stop.", { kind: "warning" });
    this.#isAdding = true;
    this.#stopped = new AbortController();
    byId("work").hidden = false;
    this.#showProgress({ done: 0, total: images.length, known: 0, seconds: 0 });
    const refresh = settled(
      guarded(() => this.#search()),
      PAUSE,
    );
    const onProgress = (progress) => {
      this.#showProgress(progress);
      if (progress.done === 1) this.#search();
      else refresh();
    };
    try {
      const failures = await this.#collection.add(images, { signal: this.#stopped.signal, onProgress });
      if (failures.length > 0) notify(listed(failures), { kind: "warning" });
    } finally {
      this.#isAdding = false;
      byId("work").hidden = true;
    }
    await this.#search();
  }

  #showProgress({ done, total, known, seconds }) {
    byId("work-bar").value = done / total;
    const left = seconds ? `, about ${spell(Math.max(1, Math.round(seconds)) * 1000).replace(".0", "")} left` : "";
    const before = known ? `, ${known} known from before` : "";
    byId("work-text").textContent = `${done} of ${total} pictures${before}${left}`;
  }

  async #search() {
    const query = byId("query").value.trim();
    const count = this.#collection.size;
    const pictures = `${count} picture${count === 1 ? "" : "s"}`;
    const results = byId("results");
    byId("use-samples").hidden = !query || count > 0;
    if (!query || count === 0) {
      const nothing = query ? "There are no pictures to search yet: choose some, or" : "";
      byId("collection-text").textContent = count ? `${pictures}: write what to find` : nothing;
      results.replaceChildren();
      byId("more").hidden = true;
      return;
    }
    const { ranked, milliseconds } = await this.#collection.search({ text: query });
    // Something else may have been written meanwhile.
    if (query !== byId("query").value.trim()) return;
    byId("collection-text").textContent =
      `${pictures}, the nearest first${milliseconds > 1 ? ` (${spell(milliseconds)})` : ""}`;
    results.replaceChildren(...ranked.slice(0, this.#shown).map(cardOf));
    byId("more").hidden = ranked.length <= this.#shown;
  }
}

function cardOf({ picture, score }) {
  const name = picture.path.split("/").at(-1);
  const image = make("img", { src: picture.address, alt: picture.path, decoding: "async" });
  const caption = make(
    "span",
    { className: "caption" },
    make("span", { className: "path" }, name),
    make("span", { className: "score" }, score.toFixed(3)),
  );
  const button = make("button", { ariaLabel: `Open ${picture.path}` }, image, caption);
  button.addEventListener("click", () => showPicture(picture, score));
  return make("li", { title: picture.path }, button);
}

function listed(failures) {
  const more = failures.length - MOST_NAMED;
  return `${failures.slice(0, MOST_NAMED).join("; ")}${more > 0 ? `; and ${more} more` : ""}.`;
}
