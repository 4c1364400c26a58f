/** Runs the two towers in ONNX Runtime. */

import { PageError } from "./errors.js";

// More threads are not faster.
const MOST_THREADS = 4;
const ERRORS_ONLY = 3;

/** Returns whether the GPU can run a model of a precision. */
export async function hasWebGpu(precision) {
  // ONNX Runtime has int8 kernels only for the CPU.
  if (!navigator.gpu || !["float32", "float16"].includes(precision)) return false;
  const adapter = await navigator.gpu.requestAdapter().catch(() => null);
  return Boolean(adapter) && (precision !== "float16" || adapter.features.has("shader-f16"));
}

/**
 * Opens both towers of an export.
 * @param {object} contract contract of the export.
 * @param {{image: Uint8Array, text: Uint8Array}} files contents of the towers' files.
 * @param {"webgpu"|"wasm"} backend execution provider.
 * @returns {Promise<{backend: string, threads: number, embed: Function, close: Function}>} `embed` takes the name of a
 *   tower and a single input.
 * @throws {PageError} if a file is damaged or has operations that the runtime lacks.
 */
export async function openModel(contract, files, backend) {
  const runtime = backend === "webgpu" ? await import("onnxruntime-web/webgpu") : await import("onnxruntime-web/wasm");
  // Threads share memory, which browsers allow only for pages with isolation headers.
  const threads = self.crossOriginIsolated ? Math.min(MOST_THREADS, navigator.hardwareConcurrency) : 1;
  runtime.env.wasm.numThreads = threads;
  runtime.env.wasm.wasmPaths = new URL("runtime/", self.location.href).href;
  runtime.env.logLevel = "error";
  const sessions = {};
  for (const tower of ["image", "text"]) {
    try {
      sessions[tower] = await runtime.InferenceSession.create(files[tower], {
        executionProviders: [backend],
        logSeverityLevel: ERRORS_ONLY,
      });
    } catch (error) {
      throw new PageError(`${contract[tower].file} cannot be opened: ${error.message}. Export the model again`);
    }
  }
  return {
    backend,
    threads: backend === "wasm" ? threads : 0,
    async embed(tower, input) {
      const { inputName, outputName, dtype, shape } = contract[tower];
      const given = tower === "text" ? [1, input.length] : shape;
      const outputs = await sessions[tower].run({ [inputName]: new runtime.Tensor(dtype, input, given) });
      const embedding = outputs[outputName].data.slice();
      outputs[outputName].dispose();
      return embedding;
    },
    async close() {
      await Promise.all(Object.values(sessions).map((session) => session.release()));
    },
  };
}
