/** Makes small copies of images for display. */

const QUALITY = 0.82;

/**
 * Returns a small copy of an image as JPEG.
 * @param {ImageBitmap} bitmap the image.
 * @param {number} side maximum length of the longer side, in pixels.
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
