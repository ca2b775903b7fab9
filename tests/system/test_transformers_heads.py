"""The loss and gradients of ``BlockingTrainer`` are those of a plain ``Trainer`` on the kept
samples, whatever the head does with ``num_items_in_batch``.
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
from pfb.integrations.transformers import BlockingTrainer
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


CUTS = {"seq2seq, T5": "encoder.block.0"}
"""Where the first stage cannot be told."""


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


def blocked(model, **settings):
    return pfb.attach(model, prune=0.5, shallow="recompute", rule=lambda f: f[:, 0], **settings)


class Kept(list):
    """The micro-batches as they reach the forward, after the selection."""

    sees_kept_samples = True

    def __init__(self, model, names):
        super().__init__()
        self.names = list(names)
        model.register_forward_pre_hook(self, with_kwargs=True)

    def __call__(self, model, args, kwargs):
        self.append({name: kwargs[name].clone() for name in self.names})


def assert_same(ours, plain):
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-6)


def both(head, folder, micro_batches, ragged):
    """One step of ours and of a plain Trainer that gets what ours kept."""
    build, batch = HEADS[head]
    torch.manual_seed(0)
    model, plain = build(), build()
    plain.load_state_dict(model.state_dict())
    batches = [batch(8, ragged) for _ in range(micro_batches)]
    blocker = blocked(model, cut=CUTS.get(head))
    kept = Kept(model, batches[0])
    ours = one_step(BlockingTrainer, model, batches, folder, blocker=blocker)
    assert [len(x["labels" if "labels" in x else "start_positions"]) for x in kept] == [4] * micro_batches
    return ours, one_step(Trainer, plain, kept, folder)


@pytest.mark.parametrize("head", HEADS)
def test_one_batch_is_as_if_the_kept_samples_alone_were_given(head, tmp_path):
    (loss, gradients, _), (plain_loss, plain_gradients, _) = both(head, tmp_path, 1, ragged=True)
    assert loss == pytest.approx(plain_loss, rel=1e-3)
    assert_same(gradients, plain_gradients)


@pytest.mark.parametrize("head", HEADS)
def test_accumulated_batches_are_as_if_the_kept_samples_alone_were_given(head, tmp_path):
    (loss, gradients, _), (plain_loss, plain_gradients, _) = both(head, tmp_path, 2, ragged=False)
    assert loss == pytest.approx(plain_loss, rel=1e-3)
    assert_same(gradients, plain_gradients)


class Tagger(nn.Module):
    """Divides by ``num_items_in_batch`` where it is given, in any release of transformers."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Embedding(VOCABULARY, 16), nn.Linear(16, 16), nn.Tanh())
        self.head = nn.Linear(16, VOCABULARY)

    def forward(self, input_ids, labels, num_items_in_batch=None, **kwargs):
        logits = self.head(self.body(input_ids)).flatten(0, 1)
        total = nn.functional.cross_entropy(logits, labels.flatten(), reduction="sum")
        return {"loss": total / ((labels != -100).sum() if num_items_in_batch is None else num_items_in_batch)}


def test_of_ragged_accumulated_batches_each_weighs_by_its_items_before_pruning(tmp_path):
    """The first goes backward before the last is selected, so what both keep cannot be known."""
    torch.manual_seed(0)
    model, plain = Tagger(), Tagger()
    plain.load_state_dict(model.state_dict())
    batches = [per_token(VOCABULARY)(8, ragged) for ragged in (True, False)]
    blocker = blocked(model, cut="body")
    kept = Kept(model, batches[0])
    loss, gradients, _ = one_step(BlockingTrainer, model, batches, tmp_path, blocker=blocker)
    expected = expected_loss(plain, batches, kept)
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-3)
    assert_same(gradients, {name: p.grad for name, p in plain.named_parameters() if p.grad is not None})


def expected_loss(plain, batches, kept):
    """The mean over the kept items of each batch, weighted by its items before pruning."""
    items = torch.stack([(batch["labels"] != -100).sum() for batch in batches])
    losses = torch.stack([plain(**batch)["loss"] for batch in kept])  # means over their own items
    return (losses * items).sum() / items.sum()


