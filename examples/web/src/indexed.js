/** Pictures that `mobileclip index --web` wrote: names, embeddings and small copies, in one file of safetensors. */

import { PageError } from "./errors.js";
import { Coder, fromNibbles } from "./small.js";

// The second has embeddings in few bits.
const FORMATS = ["mobileclip pictures 1", "mobileclip pictures 2"];
const MOST_HEADER_BYTES = 2 ** 20;
const ADVICE = "Write one with: mobileclip index photos/ --web pictures.safetensors";

/**
 * Returns what is in a file. Small copies stay in it until they are shown.
 * @param {File} file that was chosen.
 * @returns {Promise<{probes: {texts: string[], embeddings: Float32Array[]},
 *   pictures: {path: string, facts: object, embedding?: Float32Array, codes?: Int8Array, coder?: Coder,
 *   thumbnail: Blob}[]}>}
 * @throws {PageError} if it is another one, or damaged.
 */
export async function readIndexed(file) {
  try {
    return await read(file);
  } catch (error) {
    if (error instanceof PageError) throw error;
    throw new PageError(`${file.name} is damaged, or not whole (${error.message}). ${ADVICE}`);
  }
}

async function read(file) {
  const length = Number(new DataView(await file.slice(0, 8).arrayBuffer()).getBigUint64(0, true));
  if (length > Math.min(MOST_HEADER_BYTES, file.size)) throw new PageError(`${file.name} holds no pictures. ${ADVICE}`);
  const header = JSON.parse(await file.slice(8, 8 + length).text());
  if (!FORMATS.includes(header.__metadata__?.format)) throw new PageError(`${file.name} holds no pictures. ${ADVICE}`);
  const part = (name) => {
    const [start, end] = header[name].data_offsets;
    if (8 + length + end > file.size) throw new Error(`${name} ends behind the file`);
    return file.slice(8 + length + start, 8 + length + end);
  };
  const names = JSON.parse(await part("names").text());
  const facts = header.facts ? JSON.parse(await part("facts").text()) : names.map((path) => ({ path }));
  const ends = new BigInt64Array(await part("ends").arrayBuffer());
  const floats = async (name) => new Float32Array(await part(name).arrayBuffer());
  const embeddings = await (header.embedding ? whole(header, part) : coded(header, part, floats));
  if ([names, facts, ends].some(({ length }) => length !== embeddings.length))
    throw new Error("names and embeddings differ in number");
  const probes = await floats("probes");
  const thumbnails = part("thumbnails");
  return {
    probes: { texts: JSON.parse(header.__metadata__.probes), embeddings: rowsOf(probes, header.probes.shape[1]) },
    pictures: embeddings.map((embedding, i) => ({
      path: names[i],
      facts: facts[i],
      ...embedding,
      thumbnail: thumbnails.slice(Number(i ? ends[i - 1] : 0n), Number(ends[i]), "image/webp"),
    })),
  };
}

async function whole({ embedding }, part) {
  const values = fromHalves(new Uint16Array(await part("embedding").arrayBuffer()));
  return rowsOf(values, embedding.shape[1]).map((row) => ({ embedding: row }));
}

async function coded({ codes, scale }, part, floats) {
  const [mean, basis, scales] = await Promise.all(["mean", "basis", "scale"].map(floats));
  const bytes = await part("codes").arrayBuffer();
  const values = codes.dtype === "I8" ? new Int8Array(bytes) : fromNibbles(new Uint8Array(bytes));
  const coder = new Coder({ mean, basis, scale: scales });
  return rowsOf(values, scale.shape[0]).map((row) => ({ codes: row, coder }));
}

function rowsOf(values, dim) {
  return Array.from({ length: values.length / dim }, (_, i) => values.subarray(i * dim, (i + 1) * dim));
}

/** Returns numbers of 16 bits as such of 32: not every browser has them. */
function fromHalves(halves) {
  return Float32Array.from(halves, (bits) => {
    const [exponent, fraction] = [(bits >> 10) & 31, bits & 1023];
    const size = exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -14 * (fraction / 1024);
    return bits & 0x8000 ? -size : size;
  });
}
