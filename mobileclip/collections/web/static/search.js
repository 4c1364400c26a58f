// The image search: query, conditions, grid of results, and a view of one image. `mobileclip serve` and the page of
// examples/web share this code, with different sources of answers. All texts become text nodes, never markup.

import { condition, joined, several, split } from './filters.js';
import { lay, lift, watch } from './explain.js';

const PAGE = 60;
const TILES = '.tile';

export const find = (id) => document.getElementById(id);

export const make = (tag, className, text = '') => {
  const element = document.createElement(tag);
  element.className = className;
  element.textContent = text;
  return element;
};

export const count = (number, one, many) => `${number.toLocaleString('en')} ${number === 1 ? one : many}`;

/** Returns a number of bytes in kB or MB. */
const inBytes = (size) => (size < 1e6 ? `${Math.ceil(size / 1000)} kB` : `${(size / 1e6).toFixed(1)} MB`);

export function facts({ width, height, size, taken, camera, latitude, longitude }) {
  const pixels = width && `${width} × ${height}`;
  const bytes = size && inBytes(size);
  const place = latitude === undefined ? '' : `${latitude.toFixed(4)}, ${longitude?.toFixed(4)}`;
  return [[pixels, bytes].filter(Boolean).join(', '), taken, camera, place].filter(Boolean).join(' · ');
}

