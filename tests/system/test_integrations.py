"""Adapters and examples: every example runs, resumes where it claims to, and scales its loss as it
says.
"""

import importlib.util
import runpy
from pathlib import Path

import pytest
import torch

import pfb

EXAMPLES = Path(__file__).parents[2] / "examples"
pytestmark = pytest.mark.filterwarnings("ignore")  # third-party trainers warn about our tiny set-ups


def example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_example_is_tested():
    tested = "".join(path.read_text() for path in Path(__file__).parents[1].rglob("test_*.py"))
    assert all(path.stem in tested for path in EXAMPLES.glob("*.py"))


def test_plain_loop():
    assert example("plain_loop").main() > 0.9


def test_contrastive():
    main = example("contrastive").main
    assert main(epochs=5) > main(epochs=0) + 0.2


def test_accelerate_resume(capsys):
    runpy.run_path(str(EXAMPLES / "accelerate_resume.py"), run_name="__main__")
    assert "bit-identical" in capsys.readouterr().out


QUIET = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False, "logger": False}


class TestLightning:
    def test_steps_with_the_optimizer_also_when_batches_accumulate(self, tmp_path):
        fit = example("lightning_callback").main
        module = fit(str(tmp_path), epochs=1, enable_checkpointing=False, **QUIET)
        assert module.blocker.steps == 16
        assert module.blocker.selection.indices.numel() == 20
        module = fit(str(tmp_path), epochs=1, enable_checkpointing=False, accumulate_grad_batches=4, **QUIET)
        assert module.blocker.steps == 4
        assert int(module.blocker.estimator.counts.sum()) == 64 + 12 * 20, "three of four steps after the first centers"

    def test_resume_brings_the_estimator_back(self, tmp_path):
        fit = example("lightning_callback").main
        first = fit(str(tmp_path), epochs=1, **QUIET)
        saved = next(tmp_path.rglob("*.ckpt"))
        state = torch.load(saved, weights_only=True)["callbacks"]
        [ours] = [value for key, value in state.items() if "BlockerCallback" in key]
        assert torch.equal(ours["estimator"]["centers"], first.blocker.estimator.centers)
        resumed = fit(str(tmp_path), epochs=2, checkpoint=str(saved), **QUIET)
        assert resumed.blocker.steps == 32
        assert int(resumed.blocker.estimator.counts.sum()) > int(first.blocker.estimator.counts.sum())

    def test_several_optimizers_are_refused(self, tmp_path):
        import lightning.pytorch as pl

        from pfb.integrations.lightning import BlockerCallback

        class Two(pl.LightningModule):
            def __init__(self):
                super().__init__()
                self.automatic_optimization = False
                self.net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))

            def training_step(self, batch, index):
                return None

            def configure_optimizers(self):
                return [torch.optim.SGD([p], lr=0.1) for p in list(self.parameters())[:2]]

        module = Two()
        blocker = pfb.attach(module.net, cut="0")
        trainer = pl.Trainer(max_epochs=1, callbacks=[BlockerCallback(blocker)], default_root_dir=tmp_path, **QUIET)
        loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(8, 4)))
        with pytest.raises(ValueError, match="got 2"):
            trainer.fit(module, loader)


