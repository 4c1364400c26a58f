/** Handles images dropped outside the panels or before the model is loaded; browsers would otherwise open the image. */

import { notify } from "./notices.js";

/**
 * Prevents the browser from opening dropped files, and holds the last dropped file.
 * @returns {() => File|undefined} function that returns the held file, and ends the holding.
 */
export function heldDrop() {
  let held;
  let isHolding = true;
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    // A panel has already handled this drop.
    if (event.defaultPrevented) return;
    event.preventDefault();
    const [file] = event.dataTransfer.files;
    if (!file || !isHolding) return;
    held = file;
    notify("The model is still loading. The page shows the image when the model is loaded.", { kind: "warning" });
  });
  return () => {
    isHolding = false;
    return held;
  };
}
