"""Generated pages say what the code says."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "tools" / "docs"))  # as when it is run
spec = importlib.util.spec_from_file_location("docs_generate", REPOSITORY / "tools" / "docs" / "generate.py")
assert spec and spec.loader
generate = importlib.util.module_from_spec(spec)
spec.loader.exec_module(generate)


@pytest.mark.parametrize("name", sorted(generate.PAGES))
def test_generated_page_is_in_step(name: str) -> None:
    written = (REPOSITORY / "docs" / name).read_text(encoding="utf-8")
    assert written == generate.PAGES[name](), "run `make docs` and commit the result"


def test_the_table_of_gpu_memory_is_in_step() -> None:
    import gpu_memory  # of tools/docs, put on the path above

    for readme in gpu_memory.READMES:
        text = readme.read_text(encoding="utf-8")
        assert text == gpu_memory.with_table(text), "run `python tools/docs/gpu_memory.py` and commit the result"
