// Concepts of the user, taught by accepted and rejected images, and tags below the images.

import { count, find, make } from '/search.js';
import { joined, split } from '/filters.js';

const SAID = [
  ['yes', '✓', 'shows'],
  ['no', '✗', 'does not show'],
];

/** Returns a concept's name as written in a query. */
export const quoted = (name) => `@"${name}"`;

/** Returns the status text for a search for a single concept. */
export function said({ name, yes, no, uses_examples: used }) {
  const taught = `${count(yes.length, 'image shows', 'images show')} “${name}”, ${no.length} do not`;
  return `${taught}; search uses ${used ? 'these examples' : 'only the text'}. Accept or reject more images below`;
}

function judge({ name, yes, no }, one, judged) {
  const known = { yes: yes.includes(one.id), no: no.includes(one.id) };
  return SAID.map(([kind, sign, meaning]) => {
    const button = make('button', 'judge', sign);
    button.type = 'button';
    button.id = `${kind}-${one.id}`;
    button.setAttribute('aria-label', `${one.file} ${meaning} ${name}`);
    button.setAttribute('aria-pressed', String(known[kind]));
    button.addEventListener('click', () => judged({ name, [known[kind] ? 'neither' : kind]: one.id }, button.id));
    return button;
  });
}

function tags(words) {
  return words.map((word) => {
    const button = make('button', 'tag', word);
    button.type = 'button';
    button.setAttribute('aria-label', `only images with the tag ${word}`);
    button.title = word;
    button.addEventListener('click', () => {
      find('where').value = joined([...new Set([...split(find('where').value), `tag=${word}`])]);
      find('conditions').open = true;
      find('ask').requestSubmit();
    });
    return button;
  });
}

/**
 * Returns the elements below an image of the results.
 * @param {object} one match of the image.
 * @param {?object} concept concept that the user searches for; null without a concept.
 * @param {(query: object, id: string) => void} judged receives the user's label and the id of the button.
 */
export function under(one, concept, judged) {
  const parts = [...(concept ? judge(concept, one, judged) : []), ...tags(one.tags ?? [])];
  if (!parts.length) return [];
  const line = make('div', 'under');
  line.append(...parts);
  return [line];
}

/** Returns a heading and one link per name to the query that finds it, for the start page. */
export function links(title, names, query) {
  if (!names.length) return [];
  const line = make('p', '');
  names.forEach((name, place) => {
    const link = make('a', '', name);
    link.href = `/?${new URLSearchParams(query(name))}`;
    line.append(...(place ? [', ', link] : [link]));
  });
  return [make('h2', '', title), line];
}
