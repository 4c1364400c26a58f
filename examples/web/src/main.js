/** Starts the page: loads the export, runs the golden check, and starts the panels. */

import { Engine } from "./engine.js";
import { LabelPanel } from "./ui/label.js";
import { byId } from "./ui/dom.js";
import { heldDrop } from "./ui/drops.js";
import { clearNotices, guarded } from "./ui/notices.js";
import { SearchPanel } from "./ui/search.js";
import { showFailure, showModel, showProgress, startProof } from "./ui/status.js";
import { startTabs } from "./ui/tabs.js";
import { PageError } from "./errors.js";

const DEFAULT = "export";
const BACKENDS = ["webgpu", "wasm"];

const start = guarded(async () => {
  byId("unserved").remove();
  const early = heldDrop();
  startTabs(clearNotices);
  startProof();
  byId("ask").addEventListener("submit", (event) => event.preventDefault()); // also before the model is loaded
  const parameters = new URLSearchParams(location.search);
  const engine = new Engine();
  engine.onProgress = showProgress;
  let loaded;
  try {
    loaded = await engine.load(folderOf(parameters.get("export") ?? DEFAULT), backendOf(parameters.get("backend")));
  } catch (error) {
    showFailure();
    throw error;
  }
  showModel(loaded);
  const { files, labels } = await engine.samples();
  new SearchPanel(engine, loaded.key).start(files);
  const labelling = new LabelPanel(engine, loaded.logitScale);
  labelling.start(files, labels);
  await labelling.show(early());
});

/** Returns the URL of a folder, with a slash at the end. */
function folderOf(address) {
  return new URL(`${address.replace(/\/$/, "")}/`, document.baseURI).href;
}

function backendOf(name) {
  if (name === null || BACKENDS.includes(name)) return name;
  throw new PageError(`There is no backend '${name}'; choose one of ${BACKENDS.join(", ")}, or omit ?backend=`);
}

start();
