"""Our policy and preference losses and their gradients beside TRL's, on the same model, tokens, rewards and references.

    python benchmarks/trl_losses.py

TRL is installed at a pinned version, without its dependencies, into a temporary folder: torch and transformers are
those of this environment. A tiny random InternVL with LoRA reads pictures; its replies, their rewards and the
log-probabilities when they were sampled are drawn. TRL's own trainers compute advantages and loss from them
(`_generate` is replaced by the drawn replies), our objectives compute theirs, and both gradients of all trained weights
are compared. The reference is the model without its adapter. The largest differences are stored; more than 1e-5 is an
error.

SimPO and ORPO are compared as functions of the same log-probabilities (TRL's trainers of them are experimental, and its
ORPO also learns the prompt), and so is the divergence of on-policy distillation.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mllm_tailor.core.conversation import Conversation, as_conversation
from mllm_tailor.core.device import describe_machine, seed_everything
from mllm_tailor.core.io import write_json
from mllm_tailor.core.sample import Media, Sample
from mllm_tailor.methods import make_method
from mllm_tailor.methods.switch import adapters_off
from mllm_tailor.models import LoadedModel, collate, encode, load_model
from mllm_tailor.recipe import Train, make_recipe
from mllm_tailor.training import ObjectiveInputs, Rollout
from mllm_tailor.training.batches import LiveBatches
from mllm_tailor.training.objectives import preference_losses as ours
from mllm_tailor.training.objectives.base import Objective, ObjectiveContext
from mllm_tailor.training.objectives.cross_entropy import answer_log_probabilities
from mllm_tailor.training.objectives.on_policy import generalised_jsd
from mllm_tailor.training.objectives.preference import make_preference
from mllm_tailor.training.objectives.preference_losses import Answers
from mllm_tailor.training.objectives.reward import RewardObjective
from mllm_tailor.training.trainable import trained_weights

PIN = "trl==1.16.0"
RESULT = Path(__file__).parent / "results" / "trl_losses.json"
TOLERANCE = 1e-5
REPLIES = 4  # to each sample
LONGEST = 9  # tokens
TEMPERATURE = 0.8
KL = 0.05


@dataclass(frozen=True)
class Setting:
    """A model, samples, and drawn replies to them."""

    model: LoadedModel
    samples: Sequence[Conversation]
    tokens: Sequence[Sequence[int]]  # REPLIES to each sample
    rewards: Sequence[float]
    drift: Sequence[Tensor]  # of each reply: log-probabilities when it was sampled, less those of now

    def prompts(self) -> list[Any]:
        """The encoded prompt of every reply."""
        encoded = [encode(sample.unlabelled(), self.model) for sample in self.samples]
        return [item for item in encoded for _ in range(REPLIES)]


def make_setting(folder: Path) -> Setting:
    """Pictures of one and of three tiles; adapters that have moved away from the start."""
    samples = []
    for number, size in enumerate(((56, 56), (150, 60), (60, 120))):
        path = folder / f"{number}.png"
        Image.effect_noise(size, 60).convert("RGB").save(path)
        samples.append(Sample(str(number), (Media("image", path),), "Total?"[: 4 + number], f"total {number}{number}"))
    recipe = make_recipe({"data": "", "task": "answer", "model": "tiny", "method": {"name": "lora", "rank": 4}})
    model = load_model("tiny", dtype="float32", device="cpu")
    seed_everything(0)
    make_method(recipe).apply(model)
    model.model.eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in trained_weights(model).values():
            weight.add_(0.05 * torch.randn(weight.shape, generator=generator))
    count = REPLIES * len(samples)
    lengths = torch.randint(2, LONGEST + 1, (count,), generator=generator).tolist()
    tokens = [torch.randint(97, 123, (length,), generator=generator).tolist() for length in lengths]
    rewards = (torch.randint(0, 9, (count,), generator=generator) / 8).tolist()
    drift = [0.3 * torch.randn(length, generator=generator) for length in lengths]
    return Setting(model, [as_conversation(sample) for sample in samples], tokens, rewards, drift)


def gradients(model: LoadedModel, loss: Tensor) -> dict[str, Tensor]:
    """Of all trained weights."""
    model.model.zero_grad(set_to_none=True)
    loss.backward()
    return {name: weight.grad.clone() for name, weight in trained_weights(model).items() if weight.grad is not None}


def difference(model: LoadedModel, own: Tensor, other: Tensor) -> dict[str, float]:
    """The largest of both losses and gradients; `gradient_size` is the largest entry of ours."""
    left, right = gradients(model, own), gradients(model, other)
    assert left.keys() == right.keys()
    return {
        "loss": float(own),
        "loss_difference": abs(float(own) - float(other)),
        "gradient_size": max(float(part.abs().max()) for part in left.values()),
        "gradient_difference": max(float((left[name] - right[name]).abs().max()) for name in left),
    }


def our_batch(objective: Objective, count: int) -> tuple[dict[str, Any], tuple[int, ...]]:
    """The one micro-batch of a step on all samples."""
    indices = objective.expand_indices(range(count))
    return LiveBatches(objective.model, objective.samples, "answer", None).batch(indices, 0), indices


def policy(setting: Setting, loss: str, kl: float) -> tuple[Tensor, dict[str, Tensor]]:
    """Our loss, and the log-probabilities of each reply's tokens: now, when they were sampled, under the reference."""
    groups = [
        [
            Rollout(list(setting.tokens[row]), list(range(len(setting.tokens[row]))), setting.rewards[row])
            for row in range(REPLIES * index, REPLIES * (index + 1))
        ]
        for index in range(len(setting.samples))
    ]
    reward = {"loss": loss, "group_size": REPLIES, "temperature": TEMPERATURE, "kl_weight": kl, "epsilon": 0.2}
    train = Train(reward={**reward, "epsilon_high": 0.28})
    inputs = ObjectiveInputs(sample_replies=lambda _, __: groups, longest_reply=LONGEST)
    objective = RewardObjective(ObjectiveContext(setting.model, setting.samples, train, inputs=inputs))
    count = len(setting.samples)
    objective.start_step(0, range(count), 0)
    batch, indices = our_batch(objective, count)
    with torch.no_grad():  # which also notes the log-probabilities of now
        objective.loss(dict(batch), indices)
    known = {}
    for row, key in enumerate((index, replica) for index in range(count) for replica in range(REPLIES)):
        objective.old[key] = objective.old[key] + setting.drift[row]
        known[f"{row}"] = objective.old[key]
    return objective.loss(dict(batch), indices) / count, known


