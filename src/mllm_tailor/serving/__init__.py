"""A run behind HTTP: OpenAI's endpoints over the built-in engine, so that existing clients read documents with it."""
