/** An error that the user can fix; the page shows its message unchanged. */
export class PageError extends Error {
  name = "PageError";
}
