/** Shows the state of the model: loading, loaded, or failed, with the result of the golden check. */

import { byId, make, spell } from "./dom.js";
import { notify } from "./notices.js";

const NAMES = { webgpu: "WebGPU", wasm: "WebAssembly" };
const MEGABYTE = 1e6;
// Before this many milliseconds, an estimate of the remaining time is unreliable.
const PATIENCE = 1000;

/** Closes the details of the golden check on Escape, and on a click outside. */
export function startProof() {
  const proof = byId("proof");
  document.addEventListener("click", ({ target }) => proof.contains(target) || (proof.open = false));
  document.addEventListener("keydown", ({ key }) => key === "Escape" && (proof.open = false));
}

/** Shows the progress of the download, and the remaining time. */
export function showProgress({ loaded, total, milliseconds }) {
  const bar = byId("download");
  bar.hidden = false;
  if (total) bar.value = loaded / total;
  const amount = total ? `${megabytes(loaded)} of ${megabytes(total)}` : megabytes(loaded);
  const left = total && milliseconds > PATIENCE ? (milliseconds * (total - loaded)) / loaded : 0;
  const rest = left ? `, ${spell(left)} left` : "";
  byId("model").textContent = loaded === total ? "Preparing the model" : `Loading the model: ${amount} MB${rest}`;
}

/** Shows that loading the model failed. */
export function showFailure() {
  byId("download").hidden = true;
  byId("dot").className = "dot bad";
  byId("model").textContent = "No model";
}

/** Shows the model, and the result of the golden check in this browser. */
export function showModel(loaded) {
  const { proof, failedChecks } = loaded;
  byId("download").hidden = true;
  byId("dot").className = proof.passed ? "dot good" : "dot bad";
  const least = Math.min(...proof.towers.flatMap(({ cosines }) => cosines));
  const verdict = proof.passed ? "Same as the original model" : "Not to be trusted";
  byId("model").textContent = `${verdict}: cosine ${digits(least)}`;
  byId("about").textContent = `${loaded.name}, ${megabytes(loaded.bytes)} MB. Licence: ${loaded.licence}.`;
  byId("proof-detail").replaceChildren(...detailOf(loaded));
  if (!proof.passed) {
    notify(
      `For the test inputs of the export, this browser computes other embeddings than the original model: the least cosine is ${digits(least)}. ` +
        "Labels and searches may be wrong. Try another browser, ?backend=wasm in the address, or an export with --precision float32.",
      { title: "The model computes wrong embeddings. ", isLasting: true },
    );
  }
  if (failedChecks.length > 0) {
    notify(`${failedChecks.join("; ")}.`, {
      title: "The export failed its checks: ",
      kind: "warning",
      isLasting: true,
    });
  }
}

function detailOf({ proof, precision, backend, threads, imageSize, bytes, milliseconds }) {
  const kinds = { image: "Images", text: "Texts" };
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
      "The export has test images and texts with their embeddings by the original model in float32. The check compares these embeddings with the embeddings computed in this browser. The check does not measure the accuracy of the model.",
    ),
    table,
    make(
      "p",
      { className: "faint" },
      `${precision}, ${NAMES[backend]}${count}; images of ${imageSize}\u00a0×\u00a0${imageSize}; ${megabytes(bytes)} MB, loaded in ${spell(milliseconds.download)} and prepared in ${spell(milliseconds.prepare)}`,
    ),
  ];
}

/** Formats a cosine, truncated instead of rounded, so that 0.99999996 does not become 1. */
function digits(cosine) {
  return Number.isNaN(cosine) ? "not a number" : (Math.floor(Math.min(1, cosine) * 1e7) / 1e7).toFixed(7);
}

function megabytes(bytes) {
  return (bytes / MEGABYTE).toFixed(bytes < 10 * MEGABYTE ? 1 : 0);
}
