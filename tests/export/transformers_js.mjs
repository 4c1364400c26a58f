// Encode pictures and texts with transformers.js, in a browser or in Node.
import {
  AutoProcessor,
  AutoTokenizer,
  CLIPTextModelWithProjection,
  CLIPVisionModelWithProjection,
  RawImage,
} from "@huggingface/transformers";

/** Returns ids and embeddings, in lists. */
export async function encode({ folder, dtype, device, pictures, texts }) {
  const options = { local_files_only: true, dtype, device };
  const tokenizer = await AutoTokenizer.from_pretrained(folder, options);
  const processor = await AutoProcessor.from_pretrained(folder, options);
  const textModel = await CLIPTextModelWithProjection.from_pretrained(folder, options);
  const visionModel = await CLIPVisionModelWithProjection.from_pretrained(folder, options);
  const tokens = tokenizer(texts, { padding: "max_length", truncation: true });
  const { text_embeds: textEmbeddings } = await textModel(tokens);
  const images = await Promise.all(pictures.map((path) => RawImage.read(path)));
  const { image_embeds: imageEmbeddings } = await visionModel(await processor(images));
  return {
    ids: tokens.input_ids.tolist().map((row) => row.map(Number)),
    texts: textEmbeddings.tolist(),
    images: imageEmbeddings.tolist(),
  };
}
