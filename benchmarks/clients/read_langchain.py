"""langchain-openai: with_structured_output."""

import json

from common import IMAGE_URL, MODEL, URL, Receipt
from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI

model = ChatOpenAI(base_url=URL, api_key="none", model=MODEL).with_structured_output(Receipt)
parts = [{"type": "text", "text": "Read this receipt."}, {"type": "image_url", "image_url": {"url": IMAGE_URL}}]
print(json.dumps(model.invoke([HumanMessage(content=parts)]).model_dump()))
