"""Train the demo checkpoint: `python -m examples.train_demo --out DIR`.

A small StarCoder2 (grouped-query attention, biases, a window far shorter than its context) with a
byte-level tokenizer built like StarCoder2's, trained on Python's standard library, half of it in
fill-in-the-middle form. It stands in for the real weights wherever those cannot be had.

Every batch depends on the seed and its step alone, so a stopped run goes on where it was and gives
the same weights. On two CPU cores it takes over an hour; with --device cuda, minutes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import Starcoder2Config, Starcoder2ForCausalLM

from examples.corpus import Sample, SourceFile, draw_sample, load_corpus
from examples.special_tokens import SPECIAL_TOKENS
from runtimes.contract import SpecialIds
from runtimes.prompts.fim import Context, generate_ids, infill_ids

SEED = 20261123
VOCABULARY = 4096
ROW_TOKENS = 1024
BATCH_ROWS = 8
PEAK_LEARNING_RATE = 4e-3  # guessed: no search was made
WARM_UP_STEPS = 60
SAVE_EVERY_STEPS = 50
IGNORED = -100  # torch's label for "no loss here"

SPECIAL_IDS = SpecialIds()
END = SPECIAL_IDS.endoftext

CONFIG = {
    "architectures": ["Starcoder2ForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": END,
    "embedding_dropout": 0.0,
    "eos_token_id": END,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_size": 256,
    "initializer_range": 0.02,
    "intermediate_size": 1024,
    "max_position_embeddings": 4096,
    "mlp_type": "default",
    "model_type": "starcoder2",
    "norm_epsilon": 1e-05,
    "norm_type": "layer_norm",
    "num_attention_heads": 4,
    "num_hidden_layers": 6,
    "num_key_value_heads": 2,
    "residual_dropout": 0.0,
    "rope_theta": 100000.0,
    "sliding_window": 256,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_bias": True,
    "use_cache": True,
    "vocab_size": VOCABULARY,
}


def train_tokenizer(files: list[SourceFile]) -> Tokenizer:
    """A byte-level BPE with StarCoder2's pre-tokenizer, decoder and special ids."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((file.text for file in files), trainer)
    return tokenizer


class Batches:
    """Rows of packed samples; `at(step)` is a function of the seed and the step alone."""

    def __init__(self, files: list[SourceFile], tokenizer: Tokenizer) -> None:
        self.files = files
        self.cumulative = list(itertools.accumulate(file.weight for file in files))
        self.tokenizer = tokenizer

    def encode(self, text: str) -> list[int]:
        """Ids of user text: control strings in it stay text."""
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def ids(self, sample: Sample) -> list[int]:
        """The sample as a prompt and its completion, without the closing end id."""
        context = Context(path=sample.path)
        if sample.suffix is None:
            return generate_ids(self.encode, SPECIAL_IDS, sample.prefix, context)
        prompt = infill_ids(self.encode, SPECIAL_IDS, sample.prefix, sample.suffix, context)
        return prompt + self.encode(sample.middle)

    def row(self, rng: random.Random) -> tuple[list[int], list[int]]:
        """ROW_TOKENS + 1 ids and their labels: an end id that ends no text carries no loss."""
        ids: list[int] = []
        labels: list[int] = []
        while len(ids) <= ROW_TOKENS:
            sample = draw_sample(self.files, self.cumulative, rng)
            tokens = self.ids(sample)
            ends = sample.suffix is not None or sample.ends_file
            ids += [*tokens, END]
            labels += [*tokens, END if ends else IGNORED]
        return ids[: ROW_TOKENS + 1], labels[: ROW_TOKENS + 1]

    def at(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(ids, labels), each (BATCH_ROWS, ROW_TOKENS), labels shifted by one."""
        rng = random.Random(f"{SEED}:{step}")
        rows = [self.row(rng) for _ in range(BATCH_ROWS)]
        ids = torch.tensor([row[0][:-1] for row in rows])
        labels = torch.tensor([row[1][1:] for row in rows])
        return ids, labels


def build_optimizers(model: torch.nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for the embedding, norms and biases."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    return [
        torch.optim.Muon(
            matrices, lr=PEAK_LEARNING_RATE, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(others, lr=PEAK_LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def learning_rate(step: int, steps: int) -> float:
    """Linear warm-up, then linear decay to zero over the run."""
    return PEAK_LEARNING_RATE * min((step + 1) / WARM_UP_STEPS, 1.0) * (1.0 - step / steps)


def train(out: Path, steps: int, device: str) -> None:
    """Train to `steps`, saving the state beside the output; resumes from that state."""
    train_files, _, corpus_sha256 = load_corpus()
    out.mkdir(parents=True, exist_ok=True)
    tokenizer_file = out / "tokenizer.json"
    if not tokenizer_file.exists():
        train_tokenizer(train_files).save(str(tokenizer_file))
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    tokenizer.encode_special_tokens = True
    batches = Batches(train_files, tokenizer)

    torch.manual_seed(SEED)
    model = Starcoder2ForCausalLM(Starcoder2Config(**CONFIG)).to(device, torch.float32).train()
    optimizers = build_optimizers(model)
    state_file = out / "state.pt"
    first = 0
    if state_file.exists():
        state = torch.load(state_file, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        first = state["step"]

    started = time.perf_counter()
    for step in range(first, steps):
        loss = train_step(model, optimizers, batches.at(step), learning_rate(step, steps), device)
        done = step + 1
        if done % 10 == 0:
            per_step_s = (time.perf_counter() - started) / (done - first)
            left_min = per_step_s * (steps - done) / 60
            print(f"step {done}/{steps}  loss {loss:.3f} nats  {left_min:.0f} min left", flush=True)
        if done % SAVE_EVERY_STEPS == 0 or done == steps:
            states = [optimizer.state_dict() for optimizer in optimizers]
            partial = state_file.with_suffix(".partial")
            torch.save({"model": model.state_dict(), "optimizers": states, "step": done}, partial)
            os.replace(partial, state_file)
    save_checkpoint(model, out, {"corpus_sha256": corpus_sha256, "steps": steps, "seed": SEED})


def train_step(
    model: torch.nn.Module,
    optimizers: list[torch.optim.Optimizer],
    batch: tuple[torch.Tensor, torch.Tensor],
    rate: float,
    device: str,
) -> float:
    """One update; returns the loss in nats per token."""
    ids, labels = (tensor.to(device) for tensor in batch)
    with torch.autocast(device, torch.bfloat16):
        logits = model(ids, use_cache=False).logits
    loss = torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED
    )
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return loss.item()


def save_checkpoint(model: torch.nn.Module, out: Path, training: dict[str, object]) -> None:
    """Write config.json, model.safetensors (bf16, tied head left out) and training.json."""
    tensors = {
        name: tensor.to("cpu", torch.bfloat16).contiguous()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"
    }
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    (out / "training.json").write_text(json.dumps(training, indent=2) + "\n")


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("examples/demo"))
    parser.add_argument("--steps", type=int, default=2200)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    arguments = parser.parse_args()
    train(arguments.out, arguments.steps, arguments.device)


if __name__ == "__main__":
    main()
