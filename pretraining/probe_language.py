"""How well the language model answers from perfect symbols of unseen layouts: the ceiling before pixels come in."""

from __future__ import annotations

import numpy as np
import torch

from pretraining import assembling, checkpoint, evaluate, optimizing, pages, questions
from pretraining.assembling import IMAGE, SymbolEmbedding


@torch.no_grad()
def main(name: str = "language", count: int = 20) -> None:
    model = assembling.build_model().eval()
    symbols = SymbolEmbedding(model.config.text_config.hidden_size)
    facts = checkpoint.load(
        name, {"language": model.model.language_model, "lm_head": model.lm_head, "symbols": symbols}
    )
    pairs = []
    for index, page in enumerate(evaluate.held_out_examples(count)):
        question, _ = questions.extraction(page, np.random.default_rng(index), plain=True)
        tokens = torch.from_numpy(pages.to_tokens(page.labels))
        ids = torch.tensor([assembling.prompt_ids(len(tokens), question)])
        embeds = model.get_input_embeddings()(ids)
        embeds = embeds.masked_scatter((ids == IMAGE).unsqueeze(-1), symbols(tokens, model.get_input_embeddings()))
        with optimizing.computing("cpu"):
            reply = model.generate(
                inputs_embeds=embeds, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=320
            )
        text = assembling.TOKENIZER.decode(reply[0], skip_special_tokens=True)
        pairs.append((text, page.fields))
        if index < 4:
            print(text, "\n   ", page.fields)
    print(facts["step"], evaluate.field_scores(pairs))


if __name__ == "__main__":
    main()
