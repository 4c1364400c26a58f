/** Writes dist/: a static page, its worker, and the WebAssembly of ONNX Runtime. An export in dist/export stays. */

import { cp, mkdir, readdir, rm } from "node:fs/promises";
import { build } from "esbuild";

const RUNTIME = "node_modules/onnxruntime-web/dist";
const BINARIES = ["ort-wasm-simd-threaded", "ort-wasm-simd-threaded.asyncify"];
const PUBLIC = ["index.html", "style.css", "icon.svg"];

process.chdir(import.meta.dirname);
await mkdir("dist/runtime", { recursive: true });
// Parts of the build before have other names.
const old = (await readdir("dist")).filter((name) => name.endsWith(".js"));
await Promise.all(old.map((name) => rm(`dist/${name}`)));
await build({
  entryPoints: ["src/main.js", "src/worker.js"],
  outdir: "dist",
  bundle: true,
  splitting: true,
  minify: true,
  format: "esm",
  target: "es2022",
  // The runtime's own loader stays a file of its own: its threads start from it.
  conditions: ["onnxruntime-web-use-extern-wasm"],
  logLevel: "warning",
});
const files = BINARIES.flatMap((name) => [`${name}.mjs`, `${name}.wasm`]);
await Promise.all([
  ...PUBLIC.map((name) => cp(name, `dist/${name}`)),
  ...files.map((name) => cp(`${RUNTIME}/${name}`, `dist/runtime/${name}`)),
]);
