/** Reads safetensors files: a length, a JSON header, and the values. */

const KINDS = { F32: Float32Array, I8: Int8Array, U8: Uint8Array, I32: Int32Array, I64: BigInt64Array };

/**
 * Returns the tensors of a file by name.
 * @param {ArrayBuffer} buffer content of the file.
 * @returns {Map<string, {shape: number[], rows: (Float32Array|Int8Array|Uint8Array|Int32Array|BigInt64Array)[]}>} rows along the first axis.
 */
export function readSafetensors(buffer) {
  const length = Number(new DataView(buffer).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, length)));
  delete header.__metadata__;
  return new Map(
    Object.entries(header).map(
      ([
        name,
        {
          dtype,
          shape,
          data_offsets: [start, end],
        },
      ]) => {
        const values = new KINDS[dtype](buffer.slice(8 + length + start, 8 + length + end));
        const size = values.length / shape[0];
        return [
          name,
          { shape, rows: Array.from({ length: shape[0] }, (_, i) => values.slice(i * size, (i + 1) * size)) },
        ];
      },
    ),
  );
}
