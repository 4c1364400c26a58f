/** The page's proof of itself: inputs that came with the export, run here, beside the model's own embeddings. */

import { cosine } from "./similarity.js";

/**
 * Returns how near the model here comes to the model that was exported.
 * @param {{embed: (tower: string, input: ArrayLike<number|bigint>) => Promise<Float32Array>}} model to be checked.
 * @param {Map} golden the tensors of `golden.safetensors`.
 * @param {object} contract of the export.
 * @param {object} report what `report.json` holds.
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

/** Returns the gates that the export failed when it was made, a line each. */
export function failedGates(report) {
  return report.gates
    .filter((gate) => !gate.passed)
    .map((gate) => `${gate.name} is ${gate.value}, expected ${gate.bound}`);
}

/** Returns the least cosine that the export's own report asks for: `> 0.9995` for float16. */
function boundOf(report, tower) {
  return Number(report.gates.find((gate) => gate.name === `${tower} cosine, minimum`).bound.replace("> ", ""));
}