class TestTransformers:
    def options(self, **changes):
        return {"use_cpu": True, "disable_tqdm": True, "save_strategy": "epoch", "logging_steps": 1, **changes}

    def test_labels_inside_the_forward_and_resume(self, tmp_path):
        fit = example("transformers_trainer").main
        straight = fit(str(tmp_path / "a"), epochs=2, **self.options())
        assert straight.blocker.steps == 32
        assert straight.blocker.selection.indices.numel() == 20
        fit(str(tmp_path / "b"), epochs=2, **self.options(save_strategy="steps", save_steps=16))
        resumed = fit(
            str(tmp_path / "b"),
            epochs=2,
            checkpoint=str(tmp_path / "b" / "checkpoint-16"),
            **self.options(save_strategy="no"),
        )
        assert resumed.blocker.steps == 32
        for a, b in zip(straight.model.parameters(), resumed.model.parameters(), strict=True):
            assert torch.equal(a, b), "a resumed run ends bit-identical"
        centers = [trainer.blocker.estimator.centers for trainer in (straight, resumed)]
        assert torch.equal(*centers)

    def test_a_checkpoint_without_our_state_is_an_error(self, tmp_path):
        fit = example("transformers_trainer").main
        fit(str(tmp_path), epochs=1, **self.options())
        (tmp_path / "checkpoint-16" / "pfb.pt").unlink()
        with pytest.raises(FileNotFoundError, match=r"no pfb.pt to resume"):
            fit(str(tmp_path), epochs=2, checkpoint=str(tmp_path / "checkpoint-16"), **self.options())

    @pytest.mark.parametrize("accumulate", [1, 2])
    def test_the_loss_is_the_mean_over_kept_items(self, tmp_path, accumulate):
        """The Trainer divides by all label items; the gradient must be that of means over the kept
        ones.
        """
        from transformers import GPT2Config, GPT2LMHeadModel, TrainingArguments

        from pfb.integrations.transformers import BlockingTrainer

        torch.manual_seed(0)
        size = {"n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 12, "vocab_size": 50}
        model = GPT2LMHeadModel(GPT2Config(**size, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0))
        plain = GPT2LMHeadModel(model.config)
        plain.load_state_dict(model.state_dict())
        tokens = torch.randint(50, (8 * accumulate, 12))
        labels = tokens.clone()
        for row in range(len(tokens)):  # sequences of different lengths
            labels[row, 12 - row % 5 :] = -100
        data = [{"input_ids": t, "labels": y} for t, y in zip(tokens, labels, strict=True)]
        blocker = pfb.attach(model, prune=0.5, shallow="recompute", importance=lambda f: f[:, 0])
        arguments = TrainingArguments(
            str(tmp_path),
            per_device_train_batch_size=8,
            gradient_accumulation_steps=accumulate,
            max_steps=1,
            learning_rate=0.0,
            max_grad_norm=0.0,
            report_to=[],
            **self.options(save_strategy="no"),
        )
        trainer = BlockingTrainer(model=model, args=arguments, train_dataset=data, blocker=blocker)
        trainer.create_optimizer()
        whole, micro, gradients = [], [], {}

        def seen(batches):
            return lambda m, args, kwargs: batches.append((kwargs["input_ids"].clone(), kwargs["labels"].clone()))

        model.register_forward_pre_hook(seen(whole), with_kwargs=True, prepend=True)  # before ours
        model.register_forward_pre_hook(seen(micro), with_kwargs=True)  # after ours
        trainer.optimizer.register_step_pre_hook(
            lambda *_: gradients.update({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
        )
        trainer.train()
        assert [len(x) for x, _ in whole] == [8] * accumulate
        assert [len(x) for x, _ in micro] == [4] * accumulate

        for (_, all_labels), (x, y) in zip(whole, micro, strict=True):
            weight = (all_labels != -100).sum() / (labels != -100).sum()
            kept_items = (y != -100).sum()
            logits = plain(input_ids=x).logits[:, :-1]
            losses = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), y[:, 1:].flatten(), ignore_index=-100, reduction="sum"
            )
            (weight * losses / kept_items).backward()
        for name, parameter in plain.named_parameters():
            torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-6)

    def test_refusals(self, tmp_path):
        from transformers import GPT2Config, GPT2LMHeadModel, TrainingArguments

        from pfb.integrations.transformers import BlockingTrainer

        model = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=3, n_head=2, vocab_size=50))
        smoothing = TrainingArguments(str(tmp_path), report_to=[], label_smoothing_factor=0.1, use_cpu=True)
        with pfb.attach(model) as blocker, pytest.raises(ValueError, match='shallow="recompute"'):
            BlockingTrainer(model=model, args=smoothing, blocker=blocker)
        blocker = pfb.attach(model, shallow="recompute")
        with pytest.raises(ValueError, match="label_smoothing_factor"):
            BlockingTrainer(model=model, args=smoothing, blocker=blocker)
