// ai (npm) with @ai-sdk/openai-compatible: its default (json_object) and structured outputs.
import { readFileSync } from "node:fs";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, Output } from "ai";
import { z } from "zod";

const { CLIENT_URL, CLIENT_MODEL, CLIENT_IMAGE, CLIENT_FIELDS } = process.env;
const mediaType = CLIENT_IMAGE.endsWith(".png") ? "image/png" : "image/jpeg";
const schema = z.object(Object.fromEntries(CLIENT_FIELDS.split(",").map((name) => [name, z.string()])));
const content = [
  { type: "text", text: "Read this receipt." },
  { type: "file", data: readFileSync(CLIENT_IMAGE), mediaType },
];
const read = [];
for (const supportsStructuredOutputs of [false, true]) {
  const provider = createOpenAICompatible({ name: "tailor", baseURL: CLIENT_URL, supportsStructuredOutputs });
  const result = await generateText({
    model: provider(CLIENT_MODEL),
    output: Output.object({ schema }),
    messages: [{ role: "user", content }],
  });
  read.push(JSON.stringify(result.output));
}
if (read[0] !== read[1]) throw new Error(read.join(" is not "));
console.log(read[0]);
