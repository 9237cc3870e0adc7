// openai (npm): zodResponseFormat.
import { readFileSync } from "node:fs";
import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";

const { CLIENT_URL, CLIENT_MODEL, CLIENT_IMAGE, CLIENT_FIELDS } = process.env;
const type = CLIENT_IMAGE.endsWith(".png") ? "image/png" : "image/jpeg";
const url = `data:${type};base64,${readFileSync(CLIENT_IMAGE).toString("base64")}`;
const Receipt = z.object(Object.fromEntries(CLIENT_FIELDS.split(",").map((name) => [name, z.string()])));
const client = new OpenAI({ baseURL: CLIENT_URL, apiKey: "none" });
const content = [{ type: "text", text: "Read this receipt." }, { type: "image_url", image_url: { url } }];
const answer = await client.chat.completions.parse({
  model: CLIENT_MODEL,
  messages: [{ role: "user", content }],
  response_format: zodResponseFormat(Receipt, "receipt"),
});
console.log(JSON.stringify(answer.choices[0].message.parsed));
