/** How the model is: on its way, there, proved or not. */

import { byId, make, spell } from "./dom.js";
import { notify } from "./notices.js";

const NAMES = { webgpu: "WebGPU", wasm: "WebAssembly" };
const MEGABYTE = 1e6;
// Before so many milliseconds, nobody can say how long the rest takes.
const PATIENCE = 1000;

/** Makes the proof close by Escape, and by a click beside it. */
export function startProof() {
  const proof = byId("proof");
  document.addEventListener("click", ({ target }) => proof.contains(target) || (proof.open = false));
  document.addEventListener("keydown", ({ key }) => key === "Escape" && (proof.open = false));
}

/** Shows how much of the model has come, and how long the rest takes. */
export function showProgress({ loaded, total, milliseconds }) {
  const bar = byId("download");
  bar.hidden = false;
  if (total) bar.value = loaded / total;
  const amount = total ? `${megabytes(loaded)} of ${megabytes(total)}` : megabytes(loaded);
  const left = total && milliseconds > PATIENCE ? (milliseconds * (total - loaded)) / loaded : 0;
  const rest = left ? `, ${spell(left)} left` : "";
  byId("model").textContent = loaded === total ? "Preparing the model" : `Loading the model: ${amount} MB${rest}`;
}

/** Shows that there is no model. */
export function showFailure() {
  byId("download").hidden = true;
  byId("dot").className = "dot bad";
  byId("model").textContent = "No model";
}

/** Shows the model, and what its golden inputs gave here. */
export function showModel(loaded) {
  const { proof, failedGates } = loaded;
  byId("download").hidden = true;
  byId("dot").className = proof.passed ? "dot good" : "dot bad";
  const least = Math.min(...proof.towers.flatMap(({ cosines }) => cosines));
  const verdict = proof.passed ? "Same as the original model" : "Not to be trusted";
  byId("model").textContent = `${verdict}: cosine ${digits(least)}`;
  byId("about").textContent = `${loaded.name}, ${megabytes(loaded.bytes)} MB. Licence: ${loaded.licence}.`;
  byId("proof-detail").replaceChildren(...detailOf(loaded));
  if (!proof.passed) {
    notify(
      `Of the inputs that came with the export, this browser gives other embeddings than the model: the least cosine is ${digits(least)}. ` +
        "Labels and searches may be wrong. Try another browser, ?backend=wasm in the address, or an export with --precision float32.",
      { title: "The model does not compute what it should. ", isLasting: true },
    );
  }
  if (failedGates.length > 0) {
    notify(`${failedGates.join("; ")}.`, {
      title: "The export failed its own gates when it was made: ",
      kind: "warning",
      isLasting: true,
    });
  }
}

function detailOf({ proof, precision, backend, threads, imageSize, bytes, milliseconds }) {
  const kinds = { image: "Pictures", text: "Texts" };
  const rows = proof.towers.map(({ tower, cosines, bound }) =>
    make(
      "tr",
      {},
      make("th", { scope: "row" }, kinds[tower]),
      make("td", {}, String(cosines.length)),
      make("td", { className: "least" }, digits(Math.min(...cosines))),
      make("td", {}, `> ${bound}`),
    ),
  );
  const heads = ["", "Inputs", "Least cosine", "Gate"].map((name) => make("th", { scope: "col" }, name));
  const table = make("table", {}, make("thead", {}, make("tr", {}, ...heads)), make("tbody", {}, ...rows));
  const count = threads ? `, ${threads} thread${threads > 1 ? "s" : ""}` : "";
  return [
    make(
      "p",
      {},
      "The export brings pictures and texts with the embeddings that the original model gave them in float32. They were run in this browser. That says that it computes the same here, and not that its answers are right.",
    ),
    table,
    make(
      "p",
      { className: "faint" },
      `${precision}, ${NAMES[backend]}${count}; pictures of ${imageSize}\u00a0×\u00a0${imageSize}; ${megabytes(bytes)} MB, loaded in ${spell(milliseconds.download)} and prepared in ${spell(milliseconds.prepare)}`,
    ),
  ];
}

/** Returns a cosine, cut rather than rounded: 0.99999996 is not 1. */
function digits(cosine) {
  return Number.isNaN(cosine) ? "not a number" : (Math.floor(Math.min(1, cosine) * 1e7) / 1e7).toFixed(7);
}

function megabytes(bytes) {
  return (bytes / MEGABYTE).toFixed(bytes < 10 * MEGABYTE ? 1 : 0);
}
