// The page of an index. Texts go to the page as texts, never as markup.

const find = (id) => document.getElementById(id);
const results = find('results');
const dialog = find('one');

let picture = null; // a file that is searched with
let like = null; // a picture of the index that is searched with
let shown = []; // the pictures on the page, in their order
let opened = -1;
let asked = 0; // answers that come after a newer question are dropped
let version = null;
let isBroken = false; // the page says that the index, or the server, cannot be asked

const say = (text, isProblem = false) => {
  find('status').textContent = text;
  find('status').classList.toggle('problem', isProblem);
};

const make = (tag, className, text = '') => {
  const element = document.createElement(tag);
  element.className = className;
  element.textContent = text;
  return element;
};

const count = (number, one, many) => `${number.toLocaleString('en')} ${number === 1 ? one : many}`;

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

function facts(one) {
  const size = `${one.width} × ${one.height}, ${Math.ceil(one.size / 1000).toLocaleString('en')} kB`;
  const place = one.latitude === undefined ? '' : `${one.latitude.toFixed(4)}, ${one.longitude?.toFixed(4)}`;
  return [size, one.taken, one.camera, place].filter(Boolean).join(' · ');
}

// Browsers show an address again without asking: every question has addresses of its own, since files change.
const addressOf = (one, size) => `/pictures/${one.id}/${size}?${asked}`;

function tile(one, label, isBest) {
  const item = document.createElement('li');
  const button = make('button', 'tile');
  button.type = 'button';
  button.title = one.name;
  const frame = make('span', 'frame');
  const image = new Image();
  image.loading = 'lazy';
  image.alt = '';
  image.addEventListener('error', () => frame.replaceChildren(make('span', 'gone', 'cannot be read any more')));
  image.src = addressOf(one, 'small');
  frame.append(image);
  button.append(frame, make('span', isBest ? 'score keep' : 'score', label), make('span', 'path', one.file));
  const place = shown.push(one) - 1;
  button.addEventListener('click', () => open(place));
  item.append(button);
  return item;
}

const tiles = () => [...results.querySelectorAll('.tile')];

function clear() {
  shown = [];
  results.replaceChildren();
}

function list(cells) {
  const element = document.createElement('ul');
  element.append(...cells);
  results.append(element);
}

// Shows what a question finds, unless another one was asked meanwhile.
async function show(question, draw) {
  const mine = ++asked;
  say('…');
  try {
    const answer = await question();
    if (mine !== asked) return;
    clear();
    version = answer.version;
    say(draw(answer));
    await tell();
  } catch (error) {
    if (mine !== asked) return;
    clear();
    say(error.message, true);
  }
}

// Conditions stand apart by spaces; quotation marks hold one together.
const conditions = (text) => (text.match(/(?:"[^"]*"|[^\s"])+/g) ?? []).map((one) => one.replaceAll('"', ''));

function search() {
  const query = new URLSearchParams();
  const text = find('text').value.trim();
  if (text) query.set('text', text);
  if (like !== null) query.set('like', like);
  if (find('not').value.trim()) query.set('not', find('not').value.trim());
  for (const one of conditions(find('where').value)) query.append('where', one);
  if (find('frames').checked) query.set('frames', 'all');
  if (!text && like === null && picture === null) {
    say('Say what the pictures show, or choose a picture.');
    return;
  }
  const options = picture && { method: 'POST', body: picture, headers: { 'Content-Type': 'application/octet-stream' } };
  show(
    () => ask(`/api/search?${query}`, options ?? {}),
    ({ matches }) => {
      list(matches.map((one) => tile(one, one.score.toFixed(3), false)));
      return matches.length ? `${count(matches.length, 'picture', 'pictures')}, the most similar first` : 'Nothing was found.';
    },
  );
}

function duplicates() {
  show(
    () => ask('/api/duplicates'),
    ({ groups, num_groups: number }) => {
      for (const group of groups) {
        results.append(make('h2', '', count(group.length, 'picture', 'pictures')));
        list(group.map((one, place) => tile(one, place ? `similarity ${one.score.toFixed(3)}` : 'best copy', !place)));
      }
      if (!number) return 'No two pictures show the same.';
      const rest = groups.length < number ? ` The first ${groups.length} are shown.` : '';
      return `${count(number, 'group', 'groups')} of pictures that show the same. Nothing was deleted.${rest}`;
    },
  );
}

function choose(file, number, name) {
  picture = file;
  like = number;
  find('like').hidden = file === null && number === null;
  find('like-name').textContent = `like ${name}`;
}

function chooseFile(file) {
  if (!file) return;
  choose(file, null, file.name);
  search();
}

