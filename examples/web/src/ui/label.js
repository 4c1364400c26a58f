/** Compares one image with several labels. */

import { PageError } from "../errors.js";
import { cosine, probabilities } from "../similarity.js";
import { canShowCamera, takePhoto } from "./camera.js";
import { byId, make, onDrop, settled, spell } from "./dom.js";
import { clearNotices, guarded } from "./notices.js";

const PAUSE = 350;

/** The panel that labels an image. */
export class LabelPanel {
  #engine;
  #logitScale;
  #picture = null;
  #isRanking = false;
  #isStale = false;

  /**
   * @param {import("../engine.js").Engine} engine engine with a loaded model.
   * @param {number} logitScale logit scale of the model.
   */
  constructor(engine, logitScale) {
    this.#engine = engine;
    this.#logitScale = logitScale;
  }

  /**
   * Adds event listeners, sample images and initial labels.
   * @param {File[]} samples sample images.
   * @param {string[]} labels initial labels.
   */
  start(samples, labels) {
    const show = guarded((file, name) => this.#show(file, name));
    this.#connectFiles(show);
    // Labels that the user has already typed stay.
    byId("labels").value ||= labels.join("\n");
    byId("labels").addEventListener(
      "input",
      settled(() => this.#rank(), PAUSE),
    );
    const buttons = samples.map((file) => {
      const image = make("img", { src: URL.createObjectURL(file), alt: "", width: 56, height: 56 });
      const button = make("button", { title: `Try ${file.name}`, ariaLabel: `Try ${file.name}` }, image);
      button.addEventListener("click", () => show(file, file.name));
      return button;
    });
    byId("samples").append(...buttons);
    byId("samples").hidden = false;
  }

  /** Shows an image, if any, with the scores of the labels. */
  async show(file) {
    if (file) await this.#show(file, file.name);
  }

  #connectFiles(show) {
    const chosen = ({ target }) => {
      const [file] = target.files;
      if (file) show(file, file.name);
      // This allows the user to choose the same file again.
      target.value = "";
    };
    for (const id of ["picture-file", "photo-file"]) byId(id).addEventListener("change", chosen);
    byId("choose-picture").addEventListener("click", () => byId("picture-file").click());
    byId("take-photo").addEventListener(
      "click",
      guarded(async () => {
        if (!canShowCamera()) return byId("photo-file").click();
        clearNotices();
        const photo = await takePhoto();
        if (photo) await show(photo, "the photo");
      }),
    );
    const first = ({ files: [file] }) => file && show(file, file.name);
    onDrop(byId("picture-drop"), first);
    document.addEventListener("paste", ({ clipboardData }) => byId("label").hidden || first(clipboardData));
    for (const id of ["choose-picture", "take-photo"]) byId(id).disabled = false;
  }

  async #show(file, name) {
    clearNotices();
    if (file.type && !file.type.startsWith("image/")) throw new PageError(`${name} is not an image but ${file.type}`);
    const { embedding, milliseconds, width, height } = await this.#engine.image(file, { name });
    this.#picture = { embedding, milliseconds };
    const image = byId("labelled");
    URL.revokeObjectURL(image.src);
    image.src = URL.createObjectURL(file);
    image.alt = name;
    byId("frame").style.setProperty("--aspect", width / height);
    byId("frame").hidden = false;
    byId("stage-hint").hidden = true;
    await this.#rank();
  }

  /** Ranks the labels; repeats the ranking if labels change meanwhile, but never runs two rankings at once. */
  async #rank() {
    this.#isStale = true;
    if (this.#isRanking) return;
    this.#isRanking = true;
    try {
      while (this.#isStale) {
        this.#isStale = false;
        await this.#rankOnce();
      }
    } finally {
      this.#isRanking = false;
    }
  }

  async #rankOnce() {
    const labels = [
      ...new Set(
        byId("labels")
          .value.split("\n")
          .map((line) => line.trim()),
      ),
    ].filter(Boolean);
    if (!this.#picture) return;
    const { embeddings, milliseconds, count } = await this.#engine.texts(labels);
    const cosines = embeddings.map((embedding) => cosine(embedding, this.#picture.embedding));
    const shares = labels.length ? probabilities(cosines, this.#logitScale) : [];
    const rows = labels
      .map((label, i) => ({ label, share: shares[i], cosine: cosines[i] }))
      .sort((one, other) => other.share - one.share)
      .map(rowOf);
    byId("scores").replaceChildren(...rows);
    const { prepare, model } = this.#picture.milliseconds;
    const texts = count ? `, ${count} label${count > 1 ? "s" : ""} ${spell(milliseconds)}` : "";
    byId("times").textContent = `Image ${spell(model)} (and ${spell(prepare)} to read and resize it)${texts}`;
    if (labels.length < 2) byId("times").textContent = "Scores compare labels: write two or more.";
  }
}

function rowOf({ label, share, cosine: value }) {
  const percent = `${(share * 100).toFixed(1)}%`;
  return make(
    "li",
    { title: `cosine ${value.toFixed(4)}`, style: { "--share": share } },
    make("span", { className: "name" }, label),
    make("span", { className: "share" }, percent),
    make("span", { className: "bar" }),
  );
}
