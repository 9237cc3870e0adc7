"""What a recipe may say. Every setting is declared here once, with its meaning, unit and default.

Tasks, methods and metrics bring their own settings (a registered class each), so adding one never edits this file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

PARTS = ("vision", "projector", "language", "audio", "head")
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"  # of what names a folder


class Settings(BaseModel):
    """Base of every settings class: frozen, typed, and unknown words are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, validate_default=True)
    renamed: ClassVar[Mapping[str, str]] = {}  # earlier names of settings, refused with the present one


class Tiles(Settings):
    """How a picture is cut into square tiles before the vision tower (InternVL's dynamic resolution)."""

    min: int = Field(1, ge=1, le=64, description="fewest tiles a picture is cut into")
    max: int = Field(12, ge=1, le=64, description="most tiles, the thumbnail not counted")
    thumbnail: bool = Field(True, description="append the whole picture as one more tile when there are several")


class Units(Settings):
    """Recordings as words: the sound in clusters of 20 ms frames, each cluster a new token of the language model."""

    features: str = Field("cepstrum", description="`cepstrum` (no download), or a folder of HuBERT or wav2vec 2.0")
    layer: int = Field(6, ge=0, le=96, description="hidden layer taken of such a model")
    count: int = Field(100, ge=2, le=5000, description="clusters, and new tokens")
    level: float = Field(-26.0, ge=-60, le=0, description="decibels below full scale every recording is brought to")
    highest: float | None = Field(
        None, gt=500, le=7600, description="highest frequency of the cepstrum in Hz; default: what the recordings hold"
    )
    codebook: str | None = Field(None, description="file of clusters; default: fitted on the training recordings once")


class ModelSpec(Settings):
    """Which checkpoint, and how it is opened. `model: NAME` is short for `model: {path: NAME}`."""

    renamed: ClassVar[Mapping[str, str]] = {"tile": "tile_size"}

    path: str = Field(
        "embedded", description="`embedded`, `tiny` (untrained, 1.8 million weights), a hub id, or a folder"
    )
    revision: str | None = Field(None, description="hub revision (a commit); pinned in the run when left open")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="number format of frozen weights; auto: bfloat16 where the processor has it"
    )
    device: str | None = Field(None, description="cpu, cuda, cuda:1; default: the first GPU, else the CPU")
    tiles: Tiles | None = Field(None, description="default: what the checkpoint says")
    tile_size: int | None = Field(
        None, ge=28, le=1344, description="pixels along a tile's side, fewer being quicker; default: the checkpoint's"
    )
    frames: int = Field(8, ge=1, le=256, description="pictures a clip is shown as, evenly spread, one tile each")
    units: Units | None = Field(None, description="recordings as words, for models that read none")
    trim: bool = Field(
        False, description="cut blank margins off pictures and clips, so that a small receipt or hand fills its tiles"
    )
    system: str | None = Field(None, description="system text; default: the checkpoint's own")


class HeldOut(Settings):
    """Which samples are kept from training and used for the final score. Exactly one way."""

    fraction: float | None = Field(None, gt=0, lt=1, description="share of the samples")
    fixed: bool = Field(
        False, description="each file (or group) by its own name, so sets about the same files hold out the same ones"
    )
    group_by: str | None = Field(None, description="field or column; its groups are kept whole on one side")
    stratify_by: str | None = Field(
        None, description="field or column, such as the class; of each of its values the same share is held out"
    )
    column: str | None = Field(None, description="column that names the part, such as `split`")
    value: str | list[str] | None = Field(None, description="value(s) of `column` that are held out")
    folder: str | None = Field(None, description="a second folder with the same layout")

    @model_validator(mode="after")
    def _one_way(self) -> HeldOut:
        ways = [way for way in ("fraction", "column", "folder") if getattr(self, way) is not None]
        if len(ways) != 1:
            raise ValueError(f"say exactly one of fraction, column, folder (found {' and '.join(ways) or 'none'})")
        if (self.column is None) != (self.value is None):
            raise ValueError("`column` and `value` belong together: column: split, value: dev")
        if self.stratify_by is not None and (self.fraction is None or self.fixed):
            raise ValueError("`stratify_by` belongs to `fraction`, without `fixed`")
        return self


