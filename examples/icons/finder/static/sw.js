/** Serves the page offline, from the files of the first load and the drawings fetched since. */

const NAME = "icon-finder ";
/* global VERSION, SHELL */
const CACHE = NAME + VERSION;

addEventListener("install", (event) => {
  const fresh = ["./", ...SHELL].map((name) => new Request(name, { cache: "no-cache" }));
  event.waitUntil(
    caches
      .open(CACHE)
      .then((cache) => cache.addAll(fresh))
      .then(() => skipWaiting()),
  );
});

addEventListener("activate", (event) => {
  const dropOthers = async () => {
    const names = (await caches.keys()).filter((name) => name.startsWith(NAME) && name !== CACHE);
    await Promise.all(names.map((name) => caches.delete(name)));
    await clients.claim();
  };
  event.waitUntil(dropOthers());
});

addEventListener("fetch", (event) => {
  const { method, url } = event.request;
  if (method === "GET" && url.startsWith(registration.scope)) event.respondWith(answer(event.request));
});

async function answer(request) {
  const cache = await caches.open(CACHE);
  const known = await cache.match(request, { ignoreSearch: true });
  if (known) return known;
  const response = await fetch(request);
  // A full disk must not prevent the answer.
  if (response.ok) await cache.put(request, response.clone()).catch(() => {});
  return response;
}