def _two_ranks_average_their_tokens(rank, folder):
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)  # of the parent
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
    torch.manual_seed(0)
    model, plain = Tagger(), Tagger()
    plain.load_state_dict(model.state_dict())
    batch = per_token(VOCABULARY)(8, ragged=rank == 0)
    blocker = blocked(model, cut="body")
    kept = Kept(model, batch)
    arguments = {"average_tokens_across_devices": True, "ddp_backend": "gloo"}
    _, gradients, trainer = one_step(BlockingTrainer, model, [batch], folder, arguments, blocker=blocker)
    assert trainer.accelerator.num_processes == WORLD
    expected_loss(plain, gathered(batch), gathered(kept[0])).backward()
    gradients = {name.removeprefix("module."): gradient for name, gradient in gradients.items()}
    assert_same(gradients, {name: p.grad for name, p in plain.named_parameters() if p.grad is not None})


def test_two_ranks_that_average_their_tokens_weigh_by_items_too(tmp_path, monkeypatch):
    for name, value in {"WORLD_SIZE": str(WORLD), "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}.items():
        monkeypatch.setenv(name, value)
    on_two_ranks(_two_ranks_average_their_tokens, tmp_path)


def test_at_a_share_of_0_it_is_the_plain_trainer_bit_by_bit(tmp_path):
    torch.manual_seed(0)
    model, plain = gpt2(), gpt2()
    plain.load_state_dict(model.state_dict())
    batches = [per_token(VOCABULARY)(8, ragged=True) for _ in range(3)]
    blocker = pfb.attach(model, prune=0.0, shallow="recompute")
    loss, gradients, _ = one_step(BlockingTrainer, model, batches, tmp_path, blocker=blocker)
    plain_loss, plain_gradients, _ = one_step(Trainer, plain, batches, tmp_path)
    assert loss == plain_loss
    assert all(torch.equal(gradients[name], gradient) for name, gradient in plain_gradients.items())


def test_evaluation_prunes_nothing_and_gives_the_plain_loss(tmp_path):
    torch.manual_seed(0)
    model, plain = gpt2(), gpt2()
    plain.load_state_dict(model.state_dict())
    batches = [per_token(VOCABULARY)(8, ragged=True)]
    rows = [dict(zip(batches[0], row, strict=True)) for row in zip(*batches[0].values(), strict=True)]
    _, _, ours = one_step(BlockingTrainer, model, batches, tmp_path, blocker=blocked(model))
    seen = Kept(model, batches[0])
    _, _, theirs = one_step(Trainer, plain, batches, tmp_path)
    losses = [trainer.evaluate(rows)["eval_loss"] for trainer in (ours, theirs)]
    assert [len(batch["labels"]) for batch in seen] == [8]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("outside", [False, True], ids=["attached to the wrapped model", "attached to the wrapper"])
def test_a_wrapper_counts_the_kept_items_wherever_the_blocker_is(tmp_path, outside):
    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = gpt2()

        def forward(self, **inputs):
            return self.inner(**inputs)

    torch.manual_seed(0)
    model, plain = Wrapper(), Wrapper()
    plain.load_state_dict(model.state_dict())
    batches = [per_token(VOCABULARY)(8, ragged=True)]
    blocker = blocked(model if outside else model.inner)
    kept = Kept(model.inner, batches[0])
    settings = {"arguments": {"remove_unused_columns": False}}
    loss, gradients, _ = one_step(BlockingTrainer, model, batches, tmp_path, blocker=blocker, **settings)
    assert len(kept[-1]["labels"]) == 4
    plain_loss, plain_gradients, _ = one_step(Trainer, plain, kept[-1:], tmp_path, **settings)
    assert loss == pytest.approx(plain_loss, rel=1e-3)
    assert_same(gradients, plain_gradients)


def test_a_batch_that_keeps_no_label_adds_nothing(tmp_path):
    torch.manual_seed(0)
    model = gpt2()
    batch = per_token(VOCABULARY)(8, ragged=False)
    with blocked(model) as probe:
        model(**batch)
        kept = probe.selection.indices
    batch["labels"][kept] = -100
    loss, gradients, _ = one_step(BlockingTrainer, model, [batch], tmp_path, blocker=blocked(model))
    assert loss == 0.0
    assert all((gradient == 0).all() for gradient in gradients.values())