def trl_policy(setting: Setting, loss: str, kl: float, old: dict[str, Tensor]) -> Tensor:
    """The loss of TRL's trainer, from the same replies and rewards."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    count = len(setting.tokens)
    common: dict[str, Any] = {
        "output_dir": tempfile.mkdtemp(), "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "beta": 0.0,
        "report_to": [], "per_device_train_batch_size": count, "num_generations": REPLIES, "epsilon": 0.2,
        "epsilon_high": 0.28, "temperature": TEMPERATURE, "max_completion_length": LONGEST,
    }  # fmt: skip
    if loss == "rloo":
        cls, config = RLOOTrainer, RLOOConfig(**common, normalize_advantages=False)
    else:
        level = "sequence" if loss == "gspo" else "token"
        kind = "grpo" if loss == "gspo" else loss
        scale = "none" if loss == "dr_grpo" else "group"
        config = GRPOConfig(
            **common, loss_type=kind, importance_sampling_level=level, scale_rewards=scale, use_bias_correction_kl=False
        )
        cls = GRPOTrainer
    network = setting.model.model
    forward = network.forward
    trainer = cls(
        model=network,
        reward_funcs=lambda completions, **_: list(setting.rewards),
        args=config,
        train_dataset=Dataset.from_list([{"prompt": "x"}] * count),
        processing_class=setting.model.tokenizer,
    )
    prompts = setting.prompts()
    ids = [prompt.ids.tolist() for prompt in prompts]
    replies, texts = [list(reply) for reply in setting.tokens], ["x"] * count
    short = [[1]] * count  # the pictures are handed over below
    made = (short, replies, texts) if loss == "rloo" else (short, replies, None, texts, None, {}, None, None)
    trainer._generate = lambda _: made
    trainer.current_gradient_accumulation_steps = 1
    network.eval()
    inputs = trainer._generate_and_score_completions([{"prompt": "x"} for _ in range(count)])
    width = max(map(len, ids))
    pad = setting.model.pad_id
    inputs["prompt_ids"] = torch.tensor([[pad] * (width - len(row)) + row for row in ids])
    inputs["prompt_mask"] = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ids])
    images = [collate([prompt], setting.model, side="right")["pixel_values"] for prompt in prompts]
    inputs["pixel_values"] = torch.cat(images)
    inputs["num_tiles"], inputs["num_images"] = [len(part) for part in images], [1] * count
    longest = inputs["completion_ids"].shape[1]
    before = [torch.nn.functional.pad(old[f"{row}"], (0, longest - len(old[f"{row}"]))) for row in range(count)]
    inputs["old_per_token_logps"] = torch.stack(before)
    inputs["old_logps"] = torch.stack([part.sum() for part in before])
    if kl:
        trainer.beta = kl
        everything = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
        mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
        pictures = {name: inputs[name] for name in ("pixel_values", "num_tiles", "num_images")}
        with torch.no_grad(), adapters_off(network):
            scores = trainer._get_per_token_logps_and_entropies(network, everything, mask, longest, **pictures)
        inputs["ref_per_token_logps"] = scores[0]
    try:
        network.train()  # TRL divides by its accumulation steps, here 1; nothing drops out
        return trainer._compute_loss(network, inputs)
    finally:
        network.eval()
        network.forward = forward


def preference(setting: Setting, loss: str) -> tuple[Tensor, Objective]:
    """Our loss; every sample has one wrong answer."""
    wrong = {sample.id: "none" + sample.id for sample in setting.samples}
    train = Train(prefer={"loss": loss, "beta": 0.3})
    objective = make_preference(
        ObjectiveContext(setting.model, setting.samples, train, inputs=ObjectiveInputs(rejected=wrong))
    )
    source = LiveBatches(setting.model, objective.samples, "answer", None)
    everything = range(len(objective.samples))
    with torch.no_grad(), adapters_off(setting.model.model):
        objective.reference = answer_log_probabilities(setting.model.model, source.batch(everything, 0))
    batch, indices = our_batch(objective, objective.num_samples)
    objective.start_step(0, range(objective.num_samples), 0)
    if objective.needs_two_passes:
        with torch.no_grad():
            objective.precompute(batch, indices)
    weight = sum(objective.loss_weight(index, ()) for index in range(objective.num_samples))
    return objective.loss(batch, indices) / weight, objective


def trl_preference(setting: Setting, loss: str, objective: Any) -> Tensor:
    """The loss of TRL's trainer on the same answers and reference log-probabilities."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer

    network = setting.model.model
    forward = network.forward
    common: dict[str, Any] = {
        "output_dir": tempfile.mkdtemp(), "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "beta": 0.3,
        "report_to": [], "per_device_train_batch_size": len(setting.samples), "disable_dropout": False,
    }  # fmt: skip
    rows = {"prompt": "x", "chosen": "y", "rejected": "z"} if loss == "dpo" else {
        "prompt": "x", "completion": "y", "label": True,
    }  # fmt: skip
    cls, config = (DPOTrainer, DPOConfig(**common)) if loss == "dpo" else (KTOTrainer, KTOConfig(**common))
    trainer = cls(
        model=network, ref_model=None if loss == "dpo" else load_model("tiny", dtype="float32", device="cpu").model,
        args=config, train_dataset=Dataset.from_list([rows] * 6), processing_class=setting.model.tokenizer,
    )  # fmt: skip
    trainer.precompute_ref_logps = True
    network.eval()
    count = len(setting.samples)
    encoded = [encode(sample, setting.model) for sample in objective.samples]

    def inputs_of(indices: Sequence[int]) -> dict[str, Tensor]:
        batch = dict(collate([encoded[index] for index in indices], setting.model, side="right"))
        batch["completion_mask"] = (batch.pop("labels") >= 0).long()
        return batch

    if loss == "dpo":
        inputs = inputs_of(range(2 * count))
        inputs["ref_chosen_logps"], inputs["ref_rejected_logps"] = objective.reference.chunk(2)
    else:
        inputs = inputs_of(range(2 * count))
        mismatched = [objective.first_mismatched + index for index in (*range(count), *range(count))]
        other = inputs_of(mismatched)
        inputs |= {f"KL_{name}": other[name] for name in ("input_ids", "attention_mask", "completion_mask")}
        inputs["label"] = torch.tensor([True] * count + [False] * count)
        inputs["ref_logps"] = objective.reference[: 2 * count]
        inputs["ref_KL_logps"] = objective.reference[mismatched]
    try:
        return trainer._compute_loss(network, inputs, return_outputs=False)
    finally:
        network.forward = forward


