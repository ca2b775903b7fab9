"""Hugging Face Trainer: a small GPT-2 that learns to write Python docstrings, byte by byte. Labels
and the loss are inside the model's forward, so ``recompute`` selects them there.
"""

import inspect
import statistics
import tempfile
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel, TrainingArguments

import pfb
from pfb.integrations.transformers import BlockingTrainer

LENGTH = 64


def blocks(count: int) -> list[dict[str, torch.Tensor]]:
    """Runs of 64 bytes from the documentation of a module of the standard library."""
    docs = [inspect.getdoc(function) or "" for _, function in inspect.getmembers(statistics, callable)]
    codes = torch.tensor(list("\n\n".join(docs).encode()[: count * LENGTH]))
    return [{"input_ids": block, "labels": block} for block in codes.split(LENGTH) if len(block) == LENGTH]


def main(folder: str | None = None, epochs: int = 3, **options: Any) -> tuple[BlockingTrainer, dict[str, float]]:
    torch.manual_seed(0)
    size: dict[str, Any] = {"n_positions": LENGTH, "n_embd": 48, "n_layer": 3, "n_head": 4}
    config = GPT2Config(vocab_size=256, bos_token_id=0, eos_token_id=0, **size)
    model = GPT2LMHeadModel(config)
    schedule = pfb.window(0.4, stop=0.9)  # the Trainer says of how many steps
    memory = pfb.NeighbourMemory(64)  # at most a third of an epoch
    blocker = pfb.attach(model, prune=schedule, shallow="recompute", estimator=memory)
    arguments = TrainingArguments(
        folder or tempfile.mkdtemp(),
        num_train_epochs=epochs,
        per_device_train_batch_size=16,
        per_device_eval_batch_size=64,
        learning_rate=3e-3,
        logging_steps=10,
        report_to=[],
        use_cpu=not torch.cuda.is_available(),
        **options,
    )
    data = blocks(count=300)
    trainer = BlockingTrainer(
        model=model, args=arguments, train_dataset=data[:-40], eval_dataset=data[-40:], blocker=blocker
    )
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    after = trainer.evaluate()["eval_loss"]
    print(f"{blocker.steps} of {blocker.total_steps} steps; loss on the held-out end {before:.2f}, now {after:.2f}")
    print("pruned_share in the log:", [line["pruned_share"] for line in trainer.state.log_history if "loss" in line])
    return trainer, {"before": before, "after": after}


if __name__ == "__main__":
    main()
