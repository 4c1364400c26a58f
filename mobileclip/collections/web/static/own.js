// What is a person's own: concepts, which learn from what is accepted and rejected, and tags under the pictures.

import { count, find, make } from '/search.js';
import { joined, split } from '/filters.js';

const SAID = [
  ['yes', '✓', 'shows'],
  ['no', '✗', 'does not show'],
];

/** A concept as a query names it. */
export const quoted = (name) => `@"${name}"`;

/** What the page says of a concept that is asked for alone. */
export function said({ name, yes, no, uses_examples: used }) {
  const taught = `${count(yes.length, 'picture shows', 'pictures show')} “${name}”, ${no.length} do not`;
  return `${taught}; search uses ${used ? 'these examples' : 'only the text'}. Accept or reject more pictures below`;
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
    button.setAttribute('aria-label', `only pictures with the tag ${word}`);
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
 * Returns what stands under a picture that was found.
 * @param {object} one the picture.
 * @param {?object} concept that is asked for.
 * @param {(query: object, id: string) => void} judged told of what is said of it, and by which button.
 */
export function under(one, concept, judged) {
  const parts = [...(concept ? judge(concept, one, judged) : []), ...tags(one.tags ?? [])];
  if (!parts.length) return [];
  const line = make('div', 'under');
  line.append(...parts);
  return [line];
}

/** Returns links to what there is by name, each to the query that finds it, for the start page. */
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
