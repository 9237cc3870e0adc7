"""pydantic-ai: its default, which forces a tool, and its native output."""

import json

from common import DATA, MEDIA_TYPE, MODEL, URL, Receipt
from pydantic_ai import Agent, BinaryContent, NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

model = OpenAIChatModel(MODEL, provider=OpenAIProvider(base_url=URL, api_key="none"))
prompt = ["Read this receipt.", BinaryContent(data=DATA, media_type=MEDIA_TYPE)]
receipt = Agent(model, output_type=Receipt).run_sync(prompt).output
assert Agent(model, output_type=NativeOutput(Receipt)).run_sync(prompt).output == receipt
print(json.dumps(receipt.model_dump()))