// Returns the index of the image that an arrow key selects: next, previous, or nearest in the row above or below.
export function neighbour(all, place, key) {
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

export class Search {
  #source;
  #picture = null; // uploaded image of the query
  #like = null; // id of the indexed image of the query
  #shown = []; // matches on the page, in order
  #opened = -1;
  #asked = 0; // number of searches; an answer to an earlier search is dropped
  #query = null; // query of the matches on the page
  #found = 0; // number of matches so far, including repeated matches
  #isAdding = false;
  #isAsking = false; // whether a search is running
  #said = ['', false]; // status text of the last search, and whether it is an error
  #notice = ['', false]; // notice that replaces the status text, and whether it is an error

  /**
   * Starts the search.
   * @param {object} source source of the answers. `search(query)` returns `k` matches after the first `skip`, best
   *   first, and the status text. `address(match, size)` returns the URL of a `small` or `large` image. Optional:
   *   `original(match)` returns the URL of the file, `video(match)` the URL of a frame's video, `explain(match, query)`
   *   the map of the score or null, and `under(match)` the elements below an image. `idle()` returns the status text
   *   without a search. Optional callbacks `asked(query)` and `shown(answer)` receive each query and answer. `browses`
   *   states whether conditions work without a text.
   */
  constructor(source) {
    this.#source = source;
    find('ask').addEventListener('submit', (event) => {
      event.preventDefault();
      this.search();
    });
    find('choose').addEventListener('click', () => find('picture').click());
    find('picture').addEventListener('change', () => {
      this.chooseFile(find('picture').files[0]);
      find('picture').value = '';
    });
    find('frames').addEventListener('change', () => this.#shown.length && this.search());
    find('unlike').addEventListener('click', () => {
      this.#choose(null, null, '');
      this.search();
    });
    find('more').addEventListener('click', () => this.#more());
    // The page loads more images before the user reaches the end.
    const end = new IntersectionObserver((seen) => seen.at(-1).isIntersecting && this.#more(), { rootMargin: '600px' });
    end.observe(find('more'));
    this.#startPicture();
    document.addEventListener('keydown', (event) => this.#press(event));
  }

  /** Number of images on the page. */
  get size() {
    return this.#shown.length;
  }

  /** Shows the status text of a search, and removes any notice. */
  say(text, isProblem = false) {
    this.#said = [text, isProblem];
    this.notify('');
  }

  /** Shows a notice until the next search; an empty text removes the notice. */
  notify(text, isProblem = false) {
    this.#notice = [text, isProblem];
    if (this.#isAsking) return;
    const [shown, isWrong] = text ? this.#notice : this.#said;
    if (find('status').textContent !== shown) find('status').textContent = shown;
    find('status').classList.toggle('problem', isWrong);
  }

  clear() {
    [this.#shown, this.#query, this.#found] = [[], null, 0];
    find('results').replaceChildren();
    find('more').hidden = true;
  }

  /** Searches by an uploaded image. */
  chooseFile(file) {
    if (!file) return;
    if (!find('both').checked) find('text').value = '';
    this.#choose(file, null, file.name);
    this.search();
  }

  /** Fills in all fields from an earlier search, and repeats the search. */
  ask({ text, not, where, allFrames, like, picture }, at) {
    [find('text').value, find('not').value, find('where').value] = [text, not, joined(where)];
    find('frames').checked = allFrames;
    const isLike = like !== null || picture;
    this.#choose(picture, like, picture ? picture.name : `image ${like}`);
    find('both').checked = Boolean(text && isLike);
    return this.search(at);
  }

  /**
   * Searches, and shows the results.
   * @param {object} at scroll position and number of images to show; by default the top and one page.
   */
  async search({ scroll = 0, size = PAGE } = {}) {
    const [text, not] = ['text', 'not'].map((id) => find(id).value.trim());
    // A text replaces the example image, unless the user wants both.
    if (text && !find('both').checked) this.#choose(null, null, '');
    const query = {
      text,
      not,
      where: split(find('where').value),
      allFrames: find('frames').checked,
      picture: this.#picture,
      like: this.#like,
    };
    this.#source.asked?.(query);
    this.#showChips(query);
    const isBrowsed = this.#source.browses && query.where.length > 0;
    if (!text && !isBrowsed && this.#like === null && this.#picture === null) {
      this.#asked++;
      this.#isAsking = false;
      this.clear();
      this.say(this.#source.idle());
      return;
    }
    await this.show(
      () => this.#source.search({ ...query, skip: 0, k: PAGE }),
      ({ matches, said, like: [like] = [] }) => {
        if (like) find('like-name').textContent = `like ${like.file ?? like.name}`;
        this.#query = query;
        this.#add(matches);
        return said;
      },
      async () => {
        while (this.size < size && !find('more').hidden && (await this.#more()));
        scrollTo(0, scroll);
      },
    );
  }

  // Shows each part of the search as a chip with a button that removes the part.
  #showChips({ text, not, where }) {
    const without = (list, place) => list.filter((_, other) => other !== place);
    const chips = [
      ...(text ? [[text, () => { find('text').value = ''; }]] : []),
      ...where.map((one, place) => [condition(one), () => { find('where').value = joined(without(where, place)); }]),
      ...several(not).map((one, place, all) => [`not ${one}`, () => { find('not').value = without(all, place).join(', '); }]),
    ];
    find('chips').replaceChildren(
      ...chips.map(([name, remove]) => {
        const chip = make('span', 'chip');
        const button = make('button', '', '×');
        button.type = 'button';
        button.setAttribute('aria-label', `remove from the search: ${name}`);
        button.addEventListener('click', () => {
          remove();
          find('text').focus({ preventScroll: true });
          this.search();
        });
        chip.append(make('span', '', name), button);
        return chip;
      }),
    );
  }

  #add(matches) {
    const known = new Set(this.#shown.map(({ id }) => id));
    this.#found += matches.length;
    this.list(matches.filter(({ id }) => !known.has(id)).map((one) => [one, one.score?.toFixed(3) ?? one.taken?.slice(0, 10) ?? '']));
    find('more').hidden = matches.length < PAGE;
  }

  /** Loads the next page of images. */
  async #more() {
    if (this.#isAdding || find('more').hidden) return false;
    this.#isAdding = true;
    const mine = this.#asked;
    try {
      const { matches, said } = await this.#source.search({ ...this.#query, skip: this.#found, k: PAGE });
      if (mine !== this.#asked) return false;
      this.#add(matches);
      this.#said = [said, false];
      this.notify(...this.#notice);
      return true;
    } catch (error) {
      if (mine !== this.#asked) return false;
      find('more').hidden = true;
      this.say(error.message, true);
      return false;
    } finally {
      this.#isAdding = false;
    }
  }

  /** Shows the answer, unless a newer search has started; without an answer, the earlier results stay. */
  async show(question, draw, place = () => scrollTo(0, 0)) {
    const mine = ++this.#asked;
    this.say('…');
    this.#isAsking = true;
    try {
      const answer = await question();
      if (mine !== this.#asked) return;
      this.#isAsking = false;
      this.clear();
      this.say(draw(answer));
      await place();
      if (mine === this.#asked) await this.#source.shown?.(answer);
    } catch (error) {
      if (mine !== this.#asked) return;
      this.#isAsking = false;
      if (!error.isUnanswered) this.clear();
      this.say(error.message, true);
      if (error.field === 'where') {
        find('conditions').open = true;
        find('where').focus();
      }
    }
  }

  /** Adds a list of images with their labels. */
  list(cells) {
    const element = document.createElement('ul');
    element.append(...cells.map((cell) => this.#tile(...cell)));
    find('results').append(element);
  }

  #tile(one, label, isBest = false, detail = '') {
    const query = this.#query;
    const item = document.createElement('li');
    const button = make('button', 'tile');
    button.type = 'button';
    button.title = one.name;
    if (query) button.id = `tile-${one.id}`;
    const frame = make('span', 'frame');
    const image = new Image();
    image.loading = 'lazy';
    image.alt = '';
    image.addEventListener('error', () => frame.replaceChildren(make('span', 'gone', 'unreadable file')));
    image.src = this.#address(one, 'small');
    frame.append(image);
    button.append(frame, make('span', isBest ? 'score keep' : 'score', label), make('span', 'path', one.file), ...(detail ? [make('span', 'detail', detail)] : []));
    const place = this.#shown.push(one) - 1;
    button.addEventListener('click', () => this.#open(place));
    if (this.#canExplain) watch(button, frame, image, () => this.#source.explain(one, query));
    item.append(button, ...(query ? (this.#source.under?.(one) ?? []) : []));
    return item;
  }

  get #canExplain() {
    return this.#query !== null && Boolean(this.#source.explain);
  }

  #address(one, size) {
    return this.#source.address(one, size, this.#asked);
  }

  #choose(file, number, name) {
    this.#picture = file;
    this.#like = number;
    find('like').hidden = file === null && number === null;
    find('like-name').textContent = `like ${name}`;
    if (find('like').hidden) find('both').checked = false;
  }

  #startPicture() {
    const dialog = find('one');
    find('close').addEventListener('click', () => dialog.close());
    dialog.addEventListener('click', ({ target }) => target === dialog && dialog.close());
    dialog.addEventListener('close', () => {
      this.#showVideo(null);
      document.querySelectorAll(TILES)[this.#opened]?.focus();
    });
    find('one-video').addEventListener('loadedmetadata', () => {
      const video = find('one-video');
      if (!video.videoWidth) return; // the browser can play only the sound
      video.hidden = false;
      find('one-picture').hidden = true;
    });
    find('one-picture').addEventListener('error', () => {
      find('one-picture').hidden = true;
      find('one-gone').hidden = false;
    });
    find('one-picture').addEventListener('load', () => this.#showWhy());
    find('previous').addEventListener('click', () => this.#step(-1));
    find('next').addEventListener('click', () => this.#step(1));
    find('copy').addEventListener('click', async () => {
      const { path, name } = this.#shown[this.#opened];
      const isCopied = await navigator.clipboard?.writeText(path ?? name).then(() => true, () => false);
      find('copy').textContent = isCopied ? 'Path copied' : 'This browser does not allow copying';
    });
    find('why').addEventListener('click', () => {
      find('why').setAttribute('aria-pressed', String(!this.#wantsWhy));
      this.#showWhy();
    });
    find('similar').addEventListener('click', () => {
      const one = this.#shown[this.#opened];
      dialog.close();
      find('text').value = '';
      find('both').checked = false;
      this.#choose(null, one.id, one.file ?? one.name);
      this.search();
    });
  }

  /** Opens the previous or next image, and loads more images if necessary. */
  async #step(by) {
    const place = this.#opened + by;
    if (place >= this.size) await this.#more();
    if (this.#shown[place] && find('one').open) this.#open(place);
  }

  #open(place) {
    this.#opened = place;
    const one = this.#shown[place];
    find('one-gone').hidden = true;
    find('one-picture').hidden = false;
    find('one-picture').src = this.#address(one, 'large');
    this.#showVideo(one);
    find('one-name').textContent = one.name;
    const score = this.#query && one.score !== undefined && `score ${one.score.toFixed(3)}`;
    const tags = one.tags && `tags: ${one.tags.join(', ')}`;
    find('one-facts').textContent = [facts(one), score, tags].filter(Boolean).join(' · ');
    find('copy').textContent = 'Copy path';
    find('original').href = this.#source.original?.(one, this.#asked) ?? this.#address(one, 'large');
    find('previous').disabled = place === 0;
    find('next').disabled = place === this.size - 1 && find('more').hidden;
    find('why').hidden = !this.#canExplain;
    lift(find('one-picture').parentElement);
    if (find('one').open) return;
    find('one').showModal();
    find('similar').focus();
  }

  get #wantsWhy() {
    return find('why').getAttribute('aria-pressed') === 'true';
  }

  async #showWhy() {
    const [picture, place] = [find('one-picture'), this.#opened];
    lift(picture.parentElement);
    const isShown = this.#wantsWhy && this.#canExplain && find('one').open;
    find('one-why').hidden = !isShown;
    if (!isShown) return;
    const answer = await this.#source.explain(this.#shown[place], this.#query);
    if (!answer || place !== this.#opened || !this.#wantsWhy || picture.hidden) return;
    const strongest = lay(answer, picture.parentElement, picture);
    find('one-scale').textContent = strongest ? `Full colour is a score change of ${strongest.toFixed(4)}.` : '';
  }

  // A video replaces its frame once the browser can play the video.
  #showVideo(one) {
    const video = find('one-video');
    const address = one && this.#source.video?.(one, this.#asked);
    video.hidden = true;
    if (address) video.src = address;
    else video.removeAttribute('src');
    video.load();
  }

  #press(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const isOpen = find('one').open;
    if (event.key.startsWith('Arrow')) this.#move(event, isOpen);
    if (event.key !== '/' || isOpen || document.activeElement?.matches('input, textarea') || !find('text').checkVisibility()) return;
    event.preventDefault();
    find('text').focus();
    find('text').select();
  }

  #move(event, isOpen) {
    const all = [...document.querySelectorAll(TILES)];
    if (!all.length || !find('results').checkVisibility()) return;
    if (isOpen) {
      const step = event.target.matches('video') ? undefined : { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (step) this.#step(step);
      return;
    }
    const active = document.activeElement;
    if (active?.matches('[role=tab]') || (active?.matches('input') && event.key !== 'ArrowDown')) return;
    event.preventDefault();
    const place = all.indexOf(active?.closest('li')?.querySelector(TILES)); // also from the elements below an image
    const next = all[place < 0 ? 0 : neighbour(all, place, event.key)];
    next?.focus();
    next?.scrollIntoView({ block: 'nearest' });
  }
}
