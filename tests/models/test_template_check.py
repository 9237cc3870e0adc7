"""A chat template that works or writes without end is refused in a process with limits, before it is used."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from mllm_tailor.core.errors import ModelError
from mllm_tailor.models import load_model, template_check
from mllm_tailor.models.template_check import check_template

LOOPS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
TOKENIZER = SimpleNamespace(bos_token="<s>", eos_token=None)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("template", "problem"),
    [
        (LOOPS, "does not end within 1 s of computing"),
        ("{{ 9 ** 9999999 }}", "does not end within 1 s of computing"),
        ("{{ 'x' * 9999999999 }}", "takes over 1,073,741,824 bytes"),
        ("{% for i in range(9999) %}{{ 'x' * 9999 }}{% endfor %}", "writes over 4,194,304 characters"),
        ("{% if messages | length > 4 %}{{ 'x' * 9999999999 }}{% endif %}", "takes over"),  # in a long exchange only
    ],
)
def test_work_without_end_is_refused(
    template: str, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(template_check, "CPU_SECONDS", 1)
    with pytest.raises(ModelError, match=f"{tmp_path.name}: the chat template .*{problem}"):
        check_template(template, TOKENIZER, tmp_path)


@pytest.mark.slow
def test_what_transformers_knows_is_known_here(tmp_path: Path) -> None:
    """A tag of transformers in front of the loops: were it unknown, the template would end at once."""
    for known in (
        "{% generation %}x{% endgeneration %}",
        "{% for m in messages %}{% continue %}{% endfor %}",
        "{{ messages | tojson }}{{ bos_token }}{{ strftime_now('%Y') }}",
    ):
        text = known + "{{ 'x' * 9999999999 }}"
        with pytest.raises(ModelError, match="takes over"):
            check_template(text, TOKENIZER, tmp_path)
    check_template(
        "{{ raise_exception('no') }}{{ 'x' * 9999999999 }}", TOKENIZER, tmp_path
    )  # named when it is rendered


def test_a_folder_with_such_a_template_is_refused(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(tiny_model_folder, tmp_path / "copy"))
    (folder / "chat_template.jinja").write_text("{{ 'y' * 9999999999 }}")
    with pytest.raises(ModelError, match=r"copy: the chat template .* copy or download chat_template\.jinja again"):
        load_model(folder)


def test_a_template_is_tried_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_template("{{ messages[0].role }}", TOKENIZER, tmp_path)
    monkeypatch.setattr(template_check, "PROBE", tmp_path / "gone.py")
    check_template("{{ messages[0].role }}", TOKENIZER, tmp_path)
