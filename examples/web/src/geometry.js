/** Computes the centre crop of an image. */

import { PageError } from "./errors.js";

// Maximum number of pixels between resizing and cropping, as in the library.
const MOST_PIXELS = 2 ** 27;

/**
 * Returns the size of the resized image, with `size` as its shorter side, and the centre crop.
 * @throws {PageError} if the image is thousands of times as long as wide.
 */
export function planCrop({ width, height }, size) {
  const [short, long] = width <= height ? [width, height] : [height, width];
  const resized = Math.trunc((size * long) / short);
  if (size * resized > MOST_PIXELS) {
    throw new PageError(`The image has ${width} x ${height} pixels, which is too long and thin; crop it first`);
  }
  const to = width <= height ? { width: size, height: resized } : { width: resized, height: size };
  const crop = { left: halfToEven(to.width - size), top: halfToEven(to.height - size), side: size };
  return { from: { width, height }, to, crop };
}

/** Returns half of an integer, with ties rounded to even, as in Python. */
function halfToEven(number) {
  const half = Math.floor(number / 2);
  return number % 2 === 0 || half % 2 === 0 ? half : half + 1;
}
