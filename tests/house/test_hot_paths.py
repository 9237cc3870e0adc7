"""Where the host waits for a device: every call in training, generation and models that copies values to the CPU."""

from __future__ import annotations

import ast
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import mllm_tailor

ROOT = Path(mllm_tailor.__file__).parent
ROOMS = ("training", "generation", "models")
WAITS = {"cpu", "item", "numpy", "tolist"}
REASONS = Path(__file__).with_name("hot_paths.toml")


def calls(tree: ast.AST, function: str = "module") -> Iterator[str]:
    """`function.call` of every waiting call; a method is named without its class."""
    for node in ast.iter_child_nodes(tree):
        inner = node.name if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else function
        match node:
            case ast.Call(func=ast.Attribute(attr=name), args=[], keywords=[]) if name in WAITS:
                yield f"{function}.{name}"
        yield from calls(node, inner)


def waits() -> Counter[str]:
    """How often each stands in the source, by `room/file.py:function.call`."""
    counts: Counter[str] = Counter()
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            counts.update(f"{path.relative_to(ROOT).as_posix()}:{call}" for call in calls(tree))
    return counts


def test_a_planted_wait_is_found() -> None:
    source = "class Loop:\n    def step(self, loss):\n        self.log(loss.item())\n        return loss.mean().cpu()\n"
    assert list(calls(ast.parse(source))) == ["step.item", "step.cpu"]


def test_every_wait_has_a_reason() -> None:
    allowed = {
        f"{room}/{place}": reason
        for room, table in tomllib.loads(REASONS.read_text(encoding="utf-8")).items()
        for place, reason in table.items()
    }
    found = waits()
    new = sorted(set(found) - set(allowed))
    assert not new, f"waits for the device without a reason in {REASONS.name}:\n" + "\n".join(new)
    gone = sorted(set(allowed) - set(found))
    assert not gone, f"no longer in the source, to be removed from {REASONS.name}:\n" + "\n".join(gone)
    assert all(len(reason) > 10 for reason in allowed.values())
