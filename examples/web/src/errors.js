/** Something that the person at the page can act on; its message is shown as it is. */
export class PageError extends Error {
  name = "PageError";
}
