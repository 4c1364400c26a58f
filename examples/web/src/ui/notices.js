/** What people must know: at the top of the page, until they close it. */

import { PageError } from "../errors.js";
import { byId, make } from "./dom.js";

const COMMAND = "mobileclip ";

/**
 * Shows a message; commands in it, a line each, stand out.
 * @param {string} message what to know.
 * @param {{title?: string, kind?: "error"|"warning", isLasting?: boolean}} options a lasting one is of the model, and
 *   stays whatever people go on to do.
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

/** Takes messages away, but for the lasting ones. */
export function clearNotices() {
  for (const notice of byId("notices").querySelectorAll('[data-lasting="false"]')) notice.remove();
}

/** Returns a function that shows what went wrong in another, instead of throwing it. */
export function guarded(run) {
  return async (...values) => {
    try {
      return await run(...values);
    } catch (error) {
      notify(error instanceof PageError ? error.message : `Something unforeseen went wrong: ${error.message}`);
    }
  };
}
