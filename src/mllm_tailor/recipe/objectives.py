"""Settings of the objectives that a recipe may choose instead of cross-entropy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import Field, model_validator

from mllm_tailor.recipe.settings import Settings


@dataclass(frozen=True)
class ReplySampling:
    """How replies of the model itself are sampled and scored while it is trained."""

    count: int  # replies to each sample
    metric: str | dict[str, float] | None  # None: the metric that decides the run
    temperature: float
    top_p: float
    constrained: bool | None  # None: as in `predict`
    max_new_tokens: int | None  # likewise


class Distill(Settings):
    """Distillation from a larger model. `distill: NAME` is short for `distill: {teacher: NAME}`.

    With `of: replies` the student learns from the teacher on replies of its own (GKD, Agarwal et al. 2024,
    2306.13649): it meets the mistakes that it makes, which labels never show.
    """

    teacher: str = Field(description="folder or hub id; `logits` and `replies` need the vocabulary of the student")
    revision: str | None = Field(None, description="hub revision of the teacher (a commit)")
    of: Literal["logits", "vision", "replies"] = Field(
        "logits",
        description="logits of the answers, hidden states of the vision tower (labels are not used), or logits of "
        "replies that the student samples",
    )
    weight: float = Field(
        0.5, gt=0, le=1, description="logits: share of the teacher in the loss; the labels have the rest"
    )
    temperature: float | None = Field(
        None,
        gt=0,
        le=100,
        description="temperature of the probabilities of teacher and student (logits: 2, replies: 1)",
    )
    top_k: int = Field(
        32, ge=1, le=4096, description="logits: most likely tokens kept of each prediction of the teacher"
    )
    layers: int = Field(4, ge=1, description="vision: number of last layers compared between the vision towers")
    divergence: float = Field(
        0.5,
        ge=0,
        le=1,
        description="replies: 0 is the KL divergence from the teacher to the student, 1 the reverse, which follows the "
        "teacher's likeliest replies; between them the generalised Jensen-Shannon divergence",
    )
    own_share: float = Field(
        1.0, ge=0, le=1, description="replies: share of the samples with a reply of the student; the others' labels"
    )
    max_new_tokens: int | None = Field(
        None, ge=1, description="replies: longest reply that is sampled; default: as in `predict`"
    )

    @property
    def softmax_temperature(self) -> float:
        """The temperature, with its default."""
        return self.temperature or (1.0 if self.of == "replies" else 2.0)

    @property
    def sampling(self) -> ReplySampling | None:
        """How the student's replies are sampled, where they are: as it would write them."""
        if self.of != "replies" or not self.own_share:
            return None
        return ReplySampling(1, None, 1.0, 1.0, None, self.max_new_tokens)


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


@dataclass(frozen=True)
class Clipping:
    """Between which probability ratios a policy step has a gradient: 1 - `low` to 1 + `high`."""

    low: float
    high: float


class Reward(Settings):
    """Learn from the score of the model's own sampled replies: a group of them for each training sample.

    Replies of a group that score above its mean become likelier. A stage after ordinary tuning. The losses are those of
    GRPO (Shao et al. 2024), Dr. GRPO (Liu et al. 2025), RLOO (Ahmadian et al. 2024), GSPO (Zheng et al. 2025) and DAPO
    (Yu et al. 2025).
    """

    metric: str | dict[str, float] | None = Field(
        None,
        description="a metric, `module:function` of an installed package, or several with their weights; default: the "
        "metric that decides the run",
    )
    loss: Literal["grpo", "dr_grpo", "rloo", "gspo", "dapo"] = Field("grpo", description="the policy loss")
    group_size: int = Field(8, ge=2, le=256, description="replies sampled for each training sample")
    temperature: float = Field(1.0, gt=0, le=5, description="of sampling")
    top_p: float = Field(1.0, gt=0, le=1, description="sample among the likeliest tokens of this probability in all")
    constrained: bool | None = Field(
        None, description="whether sampled replies follow the task's schema; default: as in `predict`"
    )
    max_new_tokens: int | None = Field(None, ge=1, description="of a sampled reply; default: as in `predict`")
    kl_weight: float = Field(
        0.0, ge=0, le=10, description="weight of the divergence from the start (the adapter switched off)"
    )
    epsilon: float | None = Field(
        None, gt=0, lt=1, description="clipping of the probability ratio, downwards (0.2; gspo: 0.0003)"
    )
    epsilon_high: float | None = Field(
        None, gt=0, le=10, description="the same upwards (as `epsilon`; dapo: 0.28, gspo: 0.0004)"
    )
    updates: int = Field(1, ge=1, le=64, description="optimizer steps on the same sampled replies")
    truncated: Literal["keep", "leave_out"] | None = Field(
        None, description="replies cut off at `max_new_tokens`: scored as they are, or without a loss (dapo)"
    )

    @property
    def sampling(self) -> ReplySampling:
        """How replies are sampled and scored."""
        return ReplySampling(
            self.group_size, self.metric, self.temperature, self.top_p, self.constrained, self.max_new_tokens
        )

    @property
    def clipping(self) -> Clipping:
        """The clipping, with the defaults of the loss: DAPO section 3.1, GSPO section 5.1."""
        low, high = {"gspo": (3e-4, 4e-4), "dapo": (0.2, 0.28)}.get(self.loss, (0.2, None))
        low = self.epsilon if self.epsilon is not None else low
        return Clipping(low, self.epsilon_high if self.epsilon_high is not None else (high or low))

    @property
    def leaves_out_truncated(self) -> bool:
        """Whether a reply that was cut off has no loss: DAPO section 3.4."""
        return (self.truncated or ("leave_out" if self.loss == "dapo" else "keep")) == "leave_out"

    @model_validator(mode="after")
    def _weights(self) -> Reward:
        if isinstance(self.metric, dict) and not any(self.metric.values()):
            raise ValueError("`metric`: give at least one metric a weight other than 0")
        return self
