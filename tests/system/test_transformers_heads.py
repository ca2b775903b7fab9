"""The loss and gradients of ``PrunedTrainer`` are those of a plain ``Trainer`` on the kept samples,
whatever the head does with ``num_items_in_batch``, also over accumulated, ragged micro-batches.
"""

import os

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    BertForTokenClassification,
    DistilBertConfig,
    DistilBertForQuestionAnswering,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    ModernBertConfig,
    ModernBertForMaskedLM,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
)

import pfb
from pfb.integrations.transformers import PrunedTrainer, PrunedTrainerMixin
from tests.system.test_distributed import WORLD, gathered, on_two_ranks

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers warns about our tiny set-ups

LENGTH, VOCABULARY = 10, 50


SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def distilbert(kind, **settings):
    size = {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64}
    quiet = {"dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0, "qa_dropout": 0.0}
    return kind(DistilBertConfig(vocab_size=VOCABULARY, **size, **quiet, **settings))


def bert(kind, **settings):
    quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return kind(BertConfig(vocab_size=VOCABULARY, **SIZE, **quiet, **settings))


def modernbert():
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
    plain = {"attn_implementation": "eager", "reference_compile": False}
    return ModernBertForMaskedLM(ModernBertConfig(vocab_size=VOCABULARY, **SIZE, **special, **plain))


def gpt2():
    size = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 12}
    quiet = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, **size, **quiet))


def llama(kind):
    settings = {"vocab_size": VOCABULARY, "pad_token_id": 0, "num_labels": 3}
    return kind(LlamaConfig(**SIZE, **settings))


def bart():
    size = {"encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    width = {"d_model": 32, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 32}
    return BartForConditionalGeneration(BartConfig(vocab_size=VOCABULARY, dropout=0.0, **size, **width))


def t5():
    size = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2}
    settings = {"dropout_rate": 0.0, "decoder_start_token_id": 0}
    return T5ForConditionalGeneration(T5Config(vocab_size=VOCABULARY, **size, **settings))


def vit():
    settings = {"image_size": 8, "patch_size": 4, "num_labels": 3}
    return ViTForImageClassification(ViTConfig(**SIZE, **settings))


def tokens(n):
    return {"input_ids": torch.randint(3, VOCABULARY, (n, LENGTH))}


def per_sequence(labels):
    return lambda n, ragged: {**tokens(n), "labels": labels(n)}


def per_token(classes):
    """Labels of every token; of a ragged batch, fewer in every row than in the one before."""

    def batch(n, ragged):
        labels = torch.randint(classes, (n, LENGTH))
        for row in range(n):
            labels[row, LENGTH - 1 - (row % 6 if ragged else 0) :] = -100
        return {**tokens(n), "labels": labels}

    return batch


def spans(n, ragged):
    return {**tokens(n), **{name: torch.randint(LENGTH, (n,)) for name in ("start_positions", "end_positions")}}


def images(n, ragged):
    return {"pixel_values": torch.randn(n, 3, 8, 8), "labels": torch.randint(3, (n,))}


def classes_of(n):
    return torch.randint(2, (n,))


HEADS = {
    "sequence classification": (lambda: distilbert(DistilBertForSequenceClassification), per_sequence(classes_of)),
    "classification by the last token": (lambda: llama(LlamaForSequenceClassification), per_sequence(classes_of)),
    "regression": (
        lambda: distilbert(DistilBertForSequenceClassification, num_labels=1),
        per_sequence(lambda n: torch.randn(n)),
    ),
    "multi-label": (
        lambda: distilbert(
            DistilBertForSequenceClassification, num_labels=4, problem_type="multi_label_classification"
        ),
        per_sequence(lambda n: torch.randint(2, (n, 4)).float()),
    ),
    "token classification": (lambda: bert(BertForTokenClassification, num_labels=4), per_token(4)),
    "question answering": (lambda: distilbert(DistilBertForQuestionAnswering), spans),
    "image classification": (vit, images),
    "masked LM, plain mean": (lambda: bert(BertForMaskedLM), per_token(VOCABULARY)),
    "masked LM, by items": (modernbert, per_token(VOCABULARY)),
    "causal LM, GPT-2": (gpt2, per_token(VOCABULARY)),
    "causal LM, Llama": (lambda: llama(LlamaForCausalLM), per_token(VOCABULARY)),
    "seq2seq, BART": (bart, per_token(VOCABULARY)),
    "seq2seq, T5": (t5, per_token(VOCABULARY)),
}


