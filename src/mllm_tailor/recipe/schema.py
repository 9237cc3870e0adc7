"""The settings of a recipe. Each is declared here once, with its meaning, unit and default.

Tasks and methods define their own settings in registered classes, so adding one does not change this file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from mllm_tailor.recipe.objectives import Distill, Prefer, ReplySampling, Reward
from mllm_tailor.recipe.settings import Settings

PARTS = ("vision", "projector", "language", "audio", "head")
MOST_FRAMINGS = 8  # that `media.framing` lists
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"  # of settings that name a folder


class Tiles(Settings):
    """How an image is cut into square tiles for the vision tower (InternVL's dynamic resolution)."""

    min: int = Field(1, ge=1, le=64, description="fewest tiles per image")
    max: int = Field(12, ge=1, le=64, description="most tiles per image, not counting the thumbnail")
    thumbnail: bool = Field(True, description="add the whole image as a last tile where there are several")


class Units(Settings):
    """Speech units: clusters of 20 ms audio frames; each cluster is a new token of the language model."""

    features: str = Field(
        "cepstrum", description="`cepstrum` (no download), or the folder of a HuBERT or wav2vec 2.0 checkpoint"
    )
    layer: int = Field(6, ge=0, le=96, description="hidden layer of that checkpoint")
    count: int = Field(100, ge=2, le=5000, description="number of clusters and of new tokens")
    level: float = Field(
        -26.0, ge=-60, le=0, description="loudness of every recording after scaling, in decibels relative to full scale"
    )
    highest: float | None = Field(
        None, gt=500, le=7600, description="highest frequency of the cepstrum in Hz; default: that of the recordings"
    )
    codebook: str | None = Field(
        None, description="file with the clusters; default: fitted once on the training recordings"
    )


class ModelSpec(Settings):
    """The checkpoint and how it is loaded. `model: NAME` is short for `model: {path: NAME}`."""

    renamed: ClassVar[Mapping[str, str]] = {"tile": "tile_size"}

    path: str = Field(
        "embedded", description="`embedded`, `tiny` (untrained, 1.8 million weights), a hub id, or a folder"
    )
    revision: str | None = Field(None, description="hub revision (a commit); default: the newest, recorded in the run")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="number format of frozen weights; auto: bfloat16 where the device computes in it"
    )
    device: str | None = Field(None, description="cpu, cuda, cuda:1; default: the first GPU, else the CPU")
    tiles: Tiles | None = Field(None, description="default: the checkpoint's")
    tile_size: int | None = Field(
        None, ge=28, le=1344, description="side of a tile in pixels; smaller is faster; default: the checkpoint's"
    )
    frames: int = Field(8, ge=1, le=256, description="frames taken of a video, evenly spaced, one tile each")
    units: Units | None = Field(None, description="speech units, for models without an audio encoder")
    trim: bool = Field(
        False, description="cut blank margins off images and videos, so that a small receipt or hand fills the tiles"
    )
    reflow: bool | None = Field(
        None,
        description="set the printed lines of every image one after the other at one height, so that small print fills "
        "the tiles (docs/media.md); images without print stay as they are; default: the checkpoint's",
    )
    system: str | None = Field(None, description="system text; default: the checkpoint's own")


class HeldOut(Settings):
    """The samples that are not trained on and give the final score: exactly one of fraction, column, folder."""

    folds: int | None = Field(
        None, ge=2, le=50, description="cross-validation: each sample is scored once, by a model of the other folds"
    )
    fold: int | None = Field(None, ge=1, le=50, description="only this fold is held out (each fold's run states it)")
    fraction: float | None = Field(None, gt=0, lt=1, description="share of the samples")
    fixed: bool = Field(
        False,
        description="decide by the name of each file (or group), so data sets of the same files hold out the same ones",
    )
    group_by: str | None = Field(None, description="field or column; samples with the same value stay on one side")
    stratify_by: str | None = Field(
        None, description="field or column, such as the class; the same share of each of its values is held out"
    )
    column: str | None = Field(None, description="column that names the split, such as `split`")
    value: str | list[str] | None = Field(None, description="values of `column` that are held out")
    folder: str | None = Field(None, description="a second folder with the same layout")

    @model_validator(mode="after")
    def _one_way(self) -> HeldOut:
        ways = [way for way in ("fraction", "column", "folder", "folds") if getattr(self, way) is not None]
        if len(ways) != 1:
            raise ValueError(
                f"set exactly one of fraction, column, folder, folds (found {' and '.join(ways) or 'none'})"
            )
        if self.fold is not None and self.fold > (self.folds or 0):
            raise ValueError("`fold` is one of `folds`, counted from 1")
        if (self.column is None) != (self.value is None):
            raise ValueError("`column` and `value` belong together: column: split, value: dev")
        if self.stratify_by is not None and (self.fixed or (self.fraction is None and self.folds is None)):
            raise ValueError("`stratify_by` belongs to `fraction` or `folds`, without `fixed`")
        return self


