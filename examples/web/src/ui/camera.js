/** Takes a photo with the camera. */

import { PageError } from "../errors.js";
import { byId } from "./dom.js";

const REASONS = {
  NotFoundError: "There is no camera on this device",
  NotAllowedError: "This page may not use the camera; allow it in the browser's settings for this address",
  NotReadableError: "Another program is using the camera",
};

/** Returns whether the page should show the camera itself; on phones, the camera app is better. */
export function canShowCamera() {
  return Boolean(navigator.mediaDevices?.getUserMedia) && !matchMedia("(pointer: coarse)").matches;
}

/**
 * Shows the camera, and returns the photo; null if the user takes no photo.
 * @returns {Promise<Blob|null>}
 * @throws {PageError} if there is no camera, or the page may not use the camera.
 */
export async function takePhoto() {
  const stream = await openCamera();
  const dialog = byId("camera");
  const video = byId("camera-picture");
  video.srcObject = stream;
  dialog.showModal();
  try {
    return await new Promise((resolve) => {
      byId("shoot").onclick = () => photoOf(video).then(resolve);
      byId("close-camera").onclick = () => resolve(null);
      dialog.oncancel = () => resolve(null);
    });
  } finally {
    dialog.close();
    for (const track of stream.getTracks()) track.stop();
    video.srcObject = null;
  }
}

async function openCamera() {
  try {
    return await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment", width: { ideal: 1280 } } });
  } catch (error) {
    throw new PageError(
      `${REASONS[error.name] ?? `The camera cannot be used: ${error.message}`}. Choose an image instead.`,
    );
  }
}

async function photoOf(video) {
  const canvas = new OffscreenCanvas(video.videoWidth, video.videoHeight);
  canvas.getContext("2d").drawImage(video, 0, 0);
  return canvas.convertToBlob({ type: "image/png" });
}
