/** What an export says of itself, `mobileclip.json`: what goes in, what comes out. */

import { PageError } from "./errors.js";

const FORMAT_VERSION = 1;
const COMMAND = "mobileclip export mobileclip_s0.pt --target onnx --precision float16 --out examples/web/dist/export";

/**
 * Returns the checked contract of the export in a folder.
 * @param {string} folder its address, with a slash at the end.
 * @throws {PageError} if there is none, or this page cannot run it.
 */
export async function readContract(folder) {
  const written = await readJson(folder, "mobileclip.json");
  check(written);
  const [image, text] = ["image", "text"].map((name) => written.towers.find((tower) => tower.tower === name));
  return {
    folder,
    precision: written.precision,
    embeddingDim: written.embedding_dim,
    logitScale: written.logit_scale,
    files: written.files,
    image: { ...tower(image), ...written.image.input, preprocess: written.image.preprocess },
    text: {
      ...tower(text),
      contextLength: written.text.input.context_length,
      padId: written.text.input.pad_id,
      startId: written.text.start_id,
      endId: written.text.end_id,
      tokenizer: written.text.tokenizer,
    },
  };
}

/**
 * Returns what a JSON file of the export holds.
 * @throws {PageError} if it is missing or no JSON.
 */
export async function readJson(folder, name) {
  const response = await fetchFile(folder, name);
  try {
    return await response.json();
  } catch {
    throw new PageError(`${folder}${name} is not JSON, so it is no file of an export. ${advice()}`);
  }
}

/**
 * Returns the answer for a file of the export.
 * @throws {PageError} if it is missing.
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

function tower(written) {
  return {
    file: written.file,
    inputName: written.input_name,
    dtype: written.input_dtype,
    shape: written.input_shape.map((side) => side ?? 1),
    outputName: written.output_name,
  };
}
