// The page of an index: what its server answers.

import { count, find, make, Search } from '/search.js';

let version = null;
let isBroken = false; // the page says that the index, or the server, cannot be asked

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

const page = new Search({
  async search({ text, picture, like, not, where, allFrames, k }) {
    const query = new URLSearchParams({ k });
    if (text) query.set('text', text);
    if (like !== null) query.set('like', like);
    if (not) query.set('not', not);
    for (const one of where) query.append('where', one);
    if (allFrames) query.set('frames', 'all');
    const options = picture && { method: 'POST', body: picture, headers: { 'Content-Type': 'application/octet-stream' } };
    const answer = await ask(`/api/search?${query}`, options ?? {});
    const number = answer.matches.length;
    const said = number ? `${count(number, 'picture', 'pictures')}, the most similar first` : 'Nothing was found.';
    return { ...answer, said };
  },
  // Browsers show an address again without asking: every question has addresses of its own, since files change.
  address: (one, size, question) => `/pictures/${one.id}/${size}?${question}`,
  video: (one, question) => one.time !== undefined && `/videos/${one.id}?${question}#t=${one.time}`,
  idle: () => 'Say what the pictures show, or choose a picture.',
  async shown(answer) {
    version = answer.version;
    await tell();
  },
});

function duplicates() {
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

// Says what the index holds, and that it has changed since the last answer.
async function tell() {
  try {
    const about = await ask('/api/collection');
    const unreadable = about.num_unreadable ? `, ${count(about.num_unreadable, 'file', 'files')} cannot be read` : '';
    find('about').textContent = `${count(about.num_pictures, 'picture', 'pictures')} in ${about.index}${unreadable}`;
    if (!about.num_pictures) page.say('The index is empty: add pictures with mobileclip index.');
    else if (page.size && about.version !== version) page.say('The index has changed: search again to see what is new.');
    else if (isBroken) page.say('');
    isBroken = false;
  } catch (error) {
    isBroken = true;
    page.say(error.message, true);
  }
}

const button = make('button', '', 'Duplicates');
button.id = 'duplicates';
button.type = 'button';
button.addEventListener('click', duplicates);
find('choose').after(button);
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
tell();
// On a phone this would open the keyboard.
if (matchMedia('(min-width: 601px)').matches) find('text').focus();
