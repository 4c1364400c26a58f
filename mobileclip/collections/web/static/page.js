// The page of `mobileclip serve`: sends searches to the server, and shows the answers.

import { read, written } from '/address.js';
import { condition, several, startFilters } from '/filters.js';
import { links, quoted, said, under } from '/own.js';
import { count, facts, find, make, Search } from '/search.js';

const NAME = 'My photos';
const GROUPS = 20; // number of duplicate groups per page

let about = null; // overview of the index, from the server
let version = null;
let leaving = 0; // timer for storing the scroll position
let isPlaced = false; // whether the scroll position is restored
let isStart = false; // whether the page shows the start page
let isGoingBack = false; // whether the search comes from the browser's history
let concept = null; // concept, if the search names only this concept
const pictures = []; // uploaded images; the history refers to these images by index

async function ask(address, options) {
  let answer;
  try {
    answer = await fetch(address, options);
  } catch {
    const error = new Error('the server does not answer; is mobileclip serve still running?');
    throw Object.assign(error, { isUnanswered: true });
  }
  const value = await answer.json().catch(() => ({ error: `the server answered with status ${answer.status}` }));
  if (!answer.ok) throw Object.assign(new Error(value.error), { field: value.field });
  return value;
}

// Sends an uploaded image in the body; the URL has everything else.
const askWith = (address, picture) =>
  ask(address, picture ? { method: 'POST', body: picture, headers: { 'Content-Type': 'application/octet-stream' } } : {});

const keep = addButton('keep', 'Keep as a concept', keepConcept);
addButton('duplicates', 'Duplicates', duplicates);
keep.hidden = true;

const page = new Search({
  browses: true,
  async search({ skip, k, picture, ...asked }) {
    const place = new URLSearchParams({ skip, k });
    const answer = await askWith(`/api/search?${written(asked)}&${place}`, picture);
    const number = skip + answer.matches.length;
    concept = answer.concept ?? null;
    const order = answer.order === 'newest' ? 'newest first' : 'most similar first';
    const some = number ? `${count(number, 'image', 'images')}, ${order}` : 'Nothing was found.';
    const found = concept ? said(concept) : some;
    const rest = answer.is_exact ? '' : '. The search is approximate and may miss a few images';
    return { ...answer, said: found + rest };
  },
  // Browsers may show a cached image for a known URL. Files change, so each search has separate URLs.
  address: (one, size, question) => `/images/${one.id}/${size}?${question}`,
  original: (one, question) => `/originals/${one.id}?${question}`,
  video: (one, question) => one.time !== undefined && `/originals/${one.id}?${question}#t=${one.time}`,
  async explain(one, { picture, ...asked }) {
    if (!about?.explains) return null;
    return askWith(`/api/explain/${one.id}?${written(asked)}`, picture).catch(() => null);
  },
  under: (one) => under(one, concept, judged),
  idle() {
    isStart = true;
    keep.hidden = true;
    document.title = NAME;
    showStart();
    return 'Describe images in words, or choose an example image.';
  },
  asked(query) {
    isStart = false;
    keep.hidden = !query.text || query.text.includes('@"') || query.like !== null || Boolean(query.picture);
    const named = [query.text, ...query.where.map(condition), ...several(query.not).map((one) => `not ${one}`)];
    document.title = [named.filter(Boolean).join(', ') || (query.picture || query.like !== null ? 'Similar images' : ''), NAME].filter(Boolean).join(' – ');
    if (!isGoingBack) go(written(query), query.picture);
  },
  async shown(answer) {
    isPlaced = true;
    if (answer.version) version = answer.version;
    await tell();
  },
});

const tellConcept = (query) =>
  ask(`/api/concepts?${new URLSearchParams(query)}`, { method: 'POST', headers: { 'Content-Type': 'application/json' } });

// Adds an image to a concept, and repeats the search with the changed concept.
async function judged(query, id) {
  try {
    await tellConcept(query);
  } catch (error) {
    page.say(error.message, true);
    return;
  }
  await page.search({ scroll: scrollY, size: page.size });
  document.getElementById(id)?.focus({ preventScroll: true });
}

async function keepConcept() {
  try {
    const { name } = await tellConcept({ name: find('text').value.trim() });
    find('text').value = quoted(name);
    await page.search();
  } catch (error) {
    page.say(error.message, true);
  }
}

// Each search has a URL, which the user can reload, share, and reach through the history.
function go(query, picture = null) {
  const address = query.size ? `/?${query}` : '/';
  const place = picture ? pictures.indexOf(picture) : -1;
  const state = picture ? { picture: place < 0 ? pictures.push(picture) - 1 : place } : null;
  if (address === location.pathname + location.search && history.state?.picture === state?.picture) return;
  keepPlace();
  history.pushState(state, '', address);
  isPlaced = false;
}

function keepPlace() {
  clearTimeout(leaving);
  if (isPlaced && page.size) history.replaceState({ ...history.state, scroll: scrollY, size: page.size }, '');
}

function restore() {
  clearTimeout(leaving);
  isGoingBack = true;
  const query = new URLSearchParams(location.search);
  const own = history.state?.picture;
  const picture = pictures[own] ?? null;
  const { scroll, size } = history.state ?? {};
  isPlaced = false;
  if (query.has('duplicates')) showDuplicates(query, scroll);
  else page.ask({ ...read(query), picture }, { scroll, size });
  if (own !== undefined && !picture) page.say('The page no longer has the example image; choose the image again.');
  isGoingBack = false;
}

function duplicates() {
  const query = new URLSearchParams({ duplicates: '1' });
  go(query);
  showDuplicates(query);
}

