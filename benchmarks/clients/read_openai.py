"""openai (Python): a class by chat completions, by responses, streamed, and a decision."""

import json

from common import IMAGE_URL, MODEL, URL, Receipt
from openai import OpenAI

client = OpenAI(base_url=URL, api_key="none")
image = {"type": "image_url", "image_url": {"url": IMAGE_URL}}
messages = [{"role": "user", "content": [{"type": "text", "text": "Read this receipt."}, image]}]
answer = client.chat.completions.parse(model=MODEL, messages=messages, response_format=Receipt)
receipt = answer.choices[0].message.parsed
assert answer.model_extra["tailor"]["asked"] == "task"

parts = [{"type": "input_text", "text": "Read this receipt."}, {"type": "input_image", "image_url": IMAGE_URL}]
response = client.responses.parse(model=MODEL, input=[{"role": "user", "content": parts}], text_format=Receipt)
assert response.output_parsed == receipt, response.output_parsed

with client.chat.completions.stream(model=MODEL, messages=messages, response_format=Receipt) as stream:
    assert stream.get_final_completion().choices[0].message.parsed == receipt

question = {"type": "predicate", "instructions": "Is this a receipt?"}
decision = client.decisions.create(model=MODEL, input=[{"role": "user", "content": parts[1:]}], questions=[question])
assert 0 <= decision.answers[0].probability <= 1

print(json.dumps(receipt.model_dump()))