class Source(Settings):
    """More training samples, mixed into every epoch of `data.train`. Set `weight` or `repeat`, not both."""

    name: str | None = Field(None, pattern=NAME, description="its name in the ledger; default: the folder's name")
    train: str = Field(description="folder or file of labelled samples, or `corrections.db` of a review")
    layout: str | None = Field(None, description="name of the layout; default: recognised")
    media_root: str | None = Field(None, description="folder outside `train` with media that its rows name")
    task: dict[str, Any] | None = Field(None, description="the task of its samples; default: the recipe's task")
    limit: int | None = Field(None, ge=1, description="use only this many of its samples (a seeded choice)")
    repeat: float | None = Field(
        None,
        gt=0,
        le=1000,
        description="times each sample is seen per epoch; 0.5: a seeded half of them; default: once",
    )
    weight: float | None = Field(
        None, gt=0, le=1000, description="its samples per epoch, as a multiple of those of `data.train`"
    )

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, values: Any) -> Any:
        return long_forms({"train": values} if isinstance(values, str) else values)

    @model_validator(mode="after")
    def _one_amount(self) -> Source:
        if self.repeat is not None and self.weight is not None:
            raise ValueError("set `repeat` (times per sample) or `weight` (multiple of data.train), not both")
        one_task(self.task)
        return self


class DataSpec(Settings):
    """The labelled samples. `data: FOLDER` is short for `data: {train: FOLDER}`."""

    renamed: ClassVar[Mapping[str, str]] = {"transcripts": "transcription_share"}

    train: str = Field(description="folder or file of labelled samples; its layout is recognised")
    layout: str | None = Field(None, description="name of the layout; default: recognised")
    media_root: str | None = Field(None, description="folder outside `train` with media that its rows name")
    held_out: HeldOut = Field(HeldOut(fraction=0.1), description="samples for the final score")
    dev: float = Field(
        0.05,
        ge=0,
        lt=0.5,
        description="share of the training samples used to choose the best epoch; 0: use the last epoch",
    )
    stream: bool | None = Field(
        None,
        description="media inside rows (Parquet, Arrow, WebDataset) become files of the cache as they are read and are "
        "not held in memory; default: where such files hold over 2 GiB",
    )
    faulty: Literal["refuse", "exclude"] = Field(
        "refuse",
        description="`refuse`: faulty samples stop the run; `exclude`: they are left out, with a line in the ledger",
    )
    corrections: str | None = Field(
        None, description="decisions of `tailor audit`: labels they fix are replaced as they are read, by the ledger"
    )
    transcription_share: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of the training samples that also teach transcription, where the data have `ocr`",
    )
    transcription_turns: bool = Field(
        False,
        description="ask for the transcript in a further turn of the sample's own conversation instead of a sample of "
        "its own: one pass over its image serves both",
    )
    limit: int | None = Field(None, ge=1, description="use only this many training samples (a seeded choice)")
    limit_held_out: int | None = Field(
        None, ge=1, description="score only this many held-out samples (a seeded choice)"
    )
    sources: list[Source] = Field([], description="more data to mix in, such as general data against forgetting")


