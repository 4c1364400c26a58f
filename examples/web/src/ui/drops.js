/** Pictures dropped beside everything, or before the model is there: browsers would leave the page for them. */

import { notify } from "./notices.js";

/**
 * Keeps the browser on the page, whatever is dropped on it and wherever.
 * @returns {() => File|undefined} gives the last picture that was dropped until then, and holds no more.
 */
export function heldDrop() {
  let held;
  let isHolding = true;
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    // Panels that took it have prevented the browser from doing so.
    if (event.defaultPrevented) return;
    event.preventDefault();
    const [file] = event.dataTransfer.files;
    if (!file || !isHolding) return;
    held = file;
    notify("The model is still on its way. The picture is looked at as soon as it is there.", { kind: "warning" });
  });
  return () => {
    isHolding = false;
    return held;
  };
}