// Returns the form with the similarity threshold of duplicates.
function similarTo(threshold) {
  const form = make('form', 'line');
  const label = make('label', 'choice', 'Minimum similarity ');
  const field = Object.assign(make('input', ''), { type: 'number', min: 0.5, max: 1, step: 'any', value: threshold, id: 'threshold', required: true });
  label.append(field);
  form.append(label, Object.assign(make('button', '', 'Find'), { type: 'submit' }));
  form.addEventListener('submit', (event) => {
    event.preventDefault();
    const query = new URLSearchParams({ duplicates: '1', threshold: field.value });
    go(query);
    showDuplicates(query);
  });
  return form;
}

function turn(text, query, skip) {
  const link = make('a', '', text);
  const other = new URLSearchParams(query);
  other.set('skip', skip);
  link.href = `/?${other}`;
  return link;
}

function showDuplicates(query, scroll = 0) {
  isStart = false;
  document.title = `Duplicates – ${NAME}`;
  find('chips').replaceChildren();
  page.show(
    () => ask(`/api/duplicates?${query}`),
    ({ groups, sizes, skip, threshold, num_groups: number }) => {
      find('results').append(similarTo(threshold));
      groups.forEach((group, place) => {
        const rest = group.length < sizes[place] ? ` (${group.length} shown)` : '';
        find('results').append(make('h2', '', `${count(sizes[place], 'image', 'images')}${rest}`));
        page.list(
          group.map((one, other) => [
            one,
            other ? `similarity ${one.score.toFixed(3)}` : 'best copy',
            !other,
            `${facts(one)} · ${one.path.slice(0, one.path.lastIndexOf('/'))}`,
          ]),
        );
      });
      const pages = make('nav', 'line');
      pages.setAttribute('aria-label', 'more groups');
      if (skip) pages.append(turn('Previous groups', query, Math.max(0, skip - GROUPS)));
      if (skip + groups.length < number) pages.append(turn('Next groups', query, skip + GROUPS));
      if (pages.childElementCount) find('results').append(pages);
      if (!number) return 'The collection has no near duplicates with this similarity.';
      const shown = groups.length < number ? ` Groups ${skip + 1} to ${skip + groups.length} are shown.` : '';
      return `${count(number, 'group', 'groups')} of similar images. Nothing was deleted.${shown}`;
    },
    () => scrollTo(0, scroll),
  );
}

// Shows the start page: an overview of the index, tags, concepts, and example images.
async function showStart() {
  if (!isStart || !about?.num_images || find('results').childElementCount) return;
  const start = make('section', 'start');
  const facts = `${count(about.num_images, 'image', 'images')}, searched with the model ${about.model}.`;
  start.append(make('h2', '', 'This collection'), make('p', '', `${facts} ${about.limits}`));
  const tags = links('Tags', about.tags, (tag) => ({ where: `tag=${tag}` }));
  start.append(...tags, ...links('Concepts', about.concepts, (name) => ({ text: quoted(name) })));
  if (about.num_unreadable) start.append(unreadable());
  start.append(make('h2', '', 'Example images'));
  find('results').append(start);
  const { examples } = await ask('/api/examples').catch(() => ({ examples: [] }));
  if (isStart && start.isConnected) page.list(examples.map((one) => [one, '']));
}

// Returns the list of unreadable files, which is loaded when the user opens the list.
function unreadable() {
  const details = make('details', '');
  details.append(make('summary', '', `${count(about.num_unreadable, 'file', 'files')} cannot be read`));
  details.addEventListener('toggle', async () => {
    if (details.childElementCount > 1) return;
    const { files } = await ask('/api/unreadable').catch(() => ({ files: [] }));
    details.append(...files.map(([path, why]) => make('p', '', `${path}: ${why}`)));
  });
  return details;
}

// Updates the overview in the footer, and tells the user if the index has changed since the last search.
async function tell() {
  const seen = version;
  try {
    about = await ask('/api/collection');
    const unreadable = about.num_unreadable ? `, ${count(about.num_unreadable, 'file', 'files')} cannot be read` : '';
    find('about').textContent = `${count(about.num_images, 'image', 'images')} in ${about.index}${unreadable}`;
    if (seen !== version) return;
    if (!about.num_images) page.notify('The index is empty: add images with mobileclip index.');
    else if (!isStart && page.size && about.version !== version)
      page.notify('The index has changed; search again to see the changes.');
    else page.notify('');
    showStart();
  } catch (error) {
    page.notify(error.message, true);
  }
}

function addButton(id, text, press) {
  const button = make('button', '', text);
  [button.id, button.type] = [id, 'button'];
  button.addEventListener('click', press);
  find('choose').after(button);
  return button;
}

startFilters(async () => (await ask('/api/columns').catch(() => ({ columns: [] }))).columns);
document.addEventListener('dragover', (event) => event.preventDefault());
document.addEventListener('drop', (event) => {
  event.preventDefault();
  page.chooseFile(event.dataTransfer.files[0]);
});
document.addEventListener('paste', (event) => page.chooseFile(event.clipboardData.files[0]));
document.addEventListener('visibilitychange', () => {
  if (!document.hidden) tell();
});
setInterval(() => {
  if (!document.hidden) tell();
}, 10_000);
// The page stores the scroll position, and restores the position when the user goes back.
history.scrollRestoration = 'manual';
addEventListener('scroll', () => {
  clearTimeout(leaving);
  leaving = setTimeout(keepPlace, 100); // browsers limit the rate of history updates
});
addEventListener('popstate', restore);
restore();
tell();
// On a phone, focus would open the keyboard.
if (matchMedia('(min-width: 601px)').matches) find('text').focus();
