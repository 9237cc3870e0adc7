"""Any OpenAI-compatible endpoint as the teacher of `tailor label`."""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from PIL import Image

from mllm_tailor.core.errors import DataError, RunError
from mllm_tailor.core.io import fingerprint
from mllm_tailor.core.sample import Media, Prediction, Sample
from mllm_tailor.media.open import open_image
from mllm_tailor.recipe import DecodingMode
from mllm_tailor.run.label import Readings
from mllm_tailor.run.replies import read_reply
from mllm_tailor.run.resolve import ResolvedRun
from mllm_tailor.serving.openai_client import Endpoint, EndpointReply

CLIENTS = 4  # files sent at a time
DEGREES, SMALLER = 0.5, 0.97  # how images of a second reading differ


def turned(media: Media) -> Media:
    """An image turned by half a degree on white, and a little smaller; other media as they are."""
    if media.kind != "image":
        return media
    image = open_image(media)
    width, height = (max(1, round(SMALLER * side)) for side in image.size)
    changed = image.rotate(DEGREES, Image.Resampling.BICUBIC, fillcolor="white").resize((width, height))
    out = io.BytesIO()
    changed.save(out, "PNG")
    return Media("image", data=out.getvalue())


class EndpointTeacher:
    """Asks an endpoint the run's question twice: for its most likely reply, and for a sampled one."""

    chunk = 4 * CLIENTS

    def __init__(self, endpoint: Endpoint, run: ResolvedRun, temperature: float, seed: int) -> None:
        self.endpoint, self.run, self.temperature, self.seed = endpoint, run, temperature, seed

    def describe(self) -> dict[str, Any]:
        """Address, model, task, temperature and seed."""
        task = {self.run.task.name: self.run.recipe.task_settings}
        return {
            "teacher": self.endpoint.url, "model": self.endpoint.model, "task": fingerprint(task),
            "temperature": self.temperature, "seed": self.seed,
        }  # fmt: skip

    def read(self, samples: Sequence[Sample]) -> list[Readings]:
        """Both readings of each sample; what an endpoint refuses, or does not answer in time, fails alone."""
        with ThreadPoolExecutor(CLIENTS) as pool:
            return list(pool.map(self._read, samples))

    def _read(self, sample: Sample) -> Readings:
        try:
            if "problem" in sample.extra:
                raise DataError(str(sample.extra["problem"]))
            first = self._ask(sample, 0.0)
            second, second_by = self._second(sample)
        except (DataError, RunError) as error:
            return Readings(failure=str(error))
        return Readings(
            self._prediction(sample, first),
            self._prediction(sample, second),
            prompt_tokens=first.prompt_tokens + second.prompt_tokens,
            reply_tokens=first.reply_tokens + second.reply_tokens,
            seconds=first.seconds + second.seconds,
            second_by=second_by,
        )

    def _second(self, sample: Sample) -> tuple[EndpointReply, str]:
        """A sampled reply; from an endpoint that does not sample, one to images that are turned a little."""
        if "temperature" not in self.endpoint.left_out:
            reply = self._ask(sample, self.temperature)
            if "temperature" not in self.endpoint.left_out:  # it was refused just now
                return reply, "sampling"
        if all(media.kind != "image" for media in sample.media):
            raise RunError("the endpoint does not sample, so a second reading would be the first one again")
        return self._ask(replace(sample, media=tuple(map(turned, sample.media))), 0.0), "turned images"

    def _ask(self, sample: Sample, temperature: float) -> EndpointReply:
        schema = self.run.task.schema() if self.run.mode is not DecodingMode.UNCONSTRAINED else None
        return self.endpoint.ask(
            self.run.task.phrase(sample.unlabelled()),
            system=self.run.model.system,
            schema=schema,
            limit=self.run.recipe.predict.max_new_tokens,
            temperature=temperature,
            seed=self.seed,
        )

    def _prediction(self, sample: Sample, reply: EndpointReply) -> Prediction:
        return read_reply(self.run.task, sample.id, reply.text, seconds=reply.seconds, cut=reply.cut)
