// Encode pictures and texts with transformers.js, from what standard input says, to JSON on standard output.
import { readFileSync } from "node:fs";

import {
  AutoProcessor,
  AutoTokenizer,
  CLIPTextModelWithProjection,
  CLIPVisionModelWithProjection,
  RawImage,
} from "@huggingface/transformers";

const { folder, dtype, pictures, texts } = JSON.parse(readFileSync(0, "utf8"));
const options = { local_files_only: true, dtype };
const tokenizer = await AutoTokenizer.from_pretrained(folder, options);
const processor = await AutoProcessor.from_pretrained(folder, options);
const textModel = await CLIPTextModelWithProjection.from_pretrained(folder, options);
const visionModel = await CLIPVisionModelWithProjection.from_pretrained(folder, options);

const tokens = tokenizer(texts, { padding: "max_length", truncation: true });
const { text_embeds: textEmbeddings } = await textModel(tokens);
const images = await Promise.all(pictures.map((path) => RawImage.read(path)));
const { image_embeds: imageEmbeddings } = await visionModel(await processor(images));

const answer = {
  ids: tokens.input_ids.tolist().map((row) => row.map(Number)),
  texts: textEmbeddings.tolist(),
  images: imageEmbeddings.tolist(),
};
process.stdout.write(JSON.stringify(answer));
