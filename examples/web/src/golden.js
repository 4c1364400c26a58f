/** The golden check: compares embeddings computed in this browser with the export's reference embeddings. */

import { cosine } from "./similarity.js";

/**
 * Runs the golden check, and returns the cosines with the reference embeddings.
 * @param {{embed: (tower: string, input: ArrayLike<number|bigint>) => Promise<Float32Array>}} model model to check.
 * @param {Map} golden tensors of `golden.safetensors`.
 * @param {object} contract contract of the export.
 * @param {object} report content of `report.json`.
 * @returns {Promise<{towers: {tower: string, cosines: number[], bound: number}[], passed: boolean}>}
 */
export async function checkGolden(model, golden, contract, report) {
  const towers = [];
  for (const tower of ["image", "text"]) {
    const { rows: inputs } = golden.get(contract[tower].inputName);
    const { rows: expected } = golden.get(contract[tower].outputName);
    const cosines = [];
    for (const [i, input] of inputs.entries()) cosines.push(cosine(await model.embed(tower, input), expected[i]));
    towers.push({ tower, cosines, bound: boundOf(report, tower) });
  }
  // Not `some(cosine <= bound)`: NaN must fail.
  const passed = towers.every(({ cosines, bound }) => cosines.every((value) => value > bound));
  return { towers, passed };
}

/** Returns one line per failed check of the export. */
export function failedChecks(report) {
  return report.checks
    .filter((check) => !check.passed)
    .map((check) => `${check.name} is ${check.value}, expected ${check.bound}`);
}

/** Returns the minimum cosine in the export's report, such as `> 0.9995` for float16. */
function boundOf(report, tower) {
  return Number(report.checks.find((check) => check.name === `${tower} cosine, minimum`).bound.replace("> ", ""));
}
