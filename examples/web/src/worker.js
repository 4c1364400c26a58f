/** The worker: runs downloads, image decoding and models outside the page's thread, one request at a time. */

import { readContract, readJson, requireWhole } from "./contract.js";
import { download } from "./download.js";
import { PageError } from "./errors.js";
import { checkGolden, failedChecks } from "./golden.js";
import { decode, inputOf, pixelsOf, pixelsOfInput } from "./image.js";
import { hasWebGpu, openModel } from "./model.js";
import { readSafetensors } from "./safetensors.js";
import { thumbnailOf } from "./thumbnail.js";
import { makeTokenizer } from "./tokens.js";

let contract, model, tokensOf, golden, report;
const MOST_LABELS = 5;

const actions = {
  /** Loads an export, and runs the golden check. */
  async load({ folder, backend }) {
    contract = await readContract(folder);
    const names = [contract.image.file, contract.text.file, "golden.safetensors"];
    const start = performance.now();
    const files = await download(folder, names, (loaded, total) =>
      self.postMessage({ progress: { loaded, total, milliseconds: performance.now() - start } }),
    );
    const loaded = performance.now();
    await Promise.all(files.map((bytes, i) => requireWhole(names[i], bytes, contract.files)));
    const [image, text, goldenFile] = files;
    report = await readJson(folder, "report.json", contract.files);
    tokensOf = makeTokenizer(await readJson(folder, contract.text.tokenizer, contract.files), contract.text);
    golden = readSafetensors(goldenFile.buffer);
    const proof = await openProven({ image, text }, report, backend);
    return {
      proof,
      name: contract.name,
      licence: contract.licence,
      bytes: image.length + text.length,
      milliseconds: { download: loaded - start, prepare: performance.now() - loaded },
      failedChecks: failedChecks(report),
      precision: contract.precision,
      logitScale: contract.logitScale,
      imageSize: contract.image.size,
      key: contract.files[contract.image.file],
      backend: model.backend,
      threads: model.threads,
    };
  },

  /** Encodes an image; `thumbnail` is the longer side of an additional small copy, or undefined. */
  async image({ blob, name, thumbnail }) {
    const start = performance.now();
    const bitmap = await decode(blob, name);
    try {
      const input = inputOf(pixelsOf(bitmap, contract.image), contract.image);
      const prepared = performance.now();
      const embedding = await model.embed("image", input);
      const milliseconds = { prepare: prepared - start, model: performance.now() - prepared };
      const { width, height } = bitmap;
      return { embedding, milliseconds, width, height, thumbnail: thumbnail && (await thumbnailOf(bitmap, thumbnail)) };
    } finally {
      bitmap.close();
    }
  },

  /** Encodes texts. */
  async texts({ texts }) {
    const start = performance.now();
    const embeddings = [];
    for (const text of texts) embeddings.push(await model.embed("text", tokensOf(text)));
    return { embeddings, milliseconds: performance.now() - start };
  },

  /** Returns the images among the export's golden inputs as files, and sample labels for these images. */
  async samples() {
    const { size } = contract.image;
    const inputs = golden.get(contract.image.inputName).rows;
    const files = await Promise.all(
      inputs.map(async (input, i) => {
        const pixels = pixelsOfInput(input, contract.image);
        const image = new ImageData(size, size);
        image.data.fill(255);
        for (let i = 0; i < size * size; i++) image.data.set(pixels.subarray(i * 3, i * 3 + 3), i * 4);
        const canvas = new OffscreenCanvas(size, size);
        canvas.getContext("2d").putImageData(image, 0, 0);
        // PNG is lossless, so the embedding equals the embedding of the golden input.
        return new File([await canvas.convertToBlob({ type: "image/png" })], report.image_names[i], {
          type: "image/png",
        });
      }),
    );
    return { files, labels: labelsOf(report) };
  },
};

/** Returns captions of the first images of the export's report. */
function labelsOf({ captions, image_names: names }) {
  const each = Math.max(1, Math.floor(captions.length / names.length));
  return captions.filter((_, i) => i % each === 0).slice(0, MOST_LABELS);
}

/** Opens the model with the fastest backend that passes the golden check; returns the result of the check. */
async function openProven(files, report, backend) {
  const fastest = (await hasWebGpu(contract.precision)) ? ["webgpu", "wasm"] : ["wasm"];
  const backends = backend ? [backend] : fastest;
  for (const [i, name] of backends.entries()) {
    const isLast = i === backends.length - 1;
    try {
      model = await openModel(contract, files, name);
      const proof = await checkGolden(model, golden, contract, report);
      if (proof.passed || isLast) return proof;
      await model.close();
    } catch (error) {
      // GPU drivers fail in many ways; the CPU remains.
      if (isLast) throw error;
    }
  }
}

let queue = Promise.resolve();

self.onmessage = ({ data: { id, action, values } }) => {
  queue = queue.then(async () => {
    try {
      self.postMessage({ id, result: await actions[action](values) });
    } catch (error) {
      self.postMessage({ id, error: { message: error.message, known: error instanceof PageError } });
    }
  });
};
