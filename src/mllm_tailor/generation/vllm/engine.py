"""vLLM in the place of our decoder (https://docs.vllm.ai, Kwon et al. 2023, arXiv 2309.06180), for many files on a GPU.

It runs inside this process, without its own processor, sampling or telemetry: see `vllm_requests` for what it is given.
"""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from mllm_tailor.core.errors import ModelError
from mllm_tailor.generation.constrain import Vocabulary
from mllm_tailor.generation.sequence import ReplySequence
from mllm_tailor.generation.vllm.requests import Picture, as_ours, check_served, pictures_of, to_sequence
from mllm_tailor.models import LoadedModel

SEATS = 64  # samples in vLLM's hands at a time; their pixels wait in this process's memory
STEP_TOKENS = 8192  # read in one step, prompts of several samples together
QUIET = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # one process: no second copy of this program, and Ctrl-C ends it all
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}
INSTALL = "pip install 'vllm>=0.32' and then mllm-tailor once more, whose newer transformers vLLM runs with"


class VllmEngine:
    """Writes the replies of many rows with vLLM; see `GenerationEngine`, which it stands in for."""

    def __init__(self, model: LoadedModel, folder: Path, schema: Mapping[str, Any] | None) -> None:
        """`folder` holds the plain checkpoint vLLM opens; `model` may be without weights. `schema`: of held replies.

        Raises:
            ModelError: when vLLM is not installed, has no device, or cannot compute this model as it was trained.
        """
        check_served(model)
        self.model = model
        self.vocabulary = Vocabulary(
            model.tokenizer, model.model.config.get_text_config().vocab_size, sorted(model.stop_ids)
        )
        self.vllm = import_vllm()
        self.held_to = self.vllm.sampling_params.StructuredOutputsParams(json=as_ours(schema)) if schema else None
        self.engine = self._open(folder)

    def _open(self, folder: Path) -> Any:
        most = self.model.processor.image_seq_length * (self.model.tiles.max + self.model.tiles.thumbnail)
        try:
            return self.vllm.LLM(
                model=str(folder),
                dtype=str(self.model.dtype).removeprefix("torch."),
                max_model_len=self.model.context,
                max_num_seqs=SEATS,
                max_num_batched_tokens=max(STEP_TOKENS, most),
                structured_outputs_config={"backend": "guidance"},  # the library our own decoder uses
                generation_config="vllm",  # greedy, with nothing of the checkpoint's sampling
                disable_log_stats=True,
                use_tqdm_on_load=False,
            ).llm_engine
        except (RuntimeError, ValueError, TypeError, KeyError, OSError, AssertionError) as error:
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise ModelError(f"{folder}: vLLM cannot open it ({reason}) — use `--engine builtin`") from error

    def run(self, waiting: Iterator[list[ReplySequence]]) -> Iterator[ReplySequence]:
        """Rows as they are finished. One group joins before every step, so that vLLM begins while others are read."""
        asked: dict[str, ReplySequence] = {}
        number, more = 0, True
        while more or asked:
            group = next(waiting, None) if len(asked) < SEATS else []
            more = group is not None
            started = time.perf_counter()
            for row in group or ():
                self._ask(str(number), row)
                asked[str(number)] = row
                number += 1
            finished = [found for found in self.engine.step() if found.finished] if asked else []
            for row in asked.values():
                row.seconds += (time.perf_counter() - started) / len(asked)
            for found in finished:
                row, reply = asked.pop(found.request_id), found.outputs[0]
                scores = [steps[token].logprob for token, steps in zip(reply.token_ids, reply.logprobs, strict=True)]
                to_sequence(row, reply.token_ids, scores, self.vocabulary)
                yield row

    def _ask(self, name: str, row: ReplySequence) -> None:
        settings = self.vllm.SamplingParams(
            temperature=0.0,
            max_tokens=row.limit,
            stop_token_ids=sorted(self.model.stop_ids),
            logprobs=0,  # of the chosen token alone
            detokenize=False,
            output_kind=self.vllm.sampling_params.RequestOutputKind.FINAL_ONLY,
            structured_outputs=self.held_to if row.held else None,
        )
        self.engine.add_request(name, self._prompt(row), settings)

    def _prompt(self, row: ReplySequence) -> Any:
        """Ids and pixels in the form vLLM's own processor would hand them on in."""
        ids, pictures = row.encoded.ids.tolist(), pictures_of(row.encoded, self.model)
        if not pictures:
            return self.vllm.inputs.engine.tokens_input(ids)
        ranges = [self.vllm.multimodal.inputs.PlaceholderRange(one.start, one.tokens) for one in pictures]
        return self.vllm.inputs.engine.mm_input(
            ids, self._pixels(pictures), {"image": [one.key() for one in pictures]}, {"image": ranges}
        )

    def _pixels(self, pictures: list[Picture]) -> Any:
        """The arguments of vLLM's model class for InternVL's native layout."""
        field = self.vllm.multimodal.inputs.MultiModalFieldConfig
        counts = torch.tensor([len(one.pixels) for one in pictures])
        values = {
            "pixel_values": torch.cat([one.pixels for one in pictures]),  # (tiles, 3, side, side)
            "image_num_patches": counts,
            "image_token_id": torch.tensor(self.model.processor.image_token_id),
        }
        layout = {
            "pixel_values": field.flat_from_sizes("image", counts),
            "image_num_patches": field.batched("image", keep_on_cpu=True),
            "image_token_id": field.shared("image", len(pictures), keep_on_cpu=True),
        }
        return self.vllm.multimodal.inputs.MultiModalKwargsItems.from_hf_inputs(values, layout)

    def close(self) -> None:
        """Free vLLM's memory, for another model in the same process."""
        self.engine.engine_core.shutdown()
        self.vllm.distributed.cleanup_dist_env_and_memory()


def import_vllm() -> Any:
    """vLLM, calm, in one process and with a device to run on.

    Raises:
        ModelError: when it is not installed, of a version this was not written for, or finds no device.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    logging.getLogger("vllm").setLevel(logging.ERROR)  # what it says before it reads its own level
    warnings.filterwarnings("ignore", category=FutureWarning, module="vllm")
    try:
        import vllm
    except ImportError as error:
        missing = getattr(error, "name", None) == "vllm"
        reason = "it is not installed" if missing else f"it cannot be loaded ({error})"
        raise ModelError(f"`--engine vllm` needs vLLM: {reason} — {INSTALL}") from None
    try:
        import vllm.distributed
        import vllm.inputs.engine
        import vllm.multimodal.inputs
        import vllm.platforms
        import vllm.sampling_params
    except ImportError as error:
        raise ModelError(f"vLLM {vllm.__version__} lacks what is used here ({error}) — {INSTALL}") from None
    if not vllm.platforms.current_platform.device_type:
        raise ModelError(
            "this vLLM is built for a device that is not here — use `--engine builtin`, or install a build for this "
            "machine"
        )
    return vllm