class Gradients(TrainerCallback):
    """Those of the last optimizer step, by parameter."""

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.by_name = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def one_step(kind, model, batches, folder, arguments=None, **settings):
    """Logged loss and gradients of one step on these micro-batches, and the trainer."""

    seen = Gradients()
    options = TrainingArguments(
        str(folder),
        gradient_accumulation_steps=len(batches),
        max_steps=1,
        max_grad_norm=0.0,
        learning_rate=1e-9,
        optim="sgd",
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        **(arguments or {}),
    )
    trainer = kind(model=model, args=options, train_dataset=batches, callbacks=[seen], **settings)
    trainer.get_train_dataloader = lambda: DataLoader(batches, batch_size=None)
    trainer.train()
    return trainer.state.log_history[0]["loss"], seen.by_name, trainer


def chosen_by_first(features):
    return features[:, 0]


def pruner(prune=0.5):
    """Without chance in its rule, and by what every head is given."""
    return pfb.BatchPruner(prune, rule=chosen_by_first)


class Kept:
    """A pruner that notes what it was given and what it returned."""

    def __init__(self, ours):
        self.kept, self.rows = [], []
        call = ours._pruned

        def noted(batch, by, share):
            kept = call(batch, by, share)
            self.kept.append({name: x.clone() for name, x in kept.items()})
            self.rows.append(ours.selection.indices)
            return kept

        ours._pruned = noted


def assert_same(ours, plain):
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-6)


def taken(batch, rows):
    """What a reader of the definition would take."""
    return {name: torch.stack([x[i] for i in rows.tolist()]) for name, x in batch.items()}


def both(head, folder, micro_batches, ragged):
    """One step of ours and of a plain Trainer that gets what ours kept."""
    build, batch = HEADS[head]
    torch.manual_seed(0)
    model, plain = build(), build()
    plain.load_state_dict(model.state_dict())
    batches = [batch(8, ragged) for _ in range(micro_batches)]
    chosen = pruner()
    noted = Kept(chosen)
    ours = one_step(PrunedTrainer, model, batches, folder, pruner=chosen)
    assert [len(rows) for rows in noted.rows] == [4] * micro_batches
    kept = [taken(b, rows) for b, rows in zip(batches, noted.rows, strict=True)]
    return ours, one_step(Trainer, plain, kept, folder)


@pytest.mark.parametrize("micro_batches", [1, 3])
@pytest.mark.parametrize("head", HEADS)
def test_it_is_as_if_the_kept_samples_alone_were_given(head, micro_batches, tmp_path):
    (loss, gradients, _), (plain_loss, plain_gradients, _) = both(head, tmp_path, micro_batches, ragged=True)
    assert loss == pytest.approx(plain_loss, rel=1e-3)
    assert_same(gradients, plain_gradients)


