/** Decodes and preprocesses images for the image tower. */

import { PageError } from "./errors.js";
import { planCrop } from "./geometry.js";
import { makeResampler } from "./resample.js";

// Maximum number of pixels to read from the canvas at once, since phones have little memory.
const PIXELS_AT_ONCE = 2 ** 21;
// Models were trained on the stored values, without colour profiles or premultiplied alpha.
const AS_STORED = { colorSpaceConversion: "none", premultiplyAlpha: "none", imageOrientation: "from-image" };

/**
 * Decodes an image, with the orientation of its metadata.
 * @param {Blob} blob image file.
 * @param {string} name name for the error message.
 * @returns {Promise<ImageBitmap>}
 * @throws {PageError} if the browser cannot decode the file.
 */
export async function decode(blob, name) {
  try {
    return await createImageBitmap(blob, AS_STORED);
  } catch {
    throw new PageError(`${name} is not an image that this browser can read; JPEG, PNG, WebP and GIF are`);
  }
}

/**
 * Returns the RGB pixels of the resized centre crop.
 * @param {ImageBitmap} bitmap decoded image.
 * @param {{size: number, interpolation: string, background?: string}} contract contract of the image tower.
 */
export function pixelsOf(bitmap, { size, interpolation, background = "hidden" }) {
  const plan = { ...planCrop(bitmap, size), interpolation, background };
  return (
    resampled(plan, canvasReader(bitmap), { opaque: true }) ??
    resampled(plan, textureReader(bitmap) ?? canvasReader(bitmap), { opaque: false })
  );
}

/**
 * Returns the input of the image tower: planar channels, normalised if the export leaves normalisation to the host.
 * @param {Uint8ClampedArray} pixels RGB pixels.
 * @param {{preprocess: string, mean: number[], std: number[]}} contract contract of the image tower.
 */
export function inputOf(pixels, { preprocess, mean, std }) {
  const size = pixels.length / 3;
  const input = ["uint8", "picture"].includes(preprocess) ? new Uint8Array(pixels.length) : new Float32Array(pixels.length);
  for (let channel = 0; channel < 3; channel++) {
    const values = Array.from({ length: 256 }, (_, value) =>
      preprocess === "host" ? normalized(value, mean[channel], std[channel]) : value,
    );
    for (let i = 0; i < size; i++) input[channel * size + i] = values[pixels[i * 3 + channel]];
  }
  return input;
}

/** Returns the pixels of an input; the inverse of `inputOf`. */
export function pixelsOfInput(input, { preprocess, mean, std }) {
  const size = input.length / 3;
  const pixels = new Uint8ClampedArray(input.length);
  for (let channel = 0; channel < 3; channel++) {
    for (let i = 0; i < size; i++) {
      const value = input[channel * size + i];
      pixels[i * 3 + channel] = preprocess === "host" ? (value * std[channel] + mean[channel]) * 255 : value;
    }
  }
  return pixels;
}

/** Normalises a value in float32, like the library. */
function normalized(value, mean, std) {
  return Math.fround(Math.fround(Math.fround(value / 255) - Math.fround(mean)) / Math.fround(std));
}

/** Returns the resampled image; null if `opaque` is true and the image has transparent pixels. */
function resampled(plan, read, { opaque }) {
  const resampler = makeResampler(plan);
  const { width } = plan.from;
  const most = Math.max(1, Math.floor(PIXELS_AT_ONCE / width));
  for (let row = resampler.firstRow; row < resampler.endRow; row += most) {
    const rgba = read(row, Math.min(most, resampler.endRow - row));
    if (opaque && !isOpaque(rgba)) return null;
    resampler.addRows(opaque ? rgba : putOn(rgba, plan.background));
  }
  return resampler.finish();
}

/**
 * Composites pixels on a background, in place.
 * @param {Uint8Array | Uint8ClampedArray} rgba RGBA pixels.
 * @param {string} background background in the contract; `hidden` only ignores alpha.
 */
export function putOn(rgba, background) {
  if (background === "hidden") return rgba;
  const hex = { white: "#ffffff", black: "#000000" }[background] ?? background;
  const color = [1, 3, 5].map((start) => parseInt(hex.slice(start, start + 2), 16));
  for (let i = 0; i < rgba.length; i += 4) {
    const alpha = rgba[i + 3];
    for (let channel = 0; channel < 3; channel++) {
      rgba[i + channel] = Math.round((rgba[i + channel] * alpha + color[channel] * (255 - alpha)) / 255);
    }
  }
  return rgba;
}

function isOpaque(rgba) {
  for (let i = 3; i < rgba.length; i += 4) if (rgba[i] !== 255) return false;
  return true;
}

/** Returns a function that reads rows from a canvas; colours are exact only where alpha is 255. */
function canvasReader(bitmap) {
  const canvas = new OffscreenCanvas(1, 1);
  return (row, count) => {
    Object.assign(canvas, { width: bitmap.width, height: count });
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(bitmap, 0, -row);
    return context.getImageData(0, 0, bitmap.width, count).data;
  };
}

/** Returns a function that reads rows from a texture, exact for any alpha; null if the image is too large. */
function textureReader(bitmap) {
  const gl = new OffscreenCanvas(1, 1).getContext("webgl2");
  if (!gl || Math.max(bitmap.width, bitmap.height) > gl.getParameter(gl.MAX_TEXTURE_SIZE)) return null;
  const texture = gl.createTexture();
  gl.bindTexture(gl.TEXTURE_2D, texture);
  gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, bitmap);
  gl.bindFramebuffer(gl.FRAMEBUFFER, gl.createFramebuffer());
  gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, texture, 0);
  return (row, count) => {
    const rgba = new Uint8Array(bitmap.width * count * 4);
    gl.readPixels(0, row, bitmap.width, count, gl.RGBA, gl.UNSIGNED_BYTE, rgba);
    return rgba;
  };
}