def of_log_probabilities(
    function: Callable[[Tensor, Tensor], Tensor], other: Callable[[Tensor, Tensor], Tensor]
) -> dict[str, float]:
    """Both as functions of the mean log-probabilities of chosen and rejected answers."""
    values = [torch.tensor([-0.3, -1.2, -2.5]), torch.tensor([-0.9, -0.4, -3.5])]
    results = []
    for loss in (function, other):
        leaves = [value.clone().requires_grad_() for value in values]
        total = loss(*leaves)
        total.backward()
        results.append((float(total), torch.cat([leaf.grad for leaf in leaves if leaf.grad is not None])))
    (left, left_gradient), (right, right_gradient) = results
    return {
        "loss": left, "loss_difference": abs(left - right), "gradient_size": float(left_gradient.abs().max()),
        "gradient_difference": float((left_gradient - right_gradient).abs().max()),
    }  # fmt: skip


def functions() -> dict[str, dict[str, float]]:
    """SimPO and the odds ratio of ORPO."""
    from trl.experimental.cpo import CPOTrainer
    from trl.experimental.orpo import ORPOTrainer

    def answers(chosen: Tensor, rejected: Tensor) -> tuple[Answers, Answers]:
        one = torch.ones(len(chosen))
        return Answers(chosen, chosen, one), Answers(rejected, rejected, one)

    device = SimpleNamespace(device=torch.device("cpu"))
    simpo = SimpleNamespace(
        alpha=0.0, beta=2.0, loss_type="simpo", simpo_gamma=0.7, label_smoothing=0.0, accelerator=device
    )
    orpo = SimpleNamespace(beta=0.2, accelerator=device)
    return {
        "simpo": of_log_probabilities(
            lambda chosen, rejected: ours.simpo(*answers(chosen, rejected), 2.0, 0.7),
            lambda chosen, rejected: CPOTrainer.cpo_loss(simpo, chosen, rejected)[0].sum(),
        ),
        "orpo, odds ratio": of_log_probabilities(
            lambda chosen, rejected: ours.orpo(*answers(chosen, rejected), 0.2) + chosen.sum(),
            lambda chosen, rejected: -ORPOTrainer.odds_ratio_loss(orpo, chosen, rejected)[0].sum(),
        ),
    }


