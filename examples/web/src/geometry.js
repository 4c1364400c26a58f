/** Where the square that a model sees lies in a picture. */

import { PageError } from "./errors.js";

// As in the library: between resizing and cropping, no more than this many pixels.
const MOST_PIXELS = 2 ** 27;

/**
 * Returns the size that a picture is resized to, its shorter side being `size`, and the square in its middle.
 * @throws {PageError} if it is thousands of times as long as wide.
 */
export function planCrop({ width, height }, size) {
  const [short, long] = width <= height ? [width, height] : [height, width];
  const resized = Math.trunc((size * long) / short);
  if (size * resized > MOST_PIXELS) {
    throw new PageError(`The picture has ${width} x ${height} pixels, which is too long and thin; crop it first`);
  }
  const to = width <= height ? { width: size, height: resized } : { width: resized, height: size };
  const crop = { left: halfToEven(to.width - size), top: halfToEven(to.height - size), side: size };
  return { from: { width, height }, to, crop };
}

/** Half of a whole number, rounded to the even neighbour where it lies in between, as Python rounds. */
function halfToEven(number) {
  const half = Math.floor(number / 2);
  return number % 2 === 0 || half % 2 === 0 ? half : half + 1;
}
