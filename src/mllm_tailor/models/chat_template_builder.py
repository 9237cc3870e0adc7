"""Build Jinja chat templates, and the control tokens of InternVL."""

from __future__ import annotations

import json
from collections.abc import Mapping

PAD, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
IMAGE_START, IMAGE_END, IMAGE, VIDEO = "<img>", "</img>", "<IMG_CONTEXT>", "<video>"
REGIONS = ("<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>")
SPECIAL_TOKENS = (PAD, TURN_START, TURN_END, IMAGE_START, IMAGE_END, IMAGE, VIDEO, *REGIONS)

INTERNVL_TOKENS = {
    "start_image_token": IMAGE_START,
    "end_image_token": IMAGE_END,
    "context_image_token": IMAGE,
    "video_token": VIDEO,
}
INTERNVL_MEDIA = {"image": f"{IMAGE}\n", "video": f"{VIDEO}\n"}


def build_chat_template(
    role: tuple[str, str] = (TURN_START, "\n"),
    close: str = TURN_END,
    after: str = "\n",
    *,
    begin: str = "",
    system: str | None = None,
    media: Mapping[str, str] = INTERNVL_MEDIA,
) -> str:
    """A chat template: `begin`, then for each turn its role between the two texts, its content, `close` and `after`.

    Images and videos keep their position in the message. `system` is the system text of conversations without any.
    `media` maps a kind of file to its placeholder. The `generation` tags enclose an answer.
    """
    opened, named, closed, behind, start, said = (
        json.dumps(text, ensure_ascii=False) for text in (*role, close, after, begin, system or "")
    )
    shown = json.dumps(dict(media))
    content = (
        f"{{%- macro content(parts) -%}}{{%- if parts is string -%}}{{{{ parts }}}}{{%- else -%}}"
        f"{{%- for part in parts -%}}{{{{ {shown}.get(part['type']) or part['text'] }}}}{{%- endfor -%}}"
        "{%- endif -%}{%- endmacro -%}"
    )
    own_system = (
        "{%- if not messages or messages[0]['role'] != 'system' -%}"
        f"{{{{ {opened} + 'system' + {named} + {said} + {closed} + {behind} }}}}"
        "{%- endif -%}"
    )
    return (
        f"{content}{{{{ {start} }}}}{own_system if system is not None else ''}"
        "{%- for message in messages -%}"
        f"{{{{ {opened} + message['role'] + {named} }}}}"
        "{%- if message['role'] == 'assistant' -%}"
        f"{{%- generation -%}}{{{{ content(message['content']) + {closed} }}}}{{%- endgeneration -%}}"
        f"{{%- else -%}}{{{{ content(message['content']) + {closed} }}}}{{%- endif -%}}"
        f"{{{{ {behind} }}}}"
        "{%- endfor -%}"
        f"{{%- if add_generation_prompt -%}}{{{{ {opened} + 'assistant' + {named} }}}}{{%- endif -%}}"
    )
