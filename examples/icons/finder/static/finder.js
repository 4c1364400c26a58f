/** The page of the icon finder: searches the icons of many sets by text in any language, and copies icons as SVG. */

import { count, neighbour } from "../../../../mobileclip/collections/web/static/search.js";
import { folded, rank, unit } from "../../../web/src/ranking.js";
import { readSafetensors } from "../../../web/src/safetensors.js";
import { byId, make, settled } from "../../../web/src/ui/dom.js";
import { makeTextEncoder } from "./text.js";

const PAGE = 60;
const PAUSE = 120;
const EXAMPLES = ["save", "speichern", "保存", "حفظ", "Fahrrad", "télécharger", "検索", "корзина", "سهم"];

let icons, sets, words, weak, encode, opened;
let ranked = [];
let shown = 0;
const files = new Map();

/** Fetches and decompresses a file of the build: always gzip, whatever the server's headers state. */
async function unpacked(name) {
  const response = await fetch(name);
  if (!response.ok) throw new Error(`${name} is missing here (status ${response.status}); build the finder again`);
  return new Response(response.body.pipeThrough(new DecompressionStream("gzip")));
}

const parsed = async (name) => (await unpacked(name)).json();

/** Returns the drawing of an icon, or its variants; after a failure, the next call fetches the file again. */
async function drawn(kind, { file, key }) {
  const name = `${kind}/${file}.bin`;
  if (!files.has(name)) files.set(name, parsed(name));
  const found = await files.get(name).catch((error) => {
    files.delete(name);
    throw error;
  });
  if (!found[key]) throw new Error("the finder has changed: load the page again");
  return found[key];
}

const addressOf = (svg) => `data:image/svg+xml,${encodeURIComponent(svg)}`;

/** Shows an SVG in an image element, where its scripts do not run; icons without colours take the page's colour. */
function draw(image, svg) {
  image.classList.toggle("ink", svg.includes("currentColor"));
  image.src = addressOf(svg);
  return image;
}

async function start() {
  navigator.serviceWorker?.register("sw.js").catch(() => {}); // with plain HTTP or a full disk, nothing is cached
  const [index, catalogue] = await Promise.all([
    unpacked("index.bin").then((answer) => answer.arrayBuffer()),
    parsed("catalogue.bin"),
  ]);
  const tensors = readSafetensors(index);
  ({ sets, words, weak } = catalogue);
  const vectors = tensors.get("vectors").rows;
  icons = catalogue.icons.map(([set, source, name, variants], i) => {
    const file = Math.floor(i / catalogue.icons_per_file);
    const key = `${sets[set].name}-${source}`;
    return { key, file, set, source, name, variants, embedding: vectors[i], facts: {} };
  });
  encode = makeTextEncoder(catalogue.towers, tensors);
  startAsking();
  startOne();
  byId("keep").hidden = !navigator.serviceWorker;
  byId("keep").addEventListener("click", () => keep(icons.at(-1).file + 1));
  byId("about").textContent =
    `${count(icons.length, "icon", "icons")} of ${count(sets.length, "set", "sets")}. What you type stays on this device.`;
  restore();
}

const boxes = () => [...byId("sets").querySelectorAll("input")];

function startAsking() {
  for (const [i, { title, licence, number }] of sets.entries()) {
    const box = make("input", { type: "checkbox", checked: true, value: i });
    const label = `${title} (${number.toLocaleString("en")}, ${licence.spdx ?? licence.title})`;
    byId("sets").append(make("label", { className: "choice" }, box, label));
  }
  byId("every").addEventListener("click", () => check(true));
  byId("none").addEventListener("click", () => check(false));
  byId("sets").addEventListener("change", search);
  byId("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    search();
  });
  byId("text").addEventListener("input", settled(search, PAUSE));
  byId("more").addEventListener("click", showMore);
  const end = new IntersectionObserver((seen) => seen.at(-1).isIntersecting && showMore(), { rootMargin: "600px" });
  end.observe(byId("more"));
  addEventListener("popstate", restore);
  document.addEventListener("keydown", press);
}

function check(checked) {
  for (const box of boxes()) box.checked = checked;
  search();
}

/** Restores the search from the URL. */
function restore() {
  const query = new URLSearchParams(location.search);
  const wanted = query.getAll("set");
  byId("text").value = query.get("text") ?? "";
  for (const box of boxes()) box.checked = !wanted.length || wanted.includes(sets[box.value].name);
  search();
}

/** Returns the icons of the chosen sets: exact names first, then names with all words, then others. */
function found(text, isChosen) {
  const asked = words[folded(text)] ?? text;
  const parts = folded(asked).split(/\s+/);
  const all = rank(icons, unit(encode(asked).vector));
  const scores = all.map(({ score }) => score);
  const mean = scores.reduce((sum, score) => sum + score, 0) / scores.length;
  const deviation = Math.sqrt(scores.reduce((sum, score) => sum + (score - mean) ** 2, 0) / scores.length);
  const named = ({ name }) => (name === parts.join(" ") ? 2 : Number(parts.every((part) => name.split(" ").includes(part))));
  const scored = all.filter(({ picture }) => isChosen(picture));
  const kinds = new Map(scored.map(({ picture }) => [picture, named(picture)]));
  const ordered = scored.map(({ picture }) => picture).sort((one, other) => kinds.get(other) - kinds.get(one));
  return { ordered, isWeak: ordered.length > 0 && !kinds.get(ordered[0]) && (scored[0].score - mean) / deviation < weak };
}

