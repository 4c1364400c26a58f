/**
 * Resizes images with the exact results of Pillow. A browser's canvas uses other filters, which change embeddings.
 *
 * Each pixel of the result is a weighted mean of source pixels. The filter widens with the scale factor (antialiasing).
 * Columns and rows are resized in two passes, with fixed-point weights of 22 fractional bits, and 8-bit results of each
 * pass.
 */

const BITS = 22;
const HALF = 1 << (BITS - 1);
const SHARPNESS = -0.5;

const FILTERS = {
  bilinear: { support: 1, weight: (x) => Math.max(0, 1 - Math.abs(x)) },
  bicubic: { support: 2, weight: (x) => cubic(Math.abs(x)) },
};

/** Keys' cubic with a = -1/2 (Catmull-Rom). */
function cubic(x) {
  if (x < 1) return ((SHARPNESS + 2) * x - (SHARPNESS + 3)) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * SHARPNESS : 0;
}

/**
 * Returns the source pixels and weights for each pixel of the result, along one axis.
 * @param {{from: number, to: number, first: number, count: number, interpolation: string}} axis length before and
 *   after, and the range of the result to compute.
 * @returns {{start: number, weights: Int32Array}[]}
 */
function tapsOf({ from, to, first, count, interpolation }) {
  const filter = FILTERS[interpolation];
  const step = from / to;
  const widening = Math.max(1, step);
  const support = filter.support * widening;
  return Array.from({ length: count }, (_, index) => {
    const centre = (first + index + 0.5) * step;
    const start = Math.max(0, Math.trunc(centre - support + 0.5));
    const end = Math.min(from, Math.trunc(centre + support + 0.5));
    const exact = Array.from({ length: end - start }, (_, i) => filter.weight((i + start - centre + 0.5) / widening));
    const sum = exact.reduce((total, weight) => total + weight, 0);
    const whole = exact
      .map((weight) => (weight / sum) * 2 ** BITS)
      .map((weight) => Math.trunc(weight + (weight < 0 ? -0.5 : 0.5)));
    return { start, weights: Int32Array.from(whole) };
  });
}

/**
 * Returns a resampler that receives rows in portions, so that a large image is never in memory as a whole.
 *
 * The first pass resizes columns, like Pillow; or rows, if that saves more work, like Pillow 13 and later. With earlier
 * versions and other libraries, the pixels of tall images may differ by one level.
 *
 * @param {object} plan
 * @param {{width: number, height: number}} plan.from size of the image.
 * @param {{width: number, height: number}} plan.to size of the whole resized image.
 * @param {{left: number, top: number, side: number}} plan.crop crop of the resized image.
 * @param {"bilinear"|"bicubic"} plan.interpolation name of the filter.
 * @returns {{firstRow: number, endRow: number, addRows: Function, finish: Function}} `addRows` receives the RGBA
 *   rows from `firstRow` to `endRow`, in order, any number per call, and ignores alpha. `finish` returns RGB pixels.
 */
export function makeResampler({ from, to, crop: { left, top, side }, interpolation }) {
  const columns = tapsOf({ from: from.width, to: to.width, first: left, count: side, interpolation });
  const rows = tapsOf({ from: from.height, to: to.height, first: top, count: side, interpolation });
  const [spared, sparedColumns] = [from.height - to.height, from.width - to.width];
  const Order = spared > 0 && spared > 2 * sparedColumns ? RowsFirst : ColumnsFirst;
  return new Order(columns, rows, from.width);
}

class ColumnsFirst {
  #columns;
  #rows;
  #width;
  #narrowed;
  #count = 0;

  constructor(columns, rows, width) {
    [this.#columns, this.#rows, this.#width] = [columns, rows, width];
    [this.firstRow, this.endRow] = spanOf(rows);
    this.#narrowed = new Uint8ClampedArray((this.endRow - this.firstRow) * columns.length * 3);
  }

  addRows(rgba) {
    for (let line = 0; line < rgba.length; line += this.#width * 4) {
      for (const { start, weights } of this.#columns) {
        const first = line + start * 4;
        for (let channel = 0; channel < 3; channel++) {
          this.#narrowed[this.#count++] = weigh(rgba, first + channel, 4, weights);
        }
      }
    }
  }

  finish() {
    const stride = this.#columns.length * 3;
    const result = new Uint8ClampedArray(this.#rows.length * stride);
    this.#rows.forEach(({ start, weights }, row) => {
      const first = (start - this.firstRow) * stride;
      for (let i = 0; i < stride; i++) result[row * stride + i] = weigh(this.#narrowed, first + i, stride, weights);
    });
    return result;
  }
}

class RowsFirst {
  #columns;
  #rows;
  #width;
  #sums;
  #row;

  constructor(columns, rows, width) {
    [this.#columns, this.#rows, this.#width] = [columns, rows, width];
    [this.firstRow, this.endRow] = spanOf(rows);
    this.#row = this.firstRow;
    this.#sums = rows.map(() => new Int32Array(width * 3).fill(HALF));
  }

  addRows(rgba) {
    for (let line = 0; line < rgba.length; line += this.#width * 4, this.#row++) {
      this.#rows.forEach(({ start, weights }, row) => {
        const weight = weights[this.#row - start];
        if (weight) addWeighted(this.#sums[row], rgba, line, weight);
      });
    }
  }

  finish() {
    const lowered = new Uint8ClampedArray(this.#width * 3);
    const result = new Uint8ClampedArray(this.#rows.length * this.#columns.length * 3);
    let count = 0;
    for (const sums of this.#sums) {
      for (let i = 0; i < sums.length; i++) lowered[i] = sums[i] >> BITS;
      for (const { start, weights } of this.#columns) {
        for (let channel = 0; channel < 3; channel++) {
          result[count++] = weigh(lowered, start * 3 + channel, 3, weights);
        }
      }
    }
    return result;
  }
}

/** Returns the range of source pixels along an axis; the end is exclusive. */
function spanOf(taps) {
  return [taps[0].start, Math.max(...taps.map(({ start, weights }) => start + weights.length))];
}

/** Returns the weighted mean of values with a stride. */
function weigh(values, first, stride, weights) {
  let sum = HALF;
  for (let i = 0, at = first; i < weights.length; i++, at += stride) sum += values[at] * weights[i];
  return sum >> BITS;
}

/** Adds a weighted RGBA row to RGB sums. */
function addWeighted(sums, rgba, line, weight) {
  for (let i = 0, at = line; i < sums.length; i += 3, at += 4) {
    sums[i] += rgba[at] * weight;
    sums[i + 1] += rgba[at + 1] * weight;
    sums[i + 2] += rgba[at + 2] * weight;
  }
}
