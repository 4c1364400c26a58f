/** Reads the contract of an export, `mobileclip.json`, which describes inputs and outputs. */

import { PageError } from "./errors.js";
import { hashOf } from "./store.js";

const FORMAT_VERSION = 1;
const COMMAND = "mobileclip export mobileclip_s0.pt --target onnx --precision float16 -o examples/web/dist/export";

/**
 * Returns the checked contract of the export in a folder.
 * @param {string} folder URL of the export, with a slash at the end.
 * @throws {PageError} if the contract is missing, or this page cannot run the export.
 */
export async function readContract(folder) {
  const written = await readJson(folder, "mobileclip.json");
  check(written);
  const [image, text] = ["image", "text"].map((name) => written.towers.find((tower) => tower.tower === name));
  return {
    folder,
    name: written.name ?? "A model of your own",
    licence: written.licence,
    precision: written.precision,
    embeddingDim: written.embedding_dim,
    logitScale: written.logit_scale,
    files: written.files,
    image: { ...tower(image, written.image.input.size), ...written.image.input, preprocess: written.image.preprocess },
    text: {
      ...tower(text),
      contextLength: written.text.input.context_length,
      // Lengths of inputs, ascending; a text uses the shortest sufficient length.
      lengths: text.lengths?.length ? text.lengths : [written.text.input.context_length],
      padId: written.text.input.pad_id,
      startId: written.text.start_id,
      endId: written.text.end_id,
      tokenizer: written.text.tokenizer,
    },
  };
}

/**
 * Reads a JSON file of the export.
 * @param {string} folder URL of the export.
 * @param {string} name name of the file.
 * @param {Object<string, string>} [hashes] hashes in the contract; if omitted, the file is not checked.
 * @throws {PageError} if the file is missing, damaged or not JSON.
 */
export async function readJson(folder, name, hashes) {
  const response = await fetchFile(folder, name);
  const bytes = new Uint8Array(await response.arrayBuffer());
  if (hashes) await requireWhole(name, bytes, hashes);
  try {
    return JSON.parse(new TextDecoder().decode(bytes));
  } catch {
    throw new PageError(`${folder}${name} is not JSON, so the file is not part of an export. ${advice()}`);
  }
}

/**
 * Checks a file by its hash, if the browser can compute hashes.
 * @throws {PageError} if the file differs from the exported file.
 */
export async function requireWhole(name, bytes, hashes) {
  const hash = await hashOf(new Blob([bytes]));
  if (hash !== null && hash !== hashes[name]) {
    throw new PageError(
      `${name} is damaged, or not whole: its SHA-256 is not the one in mobileclip.json. Copy the export's folder ` +
        "again, or export the model again.",
    );
  }
}

/**
 * Fetches a file of the export.
 * @throws {PageError} if the file is missing.
 */
export async function fetchFile(folder, name) {
  let response;
  try {
    response = await fetch(new URL(name, folder));
  } catch {
    throw new PageError(`${folder}${name} cannot be reached. Is its server running, and does it allow this page?`);
  }
  if (!response.ok) {
    throw new PageError(`There is no ${name} in ${folder} (status ${response.status}). ${advice()}`);
  }
  return response;
}

function advice() {
  return `Make an export with\n${COMMAND}\nor name the folder of another one in the address: ?export=URL`;
}

function check(written) {
  if (written.format_version !== FORMAT_VERSION) {
    throw new PageError(
      `The export has the format version ${written.format_version}, and this page reads ${FORMAT_VERSION}. ` +
        `Export the model again with the mobileclip that this page came with:\n${COMMAND}`,
    );
  }
  if (written.target !== "onnx") {
    throw new PageError(
      `The export is for the target '${written.target}', and browsers run 'onnx'. Export the model again:\n${COMMAND}`,
    );
  }
  if (!written.image || !written.text) {
    const there = written.image ? "image" : "text";
    throw new PageError(
      `The export has the ${there} tower alone, and this page compares images with texts. ` +
        `Export both (--tower both):\n${COMMAND}`,
    );
  }
}

/** Returns a tower with batch size 1; a file with dynamic image size receives images of the model's default size. */
function tower(written, size) {
  return {
    file: written.file,
    inputName: written.input_name,
    dtype: written.input_dtype,
    shape: written.input_shape.map((side, axis) => side ?? (axis === 0 ? 1 : size)),
    outputName: written.output_name,
  };
}
