"""Chat templates for families whose checkpoints have none, or have a template without media."""

from __future__ import annotations

from mllm_tailor.models.chat_template_builder import build_chat_template

# PaliGemma was trained on an image and a line of text, without turns.
PALIGEMMA = (
    "{%- for message in messages -%}{%- for part in message['content'] -%}"
    "{{ '<image>' if part['type'] == 'image' else part['text'] }}{%- endfor -%}{%- endfor -%}"
)

# Phi-4-multimodal (arXiv 2503.01743): the template of its folder takes only text and leaves placeholders to the user.
PHI4 = build_chat_template(("<|", "|>"), "<|end|>", "", media={"image": "<|image|>", "audio": "<|audio|>"})

# Voxtral (arXiv 2507.13264): what mistral-common writes for tokenizers of version 7.
VOXTRAL = (
    "{{ '<s>' }}"
    "{%- for message in messages -%}"
    "{%- set found = namespace(words='') -%}"
    "{%- if message['content'] is string -%}{%- set found.words = message['content'] -%}"
    "{%- else -%}{%- for part in message['content'] -%}"
    "{%- set found.words = found.words + ('[BEGIN_AUDIO][AUDIO]' if part['type'] == 'audio' else part['text']) -%}"
    "{%- endfor -%}{%- endif -%}"
    "{%- if message['role'] == 'system' -%}{{ '[SYSTEM_PROMPT]' + found.words + '[/SYSTEM_PROMPT]' }}"
    "{%- elif message['role'] == 'user' -%}{{ '[INST]' + found.words + '[/INST]' }}"
    "{%- else -%}{%- generation -%}{{ found.words + '</s>' }}{%- endgeneration -%}{%- endif -%}"
    "{%- endfor -%}"
)