def distillation() -> dict[str, dict[str, float]]:
    """The divergence of on-policy distillation, of three tokens."""
    from trl.experimental.gkd import GKDTrainer

    generator = torch.Generator().manual_seed(5)
    student, teacher = (3 * torch.randn(3, 50, generator=generator) for _ in range(2))
    rows = {}
    for beta in (0.0, 0.3, 1.0):
        results = []
        for other in (False, True):
            logits = student.clone().requires_grad_()
            if other:
                loss = GKDTrainer.generalized_jsd_loss(
                    logits[None], teacher[None], beta=beta, temperature=0.7, reduction="sum"
                )
            else:
                loss = generalised_jsd(logits, teacher, beta, 0.7).sum()
            loss.backward()
            results.append((float(loss), logits.grad))
        (left, left_gradient), (right, right_gradient) = results
        rows[f"gkd, divergence {beta}"] = {
            "loss": left, "loss_difference": abs(left - right), "gradient_size": float(left_gradient.abs().max()),
            "gradient_difference": float((left_gradient - right_gradient).abs().max()),
        }  # fmt: skip
    return rows


def compare(folder: Path) -> dict[str, dict[str, float]]:
    """Every loss."""
    setting = make_setting(folder)
    rows = {}
    for loss in ("grpo", "dr_grpo", "dapo", "gspo", "rloo"):
        for kl in (0.0,) if loss == "rloo" else (0.0, KL):  # TRL's RLOO takes the divergence from the reward
            own, old = policy(setting, loss, kl)
            rows[loss + (" and divergence" if kl else "")] = difference(
                setting.model, own, trl_policy(setting, loss, kl, old)
            )
    for loss in ("dpo", "kto"):
        own, objective = preference(setting, loss)
        rows[loss] = difference(setting.model, own, trl_preference(setting, loss, objective))
    return rows | functions() | distillation()


def main() -> None:
    """Install TRL, compare, store."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "trl"
        subprocess.run(
            [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(target), PIN], check=True
        )
        sys.path.insert(0, str(target))
        rows = compare(Path(folder))
    for name, row in rows.items():
        print(f"{name:22} loss {row['loss']:9.6f} differs by {row['loss_difference']:.1e}, gradient (largest entry "
              f"{row['gradient_size']:.2e}) by {row['gradient_difference']:.1e}")  # fmt: skip
    write_json(RESULT, {"trl": PIN, "torch": torch.__version__, "machine": describe_machine(), "losses": rows})
    worst = max(max(row["loss_difference"], row["gradient_difference"]) for row in rows.values())
    if not worst < TOLERANCE:
        sys.exit(f"a difference of {worst:.1e} is more than {TOLERANCE:.0e}")


if __name__ == "__main__":
    main()
