"""A language model: a small GPT-2 learns to write Python docstrings, byte by byte, with Hugging
Face's Trainer, or with trl's SFTTrainer where trl is installed (``--trl``).

The loss is divided by the number of labels in the batch, also over accumulated micro-batches: they
are counted after pruning.
"""

import inspect
import statistics
import sys
import tempfile
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel, TrainingArguments

import pfb
from pfb.integrations.transformers import PrunedTrainer, PrunedTrainerMixin

LENGTH = 64


def blocks(count: int) -> list[dict[str, list[int]]]:
    """Runs of 64 bytes from the documentation of a module of the standard library."""
    docs = [inspect.getdoc(function) or "" for _, function in inspect.getmembers(statistics, callable)]
    codes = torch.tensor(list("\n\n".join(docs).encode()[: count * LENGTH]))
    runs = [block.tolist() for block in codes.split(LENGTH) if len(block) == LENGTH]
    return [{"input_ids": run, "labels": run} for run in runs]


def tokenizer() -> Any:
    """Of bytes: what trl asks for, though all is tokens already."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = models.WordLevel({chr(byte): byte for byte in range(256)}, unk_token="\0")
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), pad_token="\0", eos_token="\0", unk_token="\0")


def sft_trainer(folder: str, data: list[dict[str, list[int]]], settings: dict[str, Any], **parts: Any) -> Any:
    """trl's trainer, pruned."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    class PrunedSFTTrainer(PrunedTrainerMixin, SFTTrainer):  # type: ignore[misc]
        """The line."""

    arguments = SFTConfig(folder, max_length=LENGTH, bf16=False, gradient_checkpointing=False, **settings)
    tokens = [Dataset.from_list(part) for part in (data[:-40], data[-40:])]
    return PrunedSFTTrainer(
        args=arguments, train_dataset=tokens[0], eval_dataset=tokens[1], processing_class=tokenizer(), **parts
    )


def main(folder: str | None = None, epochs: int = 3, with_trl: bool = False, **options: Any) -> tuple[Any, float]:
    """Returns the trainer, and by how much the loss on held-out text fell."""
    torch.manual_seed(0)
    size: dict[str, Any] = {"n_positions": LENGTH, "n_embd": 48, "n_layer": 3, "n_head": 4}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=256, bos_token_id=0, eos_token_id=0, **size))
    memory = pfb.NeighbourMemory(64)  # at most a third of an epoch
    pruner = pfb.BatchPruner(pfb.window(0.4, stop=0.9), density=memory)  # the Trainer says of how many steps
    folder, data = folder or tempfile.mkdtemp(), blocks(count=300)
    settings: dict[str, Any] = {
        "num_train_epochs": epochs,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 2,
        "per_device_eval_batch_size": 64,
        "learning_rate": 3e-3,
        "logging_steps": 5,
        "report_to": [],
        "use_cpu": not torch.cuda.is_available(),
        **options,
    }
    if with_trl:
        trainer = sft_trainer(folder, data, settings, model=model, pruner=pruner)
    else:
        trainer = PrunedTrainer(
            model=model,
            args=TrainingArguments(folder, **settings),
            train_dataset=data[:-40],
            eval_dataset=data[-40:],
            pruner=pruner,  # the line
        )
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    after = trainer.evaluate()["eval_loss"]
    print(f"{pruner.steps} of {pruner.total_steps} batches; loss on the held-out end {before:.2f}, now {after:.2f}")
    print("pruned_share in the log:", [line["pruned_share"] for line in trainer.state.log_history if "loss" in line])
    return trainer, before - after


if __name__ == "__main__":
    main(with_trl="--trl" in sys.argv)
