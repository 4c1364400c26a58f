/** Small copies of pictures, for the screen alone. */

const QUALITY = 0.82;

/**
 * Returns a JPEG file of a picture.
 * @param {ImageBitmap} bitmap the picture.
 * @param {number} side of the longer side at most, in pixels.
 */
export async function thumbnailOf(bitmap, side) {
  const factor = Math.min(1, side / Math.max(bitmap.width, bitmap.height));
  const [width, height] = [bitmap.width, bitmap.height].map((length) => Math.max(1, Math.round(length * factor)));
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, width, height);
  return canvas.convertToBlob({ type: "image/jpeg", quality: QUALITY });
}
