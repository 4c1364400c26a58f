/** Elements of the page. */

/** Returns the element with an id. */
export function byId(id) {
  return document.getElementById(id);
}

/**
 * Returns a new element.
 * @param {string} tag its name.
 * @param {object} properties set on it; `style` holds custom properties.
 * @param {...(Node|string)} children put into it.
 */
export function make(tag, { style = {}, ...properties } = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  for (const [name, value] of Object.entries(style)) element.style.setProperty(name, value);
  element.append(...children);
  return element;
}

/** Returns a function that runs another once calls have ceased for a while. */
export function settled(run, milliseconds) {
  let timer;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(run, milliseconds);
  };
}

/** Returns a time as people read it. */
export function spell(milliseconds) {
  if (milliseconds < 1000) return `${Math.max(1, Math.round(milliseconds))} ms`;
  const seconds = milliseconds / 1000;
  return seconds < 60 ? `${seconds.toFixed(1)} s` : `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s`;
}

/** Makes an element take what is dropped on it. */
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
