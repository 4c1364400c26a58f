// Converts a search to the query string of a URL, for the page and for the server's API, and back.

import { several } from '/filters.js';

/** Returns a search as a query string, without an uploaded image. */
export function written({ text, not, where, allFrames, like }) {
  const query = new URLSearchParams();
  if (text) query.set('text', text);
  if (like !== null) query.set('like', like);
  for (const one of several(not)) query.append('not', one);
  for (const one of where) query.append('where', one);
  if (allFrames) query.set('frames', 'all');
  return query;
}

/** Returns the search that a query string describes. */
export function read(query) {
  return {
    text: query.get('text') ?? '',
    like: query.has('like') ? Number(query.get('like')) : null,
    not: query.getAll('not').join(', '),
    where: query.getAll('where'),
    allFrames: query.get('frames') === 'all',
  };
}
