/** What the web demo answers to queries about the pictures of a file: names and scores, or what is wrong. */

import { readIndexed } from "../../../examples/web/src/indexed.js";
import { direction, rank, unit } from "../../../examples/web/src/ranking.js";

export async function answers(file, queries) {
  const { pictures } = await readIndexed(new File([file], "pictures.safetensors"));
  return queries.map(({ wanted, like, unwanted, ...options }) => {
    try {
      const known = like.map((place) => unit(pictures[place].embedding));
      const ranked = rank(pictures, direction([...wanted, ...known], unwanted), options);
      return ranked.map(({ picture, score }) => [picture.path, score]);
    } catch (error) {
      return `${error.name}: ${error.message}`;
    }
  });
}