function search() {
  const text = byId("text").value.trim();
  const chosen = new Set(boxes().flatMap(({ checked, value }) => (checked ? [Number(value)] : [])));
  const isAll = chosen.size === sets.length;
  byId("filtered").textContent = isAll ? "All sets" : `${chosen.size} of ${count(sets.length, "set", "sets")}`;
  const query = new URLSearchParams(text && { text });
  if (!isAll) for (const one of chosen) query.append("set", sets[one].name);
  history.replaceState(null, "", query.size ? `?${query}` : "./");
  const isChosen = ({ set }) => chosen.has(set);
  const { ordered, isWeak } = text ? found(text, isChosen) : { ordered: [] };
  ranked = ordered;
  shown = 0;
  byId("results").replaceChildren(text ? make("ul") : make("p", { className: "line" }, ...EXAMPLES.map(example)));
  const order = isWeak ? "weak match: the model may not know this" : "best first";
  const said = ordered.length ? `${count(ordered.length, "icon", "icons")}, ${order}` : "No set is chosen.";
  byId("status").textContent = text ? said : "Describe the icon, for example:";
  showMore();
}

function example(text) {
  const button = make("button", { type: "button" }, text);
  button.addEventListener("click", () => {
    byId("text").value = text;
    search();
  });
  return button;
}

function showMore() {
  const some = ranked.slice(shown, shown + PAGE);
  shown += some.length;
  byId("more").hidden = shown >= ranked.length;
  byId("results")
    .querySelector("ul")
    ?.append(...some.map(tileOf));
}

function tileOf(icon) {
  const { title } = sets[icon.set];
  const frame = make("span", { className: "frame" });
  const texts = [make("span", { className: "path" }, icon.name), make("span", { className: "score" }, title)];
  const properties = { className: "tile", type: "button", title: `${icon.name}, ${title}` };
  const tile = make("button", properties, frame, ...texts);
  tile.addEventListener("click", () => open(icon));
  drawn("drawings", icon).then(
    (svg) => frame.append(draw(make("img", { alt: "" }), svg)),
    () => frame.append(make("span", { className: "gone" }, "not here while offline")),
  );
  return make("li", {}, tile);
}

function startOne() {
  const dialog = byId("one");
  byId("close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", ({ target }) => target === dialog && dialog.close());
  byId("copy").addEventListener("click", copy);
}

async function open(icon) {
  const { title, author, licence } = sets[icon.set];
  const link = (text, href) => (href ? make("a", { href }, text) : text);
  byId("one-name").textContent = icon.name;
  byId("one-facts").replaceChildren(
    `${title} by `,
    link(author.name, author.url),
    ", ",
    link(licence.title, licence.url),
  );
  byId("variants").replaceChildren();
  byId("said").textContent = "";
  byId("one").showModal();
  try {
    choose(icon, icon.source, await drawn("drawings", icon));
    byId("copy").focus();
    const variants = icon.variants > 1 ? await drawn("variants", icon) : {};
    if (opened.icon === icon) byId("variants").append(...Object.entries(variants).map((one) => variant(icon, ...one)));
  } catch (error) {
    byId("said").textContent = error.message;
  }
}

function variant(icon, source, svg) {
  const properties = { type: "button", title: source, ariaPressed: source === opened.source };
  const button = make("button", properties, draw(make("img", { alt: source }), svg));
  button.addEventListener("click", () => choose(icon, source, svg));
  return button;
}

function choose(icon, source, svg) {
  opened = { icon, source, svg };
  draw(byId("one-picture"), svg);
  Object.assign(byId("download"), { href: addressOf(svg), download: `${sets[icon.set].name}-${source}.svg` });
  for (const one of byId("variants").children) one.ariaPressed = one.title === source;
}

async function copy() {
  try {
    await navigator.clipboard.writeText(opened.svg);
    byId("said").textContent = `${opened.source} is copied. Its licence: ${sets[opened.icon.set].licence.title}.`;
  } catch {
    byId("said").textContent = "This browser does not let the page copy: download the icon.";
  }
}

/** Fetches all drawings into the cache, for offline use. */
async function keep(numFiles) {
  const button = byId("keep");
  button.disabled = true;
  try {
    for (let i = 0; i < numFiles; i++) {
      button.textContent = `Keeping all drawings: ${Math.round((100 * i) / numFiles)} %`;
      await (await fetch(`drawings/${i}.bin`)).arrayBuffer();
    }
    button.textContent = "All drawings are kept";
  } catch {
    [button.disabled, button.textContent] = [false, "The network is gone: go on keeping all drawings"];
  }
}

function press(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const active = document.activeElement;
  if (byId("one").open) return event.key.toLowerCase() === "c" && copy();
  if (event.key === "/" && !active.matches("input")) {
    event.preventDefault();
    byId("text").focus();
    byId("text").select();
  }
  const all = [...document.querySelectorAll(".tile")];
  const isTyping = active.matches("[type=checkbox]") || (active.matches("input") && event.key !== "ArrowDown");
  if (!event.key.startsWith("Arrow") || !all.length || isTyping) return;
  event.preventDefault();
  const place = all.indexOf(active);
  const next = all[place < 0 ? 0 : neighbour(all, place, event.key)];
  next?.focus();
  next?.scrollIntoView({ block: "nearest" });
}

start().catch((error) => {
  byId("status").textContent = `The icons cannot be loaded: ${error.message}`;
  byId("status").classList.add("problem");
});
