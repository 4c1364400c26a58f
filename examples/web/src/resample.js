/**
 * Resizing as Pillow does it, to the bit: the canvas of a browser has other filters, and other filters are other
 * embeddings.
 *
 * Each pixel of the result is a weighted mean of the pixels below it. The filter is as wide as the step from one pixel
 * to the next, which is what keeps fine patterns from turning into coarse ones. Columns come first, then rows; weights
 * are whole numbers of 22 bits behind the point, and in between and at the end there are 8 bits.
 */

const BITS = 22;
const HALF = 1 << (BITS - 1);
const SHARPNESS = -0.5;

const FILTERS = {
  bilinear: { support: 1, weight: (x) => Math.max(0, 1 - Math.abs(x)) },
  bicubic: { support: 2, weight: (x) => cubic(Math.abs(x)) },
};

/** Keys' cubic with a = -1/2: of Catmull and Rom. */
function cubic(x) {
  if (x < 1) return ((SHARPNESS + 2) * x - (SHARPNESS + 3)) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * SHARPNESS : 0;
}

/**
 * Returns which pixels of one axis count for each pixel of the result, and how much.
 * @param {{from: number, to: number, first: number, count: number, interpolation: string}} axis its length before and
 *   after, and the part of the result that is wanted.
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

/** A resized and cropped picture, made from rows as they come: no more than a few rows of a large one are held. */
export class Resampler {
  /**
   * @param {{width: number, height: number}} from the picture's size.
   * @param {{width: number, height: number}} to the whole picture's size after.
   * @param {{left: number, top: number, side: number}} crop the square of it that is wanted.
   * @param {"bilinear"|"bicubic"} interpolation the filter.
   */
  constructor({ from, to, crop, interpolation }) {
    this.side = crop.side;
    this.sourceWidth = from.width;
    const count = crop.side;
    this.columns = tapsOf({ from: from.width, to: to.width, first: crop.left, count, interpolation });
    this.rows = tapsOf({ from: from.height, to: to.height, first: crop.top, count, interpolation });
    /** The first row that counts, and the one behind the last. */
    this.firstRow = this.rows[0].start;
    this.endRow = Math.max(...this.rows.map(({ start, weights }) => start + weights.length));
    this.narrowed = new Uint8ClampedArray((this.endRow - this.firstRow) * crop.side * 3);
  }

  /**
   * Takes whole rows, of red, green, blue and alpha; alpha does not count.
   * @param {Uint8ClampedArray} rgba the rows.
   * @param {number} row the first of them in the picture, between `firstRow` and `endRow`.
   */
  addRows(rgba, row) {
    const stride = this.sourceWidth * 4;
    let target = (row - this.firstRow) * this.side * 3;
    for (let line = 0; line < rgba.length; line += stride) {
      for (const { start, weights } of this.columns) {
        let [red, green, blue] = [HALF, HALF, HALF];
        for (let i = 0, source = line + start * 4; i < weights.length; i++, source += 4) {
          red += rgba[source] * weights[i];
          green += rgba[source + 1] * weights[i];
          blue += rgba[source + 2] * weights[i];
        }
        this.narrowed[target++] = red >> BITS;
        this.narrowed[target++] = green >> BITS;
        this.narrowed[target++] = blue >> BITS;
      }
    }
  }

  /** Returns red, green and blue of each pixel, once all rows are there. */
  finish() {
    const stride = this.side * 3;
    const result = new Uint8ClampedArray(this.side * stride);
    this.rows.forEach(({ start, weights }, row) => {
      for (let column = 0; column < stride; column++) {
        let sum = HALF;
        for (let i = 0, source = (start - this.firstRow) * stride + column; i < weights.length; i++, source += stride) {
          sum += this.narrowed[source] * weights[i];
        }
        result[row * stride + column] = sum >> BITS;
      }
    });
    return result;
  }
}
