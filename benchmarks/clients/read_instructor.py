"""instructor: its default, which names a tool, and its JSON schema mode."""

import json

import instructor
from common import IMAGE_URL, MODEL, URL, Receipt
from openai import OpenAI

parts = [{"type": "text", "text": "Read this receipt."}, {"type": "image_url", "image_url": {"url": IMAGE_URL}}]
messages = [{"role": "user", "content": parts}]
read = []
for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA):
    client = instructor.from_openai(OpenAI(base_url=URL, api_key="none"), mode=mode)
    receipt = client.chat.completions.create(model=MODEL, response_model=Receipt, messages=messages)
    read.append(receipt.model_dump())  # each mode makes a class of its own
assert read[0] == read[1], read
print(json.dumps(read[0]))
