/** Writes dist/: the static page, its worker, and ONNX Runtime's WebAssembly files. Keeps an export in dist/export. */

import { cp, mkdir, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { build } from "esbuild";

const RUNTIME = "node_modules/onnxruntime-web/dist";
const BINARIES = ["ort-wasm-simd-threaded", "ort-wasm-simd-threaded.asyncify"];
const PUBLIC = ["style.css", "icon.svg"];
// Files shared with `mobileclip serve`.
const SHARED = "../../mobileclip/collections/web/static";

process.chdir(import.meta.dirname);
await mkdir("dist/runtime", { recursive: true });
// Files of an earlier build have other names.
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
  // The runtime's loader stays a separate file, because its threads load this file.
  conditions: ["onnxruntime-web-use-extern-wasm"],
  logLevel: "warning",
});
const page = await readFile("index.html", "utf-8");
await writeFile("dist/index.html", page.replace("<!-- search -->", await readFile(`${SHARED}/search.html`, "utf-8")));
const files = BINARIES.flatMap((name) => [`${name}.mjs`, `${name}.wasm`]);
await Promise.all([
  ...PUBLIC.map((name) => cp(name, `dist/${name}`)),
  cp(`${SHARED}/search.css`, "dist/search.css"),
  ...files.map((name) => cp(`${RUNTIME}/${name}`, `dist/runtime/${name}`)),
]);