class Train(Settings):
    """The training loop."""

    renamed: ClassVar[Mapping[str, str]] = {
        "batch": "batch_size",
        "micro_batch": "micro_batch_size",
        "warmup": "warmup_ratio",
        "clip": "max_grad_norm",
        "keep": "keep_checkpoints",
        "checkpointing": "gradient_checkpointing",
        "minutes": "max_minutes",
    }

    epochs: float = Field(3, gt=0, le=10_000, description="passes over the training samples")
    steps: int | None = Field(None, ge=1, description="total optimizer steps, instead of `epochs`")
    batch_size: int = Field(16, ge=1, description="samples per optimizer step")
    micro_batch_size: int | None = Field(None, ge=1, description="samples per forward pass; default: chosen by memory")
    learning_rate: float | None = Field(
        None, gt=0, le=10, description="peak learning rate; default: the method's (docs/methods.md)"
    )
    schedule: Literal["cosine", "linear", "constant"] = Field("cosine", description="learning rate after the warm-up")
    warmup_ratio: float = Field(0.05, ge=0, lt=1, description="share of the steps in which the learning rate rises")
    weight_decay: float = Field(0.0, ge=0, le=1, description="decoupled weight decay")
    max_grad_norm: float | None = Field(1.0, gt=0, description="gradients are clipped to this norm; null: no clipping")
    optimizer: str = Field("adamw", description="see `tailor methods`")
    loss: Literal["answer", "all"] = Field(
        "answer", description="tokens that carry loss; `all` only to reproduce earlier work"
    )
    distill: Distill | None = Field(None, description="distillation from a larger model")
    prefer: Prefer | None = Field(None, description="prefer labels to rejected replies: DPO, MPO, KTO, SimPO, ORPO")
    reward: Reward | None = Field(None, description="learn from the score of sampled replies: GRPO and its kin")
    checkpoint_every: float = Field(5.0, gt=0, description="minutes between checkpoints")
    keep_checkpoints: int = Field(2, ge=1, description="checkpoints kept")
    evaluate_every: float = Field(1.0, gt=0, description="epochs between scores on the dev split")
    gradient_checkpointing: bool | Literal["auto"] = Field("auto", description="recompute activations to save memory")
    processes: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto",
        description="processes that share each training step and the predictions on dev and held-out samples. auto: on "
        "a CPU, one per core where the work is long and micro-batches and memory suffice; on a GPU, one. With several "
        "GPUs: their number",
    )
    shard: Literal["none", "fsdp"] = Field(
        "none", description="`fsdp`: each of several `processes` keeps slices of weights, gradients and optimizer state"
    )
    max_minutes: float | None = Field(
        None, gt=0, description="stop after this many minutes of training; the schedule is shortened to fit"
    )
    max_cpu_minutes: float | None = Field(
        None, gt=0, description="the same in CPU time of all threads, which other work on the machine does not change"
    )
    tiles: Tiles | None = Field(None, description="tiles while training, if different; only to reproduce earlier work")
    one_modality: bool = Field(
        False, description="all samples of a step are of one kind: images, videos, recordings or text"
    )
    modality_parts: dict[str, list[str]] = Field(
        {},
        description="parts that samples of a kind train, such as {text: [language]}; other kinds train all parts of "
        "the method; needs `one_modality`",
    )
    augment: bool = Field(
        False,
        description="small random changes: rotation, scale and brightness of images and videos, speed of recordings",
    )
    trackers: list[Literal["mlflow", "wandb", "trackio"]] = Field(
        [],
        description="trackers beside log.jsonl and TensorBoard, each an extra; they write into the run folder (trackio "
        "into its own database) unless their environment variables name a server",
    )

    @property
    def sampling(self) -> ReplySampling | None:
        """How the objective samples replies of the model; None where it does not."""
        if self.reward is not None:
            return self.reward.sampling
        return None if self.distill is None else self.distill.sampling

    def passes(self, count: int) -> float:
        """Epochs over `count` training samples."""
        return self.epochs if self.steps is None else self.steps / math.ceil(count / self.batch_size)

    @model_validator(mode="after")
    def _kinds_apart(self) -> Train:
        if self.modality_parts and not self.one_modality:
            raise ValueError("`modality_parts` needs steps with samples of one kind: set one_modality: true")
        for part in (part for parts in self.modality_parts.values() for part in parts):
            if part not in PARTS:
                raise ValueError(f"modality_parts: no part `{part}` — parts are {', '.join(PARTS)}")
        return self

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("distill"), str):
            return {**values, "distill": {"teacher": values["distill"]}}
        return values


class Predict(Settings):
    """How replies are generated."""

    renamed: ClassVar[Mapping[str, str]] = {"batch": "batch_size", "beams": "num_beams"}

    batch_size: int = Field(8, ge=1, description="samples decoded in parallel")
    num_beams: int = Field(
        1, ge=1, le=64, description="beams of the beam search; the most likely complete reply is used"
    )
    framings: int = Field(
        1,
        ge=1,
        le=MOST_FRAMINGS,
        description="read each image in this many slightly different framings and keep, field by field, the value with "
        "the most confidence in all; costs as many times as much (docs/predictions.md)",
    )
    max_new_tokens: int = Field(512, ge=1, le=32_768, description="longest reply, in tokens")
    constrained: bool = Field(True, description="constrain replies to the task's JSON schema")
    fields: Literal["together", "side_by_side"] = Field(
        "together",
        description="`side_by_side` decodes each field of a constrained reply in a separate sequence after a shared "
        "prompt: fewer steps, but no field sees the others, so score it first (docs/performance.md); max_new_tokens is "
        "then per field",
    )
    boxes: bool = Field(
        False,
        description="find where on its page each value stands (docs/predictions.md): from the text layer of a PDF, or "
        "from the model's attention, for tiled families",
    )
    likelihood: bool = Field(
        True, description="where a task has a closed set of replies, choose the most likely instead of generating text"
    )
    weights: Literal["as_trained", "unquantised"] = Field(
        "as_trained", description="base under the adapter; `unquantised` after QLoRA only to reproduce earlier work"
    )


