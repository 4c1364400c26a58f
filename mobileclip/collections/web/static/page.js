// The page of an index: what its server answers.

import { read, written } from '/address.js';
import { startFilters } from '/filters.js';
import { links, quoted, said, under } from '/own.js';
import { count, find, make, Search } from '/search.js';

const TEXTS = ['a red bicycle', 'people at a table', 'a dog on grass'];

let about = null; // what the index holds
let version = null;
let isBroken = false; // the page says that the index, or the server, cannot be asked
let isStart = false; // nothing is asked for
let isGoingBack = false; // what is asked for comes from the address
let concept = null; // that is asked for alone
const pictures = []; // of one's own, which were searched with: addresses name them by their place

async function ask(address, options) {
  let answer;
  try {
    answer = await fetch(address, options);
  } catch {
    throw new Error('the server does not answer; is mobileclip serve still running?');
  }
  const value = await answer.json().catch(() => ({ error: `the server answers ${answer.status}` }));
  if (!answer.ok) throw new Error(value.error);
  return value;
}

// A picture of one's own is sent; all else stands in the address.
const askWith = (address, picture) =>
  ask(address, picture ? { method: 'POST', body: picture, headers: { 'Content-Type': 'application/octet-stream' } } : {});

const keep = addButton('keep', 'Keep as a concept', keepConcept);
addButton('duplicates', 'Duplicates', duplicates);
keep.hidden = true;

const page = new Search({
  async search({ skip, k, picture, ...asked }) {
    const place = new URLSearchParams({ skip, k });
    const answer = await askWith(`/api/search?${written(asked)}&${place}`, picture);
    const number = skip + answer.matches.length;
    concept = answer.concept ?? null;
    const some = number ? `${count(number, 'picture', 'pictures')}, the most similar first` : 'Nothing was found.';
    const found = concept ? said(concept) : some;
    const rest = answer.is_exact ? '' : '. A graph proposed them: it may have missed a few';
    return { ...answer, said: found + rest };
  },
  // Browsers show an address again without asking: every question has addresses of its own, since files change.
  address: (one, size, question) => `/pictures/${one.id}/${size}?${question}`,
  video: (one, question) => one.time !== undefined && `/videos/${one.id}?${question}#t=${one.time}`,
  async explain(one, { picture, ...asked }) {
    if (!about?.explains) return null;
    return askWith(`/api/explain/${one.id}?${written(asked)}`, picture).catch(() => null);
  },
  under: (one) => under(one, concept, judged),
  idle() {
    isStart = true;
    keep.hidden = true;
    showStart();
    return 'Say what the pictures show, or choose a picture.';
  },
  asked(query) {
    isStart = false;
    keep.hidden = !query.text || query.text.includes('@"') || query.like !== null || Boolean(query.picture);
    if (!isGoingBack) go(written(query), query.picture);
  },
  async shown(answer) {
    if (answer.version) version = answer.version;
    await tell();
  },
});

const tellConcept = (query) =>
  ask(`/api/concepts?${new URLSearchParams(query)}`, { method: 'POST', headers: { 'Content-Type': 'application/json' } });

// What is said of a picture, and the same search with what was learned.
async function judged(query, id) {
  try {
    await tellConcept(query);
  } catch (error) {
    page.say(error.message, true);
    return;
  }
  await page.search();
  document.getElementById(id)?.focus();
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

// Every search is an address: it can be gone back to, reloaded and shared.
function go(query, picture = null) {
  const address = query.size ? `/?${query}` : '/';
  const place = picture ? pictures.indexOf(picture) : -1;
  const state = picture ? { picture: place < 0 ? pictures.push(picture) - 1 : place } : null;
  if (address === location.pathname + location.search && history.state?.picture === state?.picture) return;
  history.pushState(state, '', address);
}

function restore() {
  isGoingBack = true;
  const query = new URLSearchParams(location.search);
  const own = history.state?.picture;
  const picture = pictures[own] ?? null;
  if (query.has('duplicates')) showDuplicates();
  else page.ask({ ...read(query), picture });
  if (own !== undefined && !picture) page.say('The picture that was searched with is gone: choose it again.');
  isGoingBack = false;
}

function duplicates() {
  go(new URLSearchParams({ duplicates: '1' }));
  showDuplicates();
}

function showDuplicates() {
  isStart = false;
  page.show(
    () => ask('/api/duplicates'),
    ({ groups, num_groups: number }) => {
      for (const group of groups) {
        find('results').append(make('h2', '', count(group.length, 'picture', 'pictures')));
        page.list(group.map((one, place) => [one, place ? `similarity ${one.score.toFixed(3)}` : 'best copy', !place]));
      }
      if (!number) return 'No two pictures show the same.';
      const rest = groups.length < number ? ` The first ${groups.length} are shown.` : '';
      return `${count(number, 'group', 'groups')} of pictures that show the same. Nothing was deleted.${rest}`;
    },
  );
}

// What the index holds, texts to try, and some of its pictures, where nothing is asked for.
async function showStart() {
  if (!isStart || !about?.num_pictures || find('results').childElementCount) return;
  const start = make('section', 'start');
  const facts = `${count(about.num_pictures, 'picture', 'pictures')}, embedded by ${about.model} in ${about.dim} numbers each`;
  const texts = make('p', '', 'For instance: ');
  TEXTS.forEach((text, place) => {
    const link = make('a', '', text);
    link.href = `/?${new URLSearchParams({ text })}`;
    texts.append(...(place ? [', ', link] : [link]));
  });
  start.append(make('h2', '', 'This collection'), make('p', '', facts), texts, ...links(about.concepts));
  start.append(make('h2', '', 'Some of its pictures'));
  find('results').append(start);
  const { examples } = await ask('/api/examples').catch(() => ({ examples: [] }));
  if (isStart && start.isConnected) page.list(examples.map((one) => [one, '']));
}

// Says what the index holds, and that it has changed since the last answer.
async function tell() {
  try {
    about = await ask('/api/collection');
    const unreadable = about.num_unreadable ? `, ${count(about.num_unreadable, 'file', 'files')} cannot be read` : '';
    find('about').textContent = `${count(about.num_pictures, 'picture', 'pictures')} in ${about.index}${unreadable}`;
    if (!about.num_pictures) page.say('The index is empty: add pictures with mobileclip index.');
    else if (!isStart && page.size && about.version !== version)
      page.say('The index has changed: search again to see what is new.');
    else if (isBroken) page.say('');
    isBroken = false;
    showStart();
  } catch (error) {
    isBroken = true;
    page.say(error.message, true);
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
addEventListener('popstate', restore);
restore();
tell();
// On a phone this would open the keyboard.
if (matchMedia('(min-width: 601px)').matches) find('text').focus();
