/** Helpers for elements of the page. */

/** Returns the element with an id. */
export function byId(id) {
  return document.getElementById(id);
}

/**
 * Returns a new element.
 * @param {string} tag name of the tag.
 * @param {object} properties properties of the element; `style` has custom CSS properties.
 * @param {...(Node|string)} children children of the element.
 */
export function make(tag, { style = {}, ...properties } = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  for (const [name, value] of Object.entries(style)) element.style.setProperty(name, value);
  element.append(...children);
  return element;
}

/** Returns a function that runs `run` after a pause without further calls (debounce). */
export function settled(run, milliseconds) {
  let timer;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(run, milliseconds);
  };
}

/** Formats a time for display. */
export function spell(milliseconds) {
  if (milliseconds < 1000) return `${Math.max(1, Math.round(milliseconds))} ms`;
  const seconds = milliseconds / 1000;
  return seconds < 60 ? `${seconds.toFixed(1)} s` : `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s`;
}

/** Calls `take` with the data of each drop on an element. */
export function onDrop(element, take) {
  const isOver = (over) => element.classList.toggle("over", over);
  element.addEventListener("dragover", (event) => {
    event.preventDefault();
    isOver(true);
  });
  element.addEventListener("dragleave", () => isOver(false));
  element.addEventListener("drop", (event) => {
    event.preventDefault();
    isOver(false);
    take(event.dataTransfer);
  });
}
