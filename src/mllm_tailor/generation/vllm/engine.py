"""vLLM instead of the built-in engine, for many files on a GPU (https://docs.vllm.ai, Kwon et al. 2023, 2309.06180).

It runs without its own processor or sampling; see `requests` for its inputs. The command line has it run inside this
process, without telemetry (`cli.main.VLLM`); a program that uses this class sets the same variables itself.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from mllm_tailor.core.errors import ModelError
from mllm_tailor.generation.constrain import Vocabulary
from mllm_tailor.generation.sequence import ReplySequence
from mllm_tailor.generation.vllm.requests import ImageInput, check_served, image_inputs, to_sequence, with_json_style
from mllm_tailor.models import LoadedModel
from mllm_tailor.recipe import DecodingMode

MAX_SEQUENCES = 64  # given to vLLM at a time; their pixels wait in this process's memory
STEP_TOKENS = 8192  # of prompts in one step
INSTALL = "pip install 'vllm>=0.32' and then mllm-tailor once more, whose newer transformers vLLM runs with"


class VllmEngine:
    """Decodes the replies of many sequences with vLLM, in place of `GenerationEngine`."""

    def __init__(self, model: LoadedModel, folder: Path, schema: Mapping[str, Any] | None) -> None:
        """`folder` holds the plain checkpoint for vLLM; `model` needs no weights. `schema`: of constrained replies.

        Raises:
            ModelError: when vLLM is not installed, has no device, or cannot compute this model as it was trained.
        """
        check_served(model)
        self.model = model
        self.vocabulary = Vocabulary(
            model.tokenizer, model.model.config.get_text_config().vocab_size, sorted(model.stop_ids)
        )
        self.vllm = import_vllm()
        structured = self.vllm.sampling_params.StructuredOutputsParams
        self.structured_outputs = structured(json=with_json_style(schema)) if schema else None
        self.engine = self._open(folder)

    def _open(self, folder: Path) -> Any:
        most = self.model.processor.image_seq_length * (self.model.tiles.max + self.model.tiles.thumbnail)
        try:
            return self.vllm.LLM(
                model=str(folder),
                dtype=str(self.model.dtype).removeprefix("torch."),
                max_model_len=self.model.context,
                max_num_seqs=MAX_SEQUENCES,
                max_num_batched_tokens=max(STEP_TOKENS, most),
                structured_outputs_config={"backend": "guidance"},  # the library the built-in engine uses
                generation_config="vllm",  # greedy: ignore the checkpoint's sampling settings
                disable_log_stats=True,
                use_tqdm_on_load=False,
            ).llm_engine
        except (RuntimeError, ValueError, TypeError, KeyError, OSError, AssertionError) as error:
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise ModelError(f"{folder}: vLLM cannot load it ({reason}) — use `--engine builtin`") from error

    def run(self, waiting: Iterator[list[ReplySequence]]) -> Iterator[ReplySequence]:
        """Sequences as they finish. A group joins before every step, so that vLLM starts while others are encoded."""
        running: dict[str, ReplySequence] = {}
        number, more = 0, True
        while more or running:
            group = next(waiting, None) if len(running) < MAX_SEQUENCES else []
            more = group is not None
            started = time.perf_counter()
            for sequence in group or ():
                self._add_request(str(number), sequence)
                running[str(number)] = sequence
                number += 1
            finished = [output for output in self.engine.step() if output.finished] if running else []
            for sequence in running.values():
                sequence.seconds += (time.perf_counter() - started) / len(running)
            for output in finished:
                sequence, reply = running.pop(output.request_id), output.outputs[0]
                scores = [steps[token].logprob for token, steps in zip(reply.token_ids, reply.logprobs, strict=True)]
                to_sequence(sequence, reply.token_ids, scores, self.vocabulary)
                yield sequence

    def _add_request(self, name: str, sequence: ReplySequence) -> None:
        settings = self.vllm.SamplingParams(
            temperature=0.0,
            max_tokens=sequence.limit,
            stop_token_ids=sorted(self.model.stop_ids),
            logprobs=0,  # of the chosen token only
            detokenize=False,
            output_kind=self.vllm.sampling_params.RequestOutputKind.FINAL_ONLY,
            structured_outputs=self.structured_outputs if sequence.mode is DecodingMode.CONSTRAINED else None,
        )
        self.engine.add_request(name, self._prompt(sequence), settings)

    def _prompt(self, sequence: ReplySequence) -> Any:
        """Ids and pixels in the form in which vLLM's processor returns them."""
        ids, images = sequence.encoded.ids.tolist(), image_inputs(sequence.encoded, self.model)
        if not images:
            return self.vllm.inputs.engine.tokens_input(ids)
        ranges = [self.vllm.multimodal.inputs.PlaceholderRange(image.start, image.tokens) for image in images]
        return self.vllm.inputs.engine.mm_input(
            ids, self._pixels(images), {"image": [image.key() for image in images]}, {"image": ranges}
        )

    def _pixels(self, images: list[ImageInput]) -> Any:
        """The arguments of vLLM's model class for InternVL's native layout."""
        field = self.vllm.multimodal.inputs.MultiModalFieldConfig
        counts = torch.tensor([len(image.pixels) for image in images])
        values = {
            "pixel_values": torch.cat([image.pixels for image in images]),  # (tiles, 3, side, side)
            "image_num_patches": counts,
            "image_token_id": torch.tensor(self.model.processor.image_token_id),
        }
        layout = {
            "pixel_values": field.flat_from_sizes("image", counts),
            "image_num_patches": field.batched("image", keep_on_cpu=True),
            "image_token_id": field.shared("image", len(images), keep_on_cpu=True),
        }
        return self.vllm.multimodal.inputs.MultiModalKwargsItems.from_hf_inputs(values, layout)

    def close(self) -> None:
        """Free vLLM's memory, for another model in the same process."""
        self.engine.engine_core.shutdown()
        self.vllm.distributed.cleanup_dist_env_and_memory()


def import_vllm() -> Any:
    """vLLM, with a device to run on.

    Raises:
        ModelError: when it is not installed, of an unsupported version, or without a device.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        vllm = _import_modules()
    if not vllm.platforms.current_platform.device_type:
        raise ModelError(
            "this vLLM is built for a device that is not here — use `--engine builtin`, or install a build for this "
            "machine"
        )
    return vllm


def _import_modules() -> Any:
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
        raise ModelError(f"vLLM {vllm.__version__} lacks a required module ({error}) — {INSTALL}") from None
    return vllm
