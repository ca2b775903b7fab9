"""Hugging Face Trainer: a small BERT classifies texts. Texts, masks and labels are selected
together before the model sees them; evaluation sees all samples.

For a language model, and for trl: ``transformers_sft.py``.
"""

import tempfile
from typing import Any

import numpy as np
import torch
from transformers import BertConfig, BertForSequenceClassification, EvalPrediction, TrainingArguments

import pfb
from pfb.integrations.transformers import PrunedTrainer


def reviews(n: int) -> list[dict[str, torch.Tensor]]:
    """Sequences of 16 tokens; the class is whether token 7 is among them."""
    tokens = torch.randint(8, 100, (n, 16))
    label = torch.randint(2, (n,))
    tokens[label == 1, 3] = 7
    mask = torch.ones(n, 16, dtype=torch.int64)
    return [{"input_ids": t, "attention_mask": m, "labels": y} for t, m, y in zip(tokens, mask, label, strict=True)]


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float((np.argmax(prediction.predictions, 1) == prediction.label_ids).mean())}


def main(folder: str | None = None, epochs: int = 3, checkpoint: str | None = None, **options: Any) -> PrunedTrainer:
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
    memory = pfb.NeighbourMemory(170)  # at most a third of an epoch
    arguments = TrainingArguments(
        folder or tempfile.mkdtemp(),
        num_train_epochs=epochs,
        per_device_train_batch_size=32,
        learning_rate=3e-3,
        report_to=[],
        **options,
    )
    trainer = PrunedTrainer(
        model=model,
        args=arguments,
        train_dataset=reviews(512),
        eval_dataset=reviews(128),
        compute_metrics=accuracy,
        pruner=pfb.BatchPruner(prune=0.4, density=memory),  # the line
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    pruner = trainer.pruner
    left_out, correct = pruner.stats["pruned_share"], trainer.evaluate()["eval_accuracy"]
    print(f"{pruner.steps} steps, {left_out:.0%} of the last batch left out, accuracy {correct:.1%}")
    return trainer


if __name__ == "__main__":
    main()