class Source(Settings):
    """More samples to learn from, mixed into every epoch beside `data.train`. Say `weight` or `repeat`, not both."""

    name: str | None = Field(None, pattern=NAME, description="what plan and ledger call it; default: the folder's name")
    train: str = Field(description="folder or file of labelled samples")
    layout: str | None = Field(None, description="layout name when recognition should not decide")
    media_root: str | None = Field(None, description="folder outside `train` that its rows may name media in")
    task: dict[str, Any] | None = Field(None, description="what its samples ask; default: the recipe's task")
    limit: int | None = Field(None, ge=1, description="use only this many of its samples (a seeded choice)")
    repeat: float | None = Field(
        None, gt=0, le=1000, description="times each sample is seen in an epoch; 0.5: a seeded half is; default: once"
    )
    weight: float | None = Field(
        None, gt=0, le=1000, description="its samples in an epoch for each sample of `data.train`"
    )

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, values: Any) -> Any:
        return long_forms({"train": values} if isinstance(values, str) else values)

    @model_validator(mode="after")
    def _one_amount(self) -> Source:
        if self.repeat is not None and self.weight is not None:
            raise ValueError("say `repeat` (times each sample) or `weight` (share beside data.train), not both")
        one_task(self.task)
        return self


class DataSpec(Settings):
    """Where the labelled samples are. `data: FOLDER` is short for `data: {train: FOLDER}`."""

    renamed: ClassVar[Mapping[str, str]] = {"transcripts": "transcription_share"}

    train: str = Field(description="folder or file of labelled samples; its layout is recognised")
    layout: str | None = Field(None, description="layout name when recognition should not decide")
    media_root: str | None = Field(None, description="folder outside `train` that its rows may name media in")
    held_out: HeldOut = Field(HeldOut(fraction=0.1), description="samples kept for the final score")
    dev: float = Field(
        0.05, ge=0, lt=0.5, description="share of the training samples used to choose the best epoch; 0: last epoch"
    )
    faulty: Literal["refuse", "exclude"] = Field(
        "refuse", description="faulty samples refuse the run, or take no part and get a line in the ledger"
    )
    corrections: str | None = Field(
        None, description="decisions of `tailor audit`: labels they fix are replaced as they are read, by the ledger"
    )
    transcription_share: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of the training samples also used to learn transcription, where the data bring `ocr`",
    )
    limit: int | None = Field(None, ge=1, description="use only this many training samples (a seeded choice)")
    limit_held_out: int | None = Field(
        None, ge=1, description="score only this many held-out samples (a seeded choice)"
    )
    sources: list[Source] = Field([], description="more data mixed in, such as general data against forgetting")


class Distill(Settings):
    """Learn from a larger model beside the labels. `distill: NAME` is short for `distill: {teacher: NAME}`."""

    teacher: str = Field(description="a folder or hub id; `logits` needs the student's vocabulary")
    revision: str | None = Field(None, description="hub revision of the teacher (a commit)")
    of: Literal["logits", "vision"] = Field(
        "logits", description="logits of the answers, or hidden states of the vision tower (no labels then)"
    )
    weight: float = Field(0.5, gt=0, le=1, description="share of the teacher in the loss, the labels have the rest")
    temperature: float = Field(2.0, gt=0, le=100, description="softens both sides' probabilities")
    top_k: int = Field(32, ge=1, le=4096, description="most likely tokens kept of each of the teacher's predictions")
    layers: int = Field(4, ge=1, description="last layers of the vision towers that are compared")


@dataclass(frozen=True)
class PreferWeights:
    """Numbers of a preference loss: see `Prefer`."""

    beta: float
    answer: float
    quality: float
    margin: float