class Tagger(nn.Module):
    """Divides by ``num_items_in_batch`` where it is given, in any release of transformers."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Embedding(VOCABULARY, 16), nn.Linear(16, 16), nn.Tanh())
        self.head = nn.Linear(16, VOCABULARY)
        self.items = []

    def forward(self, input_ids, labels, num_items_in_batch=None, **kwargs):
        logits = self.head(self.body(input_ids)).flatten(0, 1)
        total = nn.functional.cross_entropy(logits, labels.flatten(), reduction="sum")
        self.items.append(num_items_in_batch)
        return {"loss": total / ((labels != -100).sum() if num_items_in_batch is None else num_items_in_batch)}


def test_items_are_counted_after_pruning_over_all_micro_batches(tmp_path):
    torch.manual_seed(0)
    model = Tagger()
    batches = [per_token(VOCABULARY)(8, ragged) for ragged in (True, False)]
    chosen = pruner()
    noted = Kept(chosen)
    one_step(PrunedTrainer, model, batches, tmp_path, pruner=chosen)
    kept = [taken(b, rows)["labels"] for b, rows in zip(batches, noted.rows, strict=True)]
    assert [int(n) for n in model.items] == [sum(int((x != -100).sum()) for x in kept)] * 2


def test_a_loss_of_the_users_own_gets_the_count_of_the_kept(tmp_path):
    """``compute_loss_func``, which takes the loss out of the model."""
    torch.manual_seed(0)
    model, counts = gpt2(), []

    def loss(outputs, labels, num_items_in_batch=None):
        counts.append((int(num_items_in_batch), int((labels[..., 1:] != -100).sum())))
        return outputs["logits"].square().mean()

    batch = per_token(VOCABULARY)(8, ragged=True)
    one_step(PrunedTrainer, model, [batch], tmp_path, pruner=pruner(), compute_loss_func=loss)
    [(counted, there)] = counts
    assert abs(counted - there) <= 4, "of each sequence one label more or less, as transformers shifts them"
    assert there < (batch["labels"] != -100).sum() * 0.6


def _two_ranks_average_their_tokens(rank, folder):
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)  # of the parent
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
    torch.manual_seed(0)
    model, plain = Tagger(), Tagger()
    plain.load_state_dict(model.state_dict())
    torch.manual_seed(rank)
    batch = per_token(VOCABULARY)(8, ragged=rank == 0)
    chosen = pruner()
    noted = Kept(chosen)
    arguments = {"average_tokens_across_devices": True, "ddp_backend": "gloo", "seed": 0}
    _, gradients, trainer = one_step(PrunedTrainer, model, [batch], folder, arguments, pruner=chosen)
    assert trainer.accelerator.num_processes == WORLD
    everybodys = {name: torch.cat(gathered(x)) for name, x in noted.kept[0].items()}
    plain(**everybodys)["loss"].backward()
    gradients = {name.removeprefix("module."): gradient for name, gradient in gradients.items()}
    assert_same(gradients, {name: p.grad for name, p in plain.named_parameters() if p.grad is not None})


def test_two_ranks_that_average_their_tokens_average_those_that_were_kept(tmp_path, monkeypatch):
    for name, value in {"WORLD_SIZE": str(WORLD), "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}.items():
        monkeypatch.setenv(name, value)
    on_two_ranks(_two_ranks_average_their_tokens, tmp_path)


def test_at_a_share_of_0_it_is_the_plain_trainer_bit_by_bit(tmp_path):
    torch.manual_seed(0)
    model, plain = gpt2(), gpt2()
    plain.load_state_dict(model.state_dict())
    batches = [per_token(VOCABULARY)(8, ragged=True) for _ in range(3)]
    loss, gradients, _ = one_step(PrunedTrainer, model, batches, tmp_path, pruner=pruner(0.0))
    plain_loss, plain_gradients, _ = one_step(Trainer, plain, batches, tmp_path)
    assert loss == plain_loss
    assert all(torch.equal(gradients[name], gradient) for name, gradient in plain_gradients.items())


def test_evaluation_prunes_nothing_and_gives_the_plain_loss(tmp_path):
    torch.manual_seed(0)
    model, plain = gpt2(), gpt2()
    plain.load_state_dict(model.state_dict())
    batches = [per_token(VOCABULARY)(8, ragged=True)]
    rows = [dict(zip(batches[0], row, strict=True)) for row in zip(*batches[0].values(), strict=True)]
    chosen = pruner()
    _, _, ours = one_step(PrunedTrainer, model, batches, tmp_path, pruner=chosen)
    _, _, theirs = one_step(Trainer, plain, batches, tmp_path)
    losses = [trainer.evaluate(rows)["eval_loss"] for trainer in (ours, theirs)]
    assert chosen.steps == 1
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_batch_that_keeps_no_label_adds_nothing(tmp_path):
    torch.manual_seed(0)
    model = gpt2()
    batch = per_token(VOCABULARY)(8, ragged=False)
    probe = pruner()
    probe(batch)
    batch["labels"][probe.selection.indices] = -100
    loss, gradients, _ = one_step(PrunedTrainer, model, [batch], tmp_path, pruner=pruner())
    assert loss == 0.0 or loss != loss  # 0 / 0, as a plain Trainer has it
    assert all((gradient == 0).all() or gradient.isnan().all() for gradient in gradients.values())


class TestTrl:
    """What trl's own list of a selection's conflicts names: packing, padding-free, gradient
    accumulation, custom losses (liger kernels need a GPU).
    """

    def run(self, folder, rows, chosen, **settings):
        pytest.importorskip("trl")
        from datasets import Dataset
        from trl import SFTConfig, SFTTrainer

        from tests.system.test_integrations import example

        class Pruned(PrunedTrainerMixin, SFTTrainer):
            pass

        torch.manual_seed(0)
        seen = Gradients()
        options = {
            "max_steps": 1,
            "per_device_train_batch_size": 8,
            "learning_rate": 1e-9,
            "optim": "sgd",
            "max_grad_norm": 0.0,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": [],
            "use_cpu": True,
            "disable_tqdm": True,
            "bf16": False,
            "gradient_checkpointing": False,
        }
        kind, parts = (SFTTrainer, {}) if chosen is None else (Pruned, {"pruner": chosen})
        trainer = kind(
            model=gpt2(),
            args=SFTConfig(str(folder), **{**options, **settings}),
            train_dataset=Dataset.from_list(rows),
            processing_class=example("transformers_sft").tokenizer(),
            callbacks=[seen],
            **parts,
        )
        trainer.train()
        return trainer.state.log_history[0], seen.by_name

    def rows(self, n):
        return [{"input_ids": torch.randint(3, VOCABULARY, (3 + i % 8,)).tolist()} for i in range(n)]

    @pytest.mark.parametrize("accumulate", [1, 2])
    def test_gradients_are_those_on_the_kept_sequences(self, tmp_path, accumulate):
        chosen, rows = pruner(), self.rows(8 * accumulate)
        noted = Kept(chosen)
        accumulation = {"gradient_accumulation_steps": accumulate}
        log, gradients = self.run(tmp_path, rows, chosen, **accumulation)
        kept = [
            {"input_ids": ids[mask.bool()].tolist()}
            for batch in noted.kept
            for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
        ]
        assert len(kept) == 4 * accumulate
        plain_log, plain_gradients = self.run(tmp_path, kept, None, per_device_train_batch_size=4 * accumulate)
        assert log["loss"] == pytest.approx(plain_log["loss"], rel=1e-3)
        assert_same(gradients, plain_gradients)
        assert log["pruned_share"] == 0.5

    def test_padding_free_batches_are_one_row_and_it_is_told(self, tmp_path):
        chosen = pruner()
        with pytest.warns(UserWarning, match="too small to be pruned, the last of 1"):
            self.run(
                tmp_path,
                self.rows(80),
                chosen,
                padding_free=True,
                max_length=None,
                max_steps=10,
                per_device_train_batch_size=4,
            )

    def test_packed_rows_are_samples(self, tmp_path):
        """Several documents in a row are kept or left out together."""
        chosen = pruner()
        noted = Kept(chosen)
        self.run(tmp_path, self.rows(100), chosen, packing=True, packing_strategy="wrapped", max_length=12)
        assert [x.shape[0] for batch in noted.kept for x in batch.values()].count(4) >= 2
