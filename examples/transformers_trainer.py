"""Hugging Face Trainer: a small BERT classifier, with labels, masks and the loss inside the model's
forward.
"""

import tempfile
from typing import Any

import torch
from transformers import BertConfig, BertForSequenceClassification, TrainingArguments

import pfb
from pfb.integrations.transformers import BlockingTrainer


def reviews(n: int) -> list[dict[str, torch.Tensor]]:
    """Sequences of 16 tokens; the class is whether token 7 is among them."""
    tokens = torch.randint(8, 100, (n, 16))
    label = torch.randint(2, (n,))
    tokens[label == 1, 3] = 7
    mask = torch.ones(n, 16, dtype=torch.int64)
    return [{"input_ids": t, "attention_mask": m, "labels": y} for t, m, y in zip(tokens, mask, label, strict=True)]


def main(folder: str | None = None, epochs: int = 2, checkpoint: str | None = None, **options: Any) -> BlockingTrainer:
    torch.manual_seed(0)
    size: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "vocab_size": 100,
        "num_labels": 2,
    }
    model = BertForSequenceClassification(BertConfig(**size))
    blocker = pfb.attach(model, prune=0.4, shallow="recompute")  # finds the first encoder layer
    arguments = TrainingArguments(
        folder or tempfile.mkdtemp(),
        num_train_epochs=epochs,
        per_device_train_batch_size=32,
        learning_rate=1e-3,
        report_to=[],
        **options,
    )
    trainer = BlockingTrainer(model=model, args=arguments, train_dataset=reviews(512), blocker=blocker)
    trainer.train(resume_from_checkpoint=checkpoint)
    print(f"{blocker.steps} steps, {blocker.stats['pruned_share']:.0%} of the last batch stopped")
    return trainer


if __name__ == "__main__":
    main()