class Prefer(Settings):
    """Preference tuning: the label against the rejected reply of a row, or against the model's own wrong reading.

    DPO is the common choice. MPO adds the quality of each answer and the likelihood of the label, as InternVL 2.5 to
    3.5 were trained; KTO needs no pairs; SimPO and ORPO need no reference model.
    """

    loss: Literal["dpo", "mpo", "kto", "simpo", "orpo"] = Field("dpo", description="the preference loss")
    beta: float | None = Field(
        None,
        gt=0,
        le=100,
        description="strength: how closely the model is held to its start (dpo, mpo, kto: 0.1), scale of the "
        "log-probabilities per token (simpo: 2.0), weight of the odds ratio (orpo: 0.1)",
    )
    answer_weight: float | None = Field(
        None, ge=0, le=10, description="weight of the right answer's own loss per token (mpo: 1; others: 0)"
    )
    quality_weight: float | None = Field(
        None, ge=0, le=1, description="mpo: weight of the quality loss, the preference loss has the rest (0.2)"
    )
    margin: float | None = Field(None, ge=0, le=100, description="simpo: by how much the label must be likelier (1.0)")

    @property
    def weights(self) -> PreferWeights:
        """The settings with the defaults of their loss."""
        beta, answer, quality, margin = self.beta, self.answer_weight, self.quality_weight, self.margin
        return PreferWeights(
            beta=beta if beta is not None else (2.0 if self.loss == "simpo" else 0.1),
            answer=answer if answer is not None else float(self.loss == "mpo"),
            quality=0.2 if quality is None else quality,
            margin=1.0 if margin is None else margin,
        )

    @model_validator(mode="after")
    def _settings_of_the_loss(self) -> Prefer:
        for name, loss in (("quality_weight", "mpo"), ("margin", "simpo")):
            if getattr(self, name) is not None and self.loss != loss:
                raise ValueError(f"`{name}` is a setting of `loss: {loss}`")
        if self.loss == "orpo" and self.answer_weight:
            raise ValueError("`loss: orpo` holds the right answer's loss already: leave `answer_weight` out")
        return self


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
    steps: int | None = Field(None, ge=1, description="optimizer steps in all, in place of `epochs`")
    batch_size: int = Field(16, ge=1, description="samples per optimizer step")
    micro_batch_size: int | None = Field(None, ge=1, description="samples per forward pass; default: chosen by memory")
    learning_rate: float | None = Field(
        None, gt=0, le=10, description="peak rate; default: the method's own (docs/methods.md)"
    )
    schedule: Literal["cosine", "linear", "constant"] = Field("cosine", description="shape after the warm-up")
    warmup_ratio: float = Field(0.05, ge=0, lt=1, description="fraction of the steps in which the rate rises")
    weight_decay: float = Field(0.0, ge=0, le=1, description="decoupled decay of the trained weights")
    max_grad_norm: float | None = Field(1.0, gt=0, description="largest gradient norm; null: no clipping")
    optimizer: str = Field("adamw", description="see `tailor methods`")
    loss: Literal["answer", "all"] = Field(
        "answer", description="tokens that carry loss; `all` only to copy old recipes"
    )
    distill: Distill | None = Field(None, description="learn from a larger model")
    prefer: Prefer | None = Field(None, description="prefer labels to rejected replies: DPO, MPO, KTO, SimPO, ORPO")
    checkpoint_every: float = Field(5.0, gt=0, description="minutes between checkpoints")
    keep_checkpoints: int = Field(2, ge=1, description="checkpoints kept")
    evaluate_every: float = Field(1.0, gt=0, description="epochs between scores on the dev part")
    gradient_checkpointing: bool | Literal["auto"] = Field("auto", description="recompute activations to save memory")
    processes: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto",
        description="processes that share each training step. auto: on a CPU, one per core where the training is long "
        "and micro-batches and memory suffice; on a GPU, one. With several GPUs: their number",
    )
    max_minutes: float | None = Field(
        None, gt=0, description="stop after this many minutes of training; the schedule shortens with them"
    )
    tiles: Tiles | None = Field(None, description="other tiles while training than in use; only to copy old recipes")
    one_modality: bool = Field(
        False, description="each step's samples are all pictures, all clips, all recordings or all text"
    )
    modality_parts: dict[str, list[str]] = Field(
        {},
        description="parts that samples of a kind may move, such as {text: [language]}; other kinds move all that is "
        "trained; needs `one_modality`",
    )
    augment: bool = Field(
        False, description="small random turns, scales and light of training pictures and clips, speeds of recordings"
    )

    def passes(self, count: int) -> float:
        """Epochs over `count` training samples."""
        return self.epochs if self.steps is None else self.steps / math.ceil(count / self.batch_size)

    @model_validator(mode="after")
    def _kinds_apart(self) -> Train:
        if self.modality_parts and not self.one_modality:
            raise ValueError("`modality_parts` needs steps of one kind of samples: say one_modality: true")
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

    batch_size: int = Field(8, ge=1, description="samples decoded side by side")
    num_beams: int = Field(
        1, ge=1, le=64, description="readings of a sample kept side by side, of which the likeliest whole one counts"
    )
    max_new_tokens: int = Field(512, ge=1, le=32_768, description="longest reply, in tokens")
    constrained: bool = Field(True, description="hold the reply to the task's JSON schema")
    fields: Literal["together", "side_by_side"] = Field(
        "together",
        description="`side_by_side` decodes each field of a constrained reply in its own sequence, behind one "
        "reading of the document: fewer steps, but no field sees the others, so score it first "
        "(docs/performance.md); max_new_tokens is then of each field",
    )
    likelihood: bool = Field(
        True, description="where a task has a closed set of replies, take the likeliest of them instead of writing one"
    )
    weights: Literal["as_trained", "unquantised"] = Field(
        "as_trained", description="base under the adapter; `unquantised` after QLoRA only to copy old recipes"
    )


