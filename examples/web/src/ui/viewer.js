/** One of the pictures found, as large as the window allows. */

import { byId } from "./dom.js";

/** Makes the window close by its button, and by a click beside the picture; Escape closes it by itself. */
export function startViewer() {
  const viewer = byId("viewer");
  byId("close-viewer").addEventListener("click", () => viewer.close());
  viewer.addEventListener("click", ({ target }) => target === viewer && viewer.close());
  viewer.addEventListener("close", () => URL.revokeObjectURL(byId("viewer-picture").src));
}

/**
 * Shows a picture.
 * @param {{file: File, path: string}} picture of the collection.
 * @param {number} score its cosine with the query.
 */
export function showPicture({ file, path }, score) {
  const image = byId("viewer-picture");
  image.src = URL.createObjectURL(file);
  image.alt = path;
  byId("viewer-name").textContent = path;
  byId("viewer-score").textContent = `cosine ${score.toFixed(3)}`;
  byId("viewer").showModal();
}
