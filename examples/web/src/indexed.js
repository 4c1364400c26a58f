/** Reads an index exported by `mobileclip index --output`, a safetensors file of names, embeddings and small copies. */

import { PageError } from "./errors.js";

const FORMAT = "mobileclip images 1";
const MOST_HEADER_BYTES = 2 ** 20;
const ADVICE = "Write an index file: mobileclip index photos/ --output images.safetensors";

/**
 * Reads an exported index. Small copies stay in the file until display.
 * @param {File} file file to read.
 * @returns {Promise<{probes: {texts: string[], embeddings: Float32Array[]},
 *   pictures: {path: string, facts: object, embedding: Float32Array, thumbnail: Blob}[]}>}
 * @throws {PageError} if the file is not an exported index, or is damaged.
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
  if (length > Math.min(MOST_HEADER_BYTES, file.size)) throw new PageError(`${file.name} holds no images. ${ADVICE}`);
  const header = JSON.parse(await file.slice(8, 8 + length).text());
  if (header.__metadata__?.format !== FORMAT) throw new PageError(`${file.name} holds no images. ${ADVICE}`);
  const part = (name) => {
    const [start, end] = header[name].data_offsets;
    if (8 + length + end > file.size) throw new Error(`${name} ends behind the file`);
    return file.slice(8 + length + start, 8 + length + end);
  };
  const names = JSON.parse(await part("names").text());
  const facts = JSON.parse(await part("facts").text());
  const ends = new BigInt64Array(await part("ends").arrayBuffer());
  const floats = async (name) => new Float32Array(await part(name).arrayBuffer());
  const halves = new Uint16Array(await part("embedding").arrayBuffer());
  const embeddings = rowsOf(fromHalves(halves), header.embedding.shape[1]);
  if ([names, facts, ends].some(({ length }) => length !== embeddings.length))
    throw new Error("names and embeddings differ in number");
  const probes = await floats("probes");
  const thumbnails = part("thumbnails");
  return {
    probes: { texts: JSON.parse(header.__metadata__.probes), embeddings: rowsOf(probes, header.probes.shape[1]) },
    pictures: embeddings.map((embedding, i) => ({
      path: names[i],
      facts: facts[i],
      embedding,
      thumbnail: thumbnails.slice(Number(i ? ends[i - 1] : 0n), Number(ends[i]), "image/webp"),
    })),
  };
}

function rowsOf(values, dim) {
  return Array.from({ length: values.length / dim }, (_, i) => values.subarray(i * dim, (i + 1) * dim));
}

/** Converts float16 to float32, since not every browser has `Float16Array`. */
function fromHalves(halves) {
  return Float32Array.from(halves, (bits) => {
    const [exponent, fraction] = [(bits >> 10) & 31, bits & 1023];
    const size = exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -14 * (fraction / 1024);
    return bits & 0x8000 ? -size : size;
  });
}