class Accept(Settings):
    """Which values need no eye: those above a threshold that keeps a promise (docs/confidence.md)."""

    right: float = Field(ge=0.5, lt=1, description="share of the accepted values that are right, at least")
    certainty: float = Field(0.95, ge=0.5, lt=1, description="probability with which the promise holds")


class Stage(Settings):
    """One stage. It starts from the weights of the stage before; its settings replace those of the recipe.

    `data` with `train`, and `method` with a name, replace the recipe's as a whole; otherwise they change single
    settings, as `train` and `predict` always do.
    """

    name: str = Field(pattern=NAME, description="names the stage's folder, such as 1-captions")
    data: dict[str, Any] | None = Field(None, description="the labelled samples of this stage")
    task: dict[str, Any] | None = Field(None, description="the task of this stage")
    method: dict[str, Any] | None = Field(None, description="the tuning method of this stage")
    train: dict[str, Any] | None = Field(None, description="training settings that differ")
    predict: dict[str, Any] | None = Field(None, description="generation settings that differ")
    score: list[str] | None = Field(None, description="metrics of this stage")
    score_by: list[str] | None = Field(None, description="columns by which the scores of this stage are broken down")

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, values: Any) -> Any:
        return long_forms(values)


class Recipe(Settings):
    """One YAML file that describes a whole job."""

    name: str = Field("run", pattern=NAME, description="name of the run folder")
    seed: int = Field(0, ge=0, lt=2**63, description="seed of every random choice")
    model: ModelSpec = Field(ModelSpec(), description="the checkpoint")
    data: DataSpec = Field(description="the labelled samples")
    task: dict[str, Any] = Field(description="one task with its settings, such as `extract: {total: string}`")
    method: dict[str, Any] = Field({"name": "qlora"}, description="tuning method; see `tailor methods`")
    train: Train = Field(Train(), description="the training loop")
    predict: Predict = Field(Predict(), description="generation")
    score: list[str] = Field([], description="metrics; the first is the headline; default: those of the task")
    score_by: list[str] = Field([], description="fields or columns by which scores are broken down, such as speaker")
    accept: Accept | None = Field(
        None, description="values that need no eye, such as {right: 0.95}; needs a dev split or folds"
    )
    output: str = Field("runs", description="folder in which the run folder is created")
    publish: str | None = Field(
        None, description="URL to which the finished run folder is copied, such as s3://bucket/runs (docs/scale.md)"
    )
    stages: list[Stage] = Field([], description="trainings in sequence, each from the merged weights of the one before")

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, values: Any) -> Any:
        values = long_forms(values)
        stages = values.get("stages") if isinstance(values, dict) else None
        if isinstance(stages, list):  # a setting of every stage need not be in the recipe as well
            for key in ("data", "task"):
                said = [stage.get(key) for stage in stages if isinstance(stage, dict)]
                if key not in values and said and all(said) and len(said) == len(stages):
                    values[key] = said[0]
            values = long_forms(values)
        return values

    @model_validator(mode="after")
    def _one_task(self) -> Recipe:
        one_task(self.task)
        if "://" in self.output:
            raise ValueError(
                "`output` is a folder of this machine, where the run is locked and resumed — write `publish: "
                f"{self.output}` to have the finished run copied there"
            )
        if self.publish is not None and "://" not in self.publish:
            raise ValueError("`publish` is the URL of a store, such as s3://bucket/runs; `output` names a folder here")
        if not isinstance(self.method.get("name"), str):
            raise ValueError("`method` needs a `name`, such as {name: qlora, rank: 64}")
        return self

    @property
    def task_name(self) -> str:
        """The one key of `task`."""
        return next(iter(self.task))

    @property
    def task_settings(self) -> Any:
        """The value of that key."""
        return self.task[self.task_name]

    @property
    def method_settings(self) -> dict[str, Any]:
        """The method's settings without its name."""
        return {key: value for key, value in self.method.items() if key != "name"}


def long_forms(values: Any) -> Any:
    """`data: FOLDER`, `method: lora`, `task: answer`, `score: exact` written out."""
    if not isinstance(values, dict):
        return values
    values = dict(values)
    for key, inner in (("model", "path"), ("data", "train"), ("method", "name")):
        if isinstance(values.get(key), str):
            values[key] = {inner: values[key]}
    if isinstance(values.get("task"), str):
        values["task"] = {values["task"]: {}}
    if isinstance(values.get("score"), str):
        values["score"] = [values["score"]]
    return values


def one_task(task: dict[str, Any] | None) -> None:
    """A `task` holds exactly one key, its name.

    Raises:
        ValueError: naming what was found instead.
    """
    if task is not None and len(task) != 1:
        raise ValueError(f"`task` names exactly one task (found {', '.join(map(str, task)) or 'none'})")
