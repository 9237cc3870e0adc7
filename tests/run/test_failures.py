"""Failures of the machine end in one message that names the file and the fix."""

from __future__ import annotations

import errno
import os
import shutil

import pytest
from safetensors import SafetensorError

from mllm_tailor.core.errors import RecipeError, StorageError, TailorError
from mllm_tailor.core.failures import as_messages
from mllm_tailor.recipe import make_recipe
from mllm_tailor.run.resolve import resolve


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/a/log.jsonl"),
            "log.jsonl: No space .* make room",
        ),
        (OSError(errno.EROFS, os.strerror(errno.EROFS), b"runs"), "^runs: Read-only .* name another place"),
        (FileExistsError(errno.EEXIST, "File exists", "runs/a/checkpoints"), "checkpoints: .* move it away"),
        (OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), "x" * 5000), "^x{5000}: File name too long"),
        (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), "make room"),
        (SafetensorError("Error while deserializing header: HeaderTooLarge"), "damaged"),
        (
            shutil.Error([("a/x", "b/x", "[Errno 28] No space left on device: 'a/x' -> 'b/x'")]),
            "^b/x: No space .* make room",
        ),
        (MemoryError(), "not enough memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), "--fit"),
    ],
)
def test_a_failure_of_the_machine_is_a_message(error: Exception, words: str) -> None:
    with pytest.raises(TailorError, match=words) as caught, as_messages():
        raise error
    assert caught.value.__cause__ is error


def test_what_is_a_message_already_or_is_ours_passes() -> None:
    for error in (StorageError("said"), RuntimeError("a defect"), BrokenPipeError()):
        with pytest.raises(type(error)) as caught, as_messages():
            raise error
        assert caught.value is error


@pytest.mark.parametrize(("device", "words"), [("cuda:99", "cuda:99 is absent"), ("gpu", "no device is called `gpu`")])
def test_a_device_that_is_not_there_is_refused(device: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        resolve(make_recipe({"data": "x", "task": "answer", "model": {"device": device}}))
