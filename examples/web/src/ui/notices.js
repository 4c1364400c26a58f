/** Shows notices at the top of the page, until the user closes them. */

import { PageError } from "../errors.js";
import { byId, make } from "./dom.js";

const COMMAND = "mobileclip ";

/**
 * Shows a notice, with commands in a code font.
 * @param {string} message text of the notice; each command is a separate line.
 * @param {{title?: string, kind?: "error"|"warning", isLasting?: boolean}} options a lasting notice
 *   stays until the user closes the notice.
 */
export function notify(message, { title, kind = "error", isLasting = false } = {}) {
  const close = make("button", { className: "close", ariaLabel: "Close", textContent: "×" });
  const notice = make(
    "div",
    { className: `notice ${kind}` },
    ...(title ? [make("strong", {}, title)] : []),
    ...message.split("\n").map((line) => make(line.startsWith(COMMAND) ? "code" : "span", {}, line)),
    close,
  );
  notice.dataset.lasting = isLasting;
  close.addEventListener("click", () => notice.remove());
  byId("notices").append(notice);
}

/** Removes all notices except lasting notices. */
export function clearNotices() {
  for (const notice of byId("notices").querySelectorAll('[data-lasting="false"]')) notice.remove();
}

/** Returns a function that calls `run`, and shows errors as notices instead of throwing. */
export function guarded(run) {
  return async (...values) => {
    try {
      return await run(...values);
    } catch (error) {
      notify(error instanceof PageError ? error.message : `Unexpected error: ${error.message}`);
    }
  };
}
