// A search as the query of an address, and back: the page's own, which can be shared, and that of its server.

import { several } from '/filters.js';

/** Returns what is asked for as a query; a picture of one's own is not in it. */
export function written({ text, not, where, allFrames, like }) {
  const query = new URLSearchParams();
  if (text) query.set('text', text);
  if (like !== null) query.set('like', like);
  for (const one of several(not)) query.append('not', one);
  for (const one of where) query.append('where', one);
  if (allFrames) query.set('frames', 'all');
  return query;
}

/** Returns what a query asks for. */
export function read(query) {
  return {
    text: query.get('text') ?? '',
    like: query.has('like') ? Number(query.get('like')) : null,
    not: query.getAll('not').join(', '),
    where: query.getAll('where'),
    allFrames: query.get('frames') === 'all',
  };
}