class Stage(Settings):
    """One stage: what it says stands in place of the common part's, and the weights of the stage before go on.

    `data` that names `train`, and `method` that names a method, stand alone; otherwise they change single settings of
    the common part's, as `train` and `predict` always do.
    """

    name: str = Field(pattern=NAME, description="names the stage's folder, such as 1-captions")
    data: dict[str, Any] | None = Field(None, description="the labelled samples of this stage")
    task: dict[str, Any] | None = Field(None, description="the task of this stage")
    method: dict[str, Any] | None = Field(None, description="what is trained in this stage")
    train: dict[str, Any] | None = Field(None, description="settings of the training loop that differ")
    predict: dict[str, Any] | None = Field(None, description="settings of generation that differ")
    score: list[str] | None = Field(None, description="metrics of this stage")
    score_by: list[str] | None = Field(None, description="columns to break the scores of this stage down by")

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, values: Any) -> Any:
        return long_forms(values)


class Recipe(Settings):
    """One YAML file that says everything about a tailoring job."""

    name: str = Field("run", pattern=NAME, description="names the run folder")
    seed: int = Field(0, ge=0, lt=2**63, description="seed of every random choice")
    model: ModelSpec = Field(ModelSpec(), description="the checkpoint")
    data: DataSpec = Field(description="the labelled samples")
    task: dict[str, Any] = Field(description="one task with its settings, such as `extract: {total: string}`")
    method: dict[str, Any] = Field({"name": "qlora"}, description="what is trained; see `tailor methods`")
    train: Train = Field(Train(), description="the training loop")
    predict: Predict = Field(Predict(), description="generation")
    score: list[str] = Field([], description="metrics, the first decides; default: the task's own")
    score_by: list[str] = Field([], description="fields or columns to break the scores down by, such as speaker")
    output: str = Field("runs", description="folder that receives the run folder")
    stages: list[Stage] = Field([], description="trained one after another, each from the weights of the one before")

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, values: Any) -> Any:
        values = long_forms(values)
        stages = values.get("stages") if isinstance(values, dict) else None
        if isinstance(stages, list):  # what every stage says for itself need not be said in common
            for key in ("data", "task"):
                said = [stage.get(key) for stage in stages if isinstance(stage, dict)]
                if key not in values and said and all(said) and len(said) == len(stages):
                    values[key] = said[0]
            values = long_forms(values)
        return values

    @model_validator(mode="after")
    def _one_task(self) -> Recipe:
        one_task(self.task)
        if not isinstance(self.method.get("name"), str):
            raise ValueError("`method` needs a `name`, such as {name: qlora, rank: 64}")
        return self

    @property
    def task_name(self) -> str:
        """The one key of `task`."""
        return next(iter(self.task))

    @property
    def task_settings(self) -> Any:
        """What stands under it."""
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