// A video stands in the place of its frame as soon as the browser knows that it can play it.
function showVideo(one) {
  const video = find('one-video');
  video.hidden = true;
  if (one?.time === undefined) video.removeAttribute('src');
  else video.src = `/videos/${one.id}?${asked}#t=${one.time}`;
  video.load();
}

function open(place) {
  opened = place;
  const one = shown[place];
  find('one-gone').hidden = true;
  find('one-picture').hidden = false;
  find('one-picture').src = addressOf(one, 'large');
  showVideo(one);
  find('one-name').textContent = one.name;
  find('one-facts').textContent = facts(one);
  if (dialog.open) return;
  dialog.showModal();
  find('similar').focus();
}

// Where the arrow keys lead from one picture: to the next, or to the nearest of the row above or below.
function neighbour(all, place, key) {
  if (key === 'ArrowRight') return place + 1;
  if (key === 'ArrowLeft') return place - 1;
  const box = all[place].getBoundingClientRect();
  const sign = key === 'ArrowDown' ? 1 : -1;
  const distance = (other) => {
    const at = other.getBoundingClientRect();
    const down = sign * (at.top - box.top);
    return down < 1 ? Infinity : down * 1e4 + Math.abs(at.left - box.left);
  };
  const distances = all.map(distance);
  const nearest = Math.min(...distances);
  return nearest === Infinity ? place : distances.indexOf(nearest);
}

function move(event) {
  const all = tiles();
  if (!all.length) return;
  if (dialog.open) {
    const step = event.target.matches('video') ? undefined : { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (step && shown[opened + step]) open(opened + step);
    return;
  }
  const place = all.indexOf(document.activeElement);
  const inField = document.activeElement?.matches('input');
  if (inField && event.key !== 'ArrowDown') return;
  event.preventDefault();
  const next = place < 0 ? 0 : neighbour(all, place, event.key);
  all[next]?.focus();
  all[next]?.scrollIntoView({ block: 'nearest' });
}

document.addEventListener('keydown', (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key.startsWith('Arrow')) move(event);
  if (event.key === '/' && !dialog.open && !document.activeElement?.matches('input')) {
    event.preventDefault();
    find('text').focus();
    find('text').select();
  }
});

// Says what the index holds, and that it has changed since the last answer.
async function tell() {
  try {
    const about = await ask('/api/collection');
    const unreadable = about.num_unreadable ? `, ${count(about.num_unreadable, 'file', 'files')} cannot be read` : '';
    find('about').textContent = `${count(about.num_pictures, 'picture', 'pictures')} in ${about.index}${unreadable}`;
    if (!about.num_pictures) say('The index is empty: add pictures with mobileclip index.');
    else if (shown.length && about.version !== version) say('The index has changed: search again to see what is new.');
    else if (isBroken) say('');
    isBroken = false;
  } catch (error) {
    isBroken = true;
    say(error.message, true);
  }
}

find('search').addEventListener('submit', (event) => {
  event.preventDefault();
  search();
});
find('duplicates').addEventListener('click', duplicates);
find('choose').addEventListener('click', () => find('picture').click());
find('picture').addEventListener('change', () => {
  chooseFile(find('picture').files[0]);
  find('picture').value = '';
});
find('frames').addEventListener('change', () => {
  if (shown.length) search();
});
find('unlike').addEventListener('click', () => {
  choose(null, null, '');
  search();
});
find('close').addEventListener('click', () => dialog.close());
dialog.addEventListener('close', () => {
  showVideo(null);
  tiles()[opened]?.focus();
});
find('one-video').addEventListener('loadedmetadata', () => {
  const video = find('one-video');
  if (!video.videoWidth) return; // its sound alone can be played
  video.hidden = false;
  find('one-picture').hidden = true;
});
find('one-picture').addEventListener('error', () => {
  find('one-picture').hidden = true;
  find('one-gone').hidden = false;
});
find('similar').addEventListener('click', () => {
  const one = shown[opened];
  dialog.close();
  find('text').value = '';
  choose(null, one.id, one.name);
  search();
});
document.addEventListener('dragover', (event) => event.preventDefault());
document.addEventListener('drop', (event) => {
  event.preventDefault();
  chooseFile(event.dataTransfer.files[0]);
});
document.addEventListener('paste', (event) => {
  if (event.clipboardData.files.length) chooseFile(event.clipboardData.files[0]);
});
document.addEventListener('visibilitychange', () => {
  if (!document.hidden) tell();
});
setInterval(() => {
  if (!document.hidden) tell();
}, 10_000);
tell();
// On a phone this would open the keyboard.
if (matchMedia('(min-width: 601px)').matches) find('text').focus();
