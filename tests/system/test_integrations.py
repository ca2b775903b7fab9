"""Adapters and examples: every example runs, and resumes where it claims to."""

import contextlib
import importlib.util
import json
import runpy
import shutil
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import matplotlib
import matplotlib.pyplot
import pytest
import torch
import transformers
from torch.utils.data import DataLoader, TensorDataset
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

import pfb
from pfb.integrations.lightning import BlockerCallback, PrunerCallback
from pfb.integrations.transformers import PrunedTrainer, PrunedTrainerMixin

EXAMPLES = Path(__file__).parents[2] / "examples"
pytestmark = pytest.mark.filterwarnings("ignore")  # third-party trainers warn about our tiny set-ups


def example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def same(a, b):
    """Two states, tensor for tensor."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def test_every_example_is_tested():
    tested = "".join(path.read_text() for path in Path(__file__).parents[1].rglob("test_*.py"))
    assert all(path.stem in tested for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb"))


def test_plain_loop():
    assert example("plain_loop").main(epochs=3) > 0.8


def test_the_line_is_visible_in_every_example():
    lines = ("pfb.prune_batches(", "pruner(", "pfb.BatchPruner(", "**pfb.paper(")
    for path in EXAMPLES.glob("*.py"):
        assert any(line in path.read_text() for line in lines), path.name


def test_paper():
    accuracy, most = example("paper").main(epochs=3)
    assert accuracy > 0.7
    assert most == 0.4


def test_strong_augmentation():
    frames, singles = example("strong_augmentation").main(epochs=2)
    assert frames < 0.3 < 0.7 < singles
    frames, singles = example("strong_augmentation").main(epochs=2, originals=False)
    assert singles - frames < 0.2, "or it would show nothing"


def test_contrastive():
    main = example("contrastive").main
    assert main(epochs=4) > main(epochs=0) + 0.05


def test_tour_ipynb(capsys):
    """The notebook, cell by cell; its outputs are not kept."""
    matplotlib.use("agg")
    cells = json.loads((EXAMPLES / "tour.ipynb").read_text())["cells"]
    names: dict[str, Any] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
    matplotlib.pyplot.close("all")
    share, is_copy = names["share"], names["is_copy"]
    assert share[~is_copy].mean() > share[is_copy].mean() + 0.4, "copies are what is left out"
    assert names["model"](names["x"][:7]).shape == (7, 10)


def test_torchvision_script():
    report = example("torchvision_script").main(epochs=2, model_name="shufflenet_v2_x0_5")
    assert report["left out"] == pytest.approx(6 / 16 * 2 / 6), "the window ends with the second of six steps"
    assert 0 <= report["accuracy"] <= 1


def test_timm_script():
    accuracy, pruner = example("timm_script").main(epochs=4, accumulate=2)
    assert accuracy > 40
    assert pruner.steps == pruner.total_steps == 32


@pytest.mark.parametrize("reader", ["tarfile", "webdataset"])
def test_webdataset_shards(reader):
    if reader == "webdataset":
        pytest.importorskip("webdataset")
    accuracy, pruner = example("webdataset_shards").main(with_webdataset=reader == "webdataset")
    assert accuracy > 0.9
    assert pruner.steps == pruner.total_steps == 24, "which the stream did not know"


@pytest.mark.parametrize("streaming", [False, True])
def test_huggingface_datasets(streaming):
    pytest.importorskip("datasets")
    accuracy, pruner = example("huggingface_datasets").main(streaming=streaming)
    assert accuracy > 0.9
    assert pruner.stats["kept_share"] == 20 / 32


def test_accelerate_resume(capsys):
    runpy.run_path(str(EXAMPLES / "accelerate_resume.py"), run_name="__main__")
    assert "bit-identical" in capsys.readouterr().out


QUIET = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False, "logger": False}


def fit(module, folder, data=None, **options):
    """Four batches of 20 samples an epoch."""
    x, y = (torch.randn(80, 20), torch.randint(2, (80,))) if data is None else data
    options = {"max_epochs": 1, "enable_checkpointing": False, "default_root_dir": folder, **QUIET, **options}
    trainer = pl.Trainer(**options)
    trainer.fit(module, DataLoader(TensorDataset(x, y), 20))
    return trainer


def pruner(prune=0.4):
    return pfb.BatchPruner(prune, density=pfb.NeighbourMemory(64))


class Module(pl.LightningModule):
    """Notes the batches that its training step is given."""

    def __init__(self):
        super().__init__()
        self.net, self.given, self.validated = torch.nn.Linear(20, 2), [], []

    def training_step(self, batch, index):
        self.given.append(batch)
        return torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, index):
        self.validated.append(len(batch[0]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class TestLightning:
    def test_training_is_that_on_the_kept_samples(self, tmp_path):
        x, y = torch.randn(80, 20), torch.randint(2, (80,))
        ours, theirs = pruner(), pruner()
        module, plain = Module(), Module()
        plain.load_state_dict(module.state_dict())
        fit(module, tmp_path, (x, y), callbacks=[PrunerCallback(ours)], max_epochs=2)
        optimizer = plain.configure_optimizers()
        for _ in range(2):
            for part in torch.arange(80).split(20):
                kept, labels = theirs(x[part], y[part])
                torch.nn.functional.cross_entropy(plain.net(kept), labels).backward()
                optimizer.step()
                optimizer.zero_grad()
        assert [len(batch[0]) for batch in module.given] == [12] * 8
        assert torch.equal(module.net.weight, plain.net.weight)

    def test_accumulated_batches_are_each_pruned_and_the_module_is_as_before_afterwards(self, tmp_path):
        module, ours = Module(), pruner()
        fit(module, tmp_path, callbacks=[PrunerCallback(ours)], accumulate_grad_batches=4)
        assert ours.steps == 4
        assert "on_after_batch_transfer" not in vars(module)
        fit(module, tmp_path)
        assert [len(batch[0]) for batch in module.given] == [12] * 4 + [20] * 4

    def test_validation_is_whole(self, tmp_path):
        module, ours = Module(), pruner()
        trainer = pl.Trainer(
            max_epochs=1,
            default_root_dir=tmp_path,
            enable_checkpointing=False,
            callbacks=[PrunerCallback(ours)],
            **QUIET,
        )
        loader = DataLoader(TensorDataset(torch.randn(40, 20), torch.randint(2, (40,))), 20)
        trainer.fit(module, loader, loader)
        assert set(module.validated) == {20}
        assert ours.steps == 2

    @pytest.mark.parametrize("of_data", [False, True])
    def test_a_hook_of_the_users_own_is_kept(self, tmp_path, of_data):
        """Where a data module has one, Lightning does not ask the module."""

        class Doubles:
            def on_after_batch_transfer(self, batch, dataloader_idx):
                return [batch[0] * 0 + 2, batch[1]]

        class OfModule(Doubles, Module):
            pass

        class OfData(Doubles, pl.LightningDataModule):
            def train_dataloader(self):
                return DataLoader(TensorDataset(torch.randn(80, 20), torch.randint(2, (80,))), 20)

        module = Module() if of_data else OfModule()
        callback = PrunerCallback(pfb.BatchPruner(0.4, rule=pfb.Uniform()))
        if of_data:
            pl.Trainer(
                max_epochs=1, default_root_dir=tmp_path, enable_checkpointing=False, callbacks=[callback], **QUIET
            ).fit(module, datamodule=OfData())
        else:
            fit(module, tmp_path, callbacks=[callback])
        assert [len(batch[0]) for batch in module.given] == [12] * 4
        assert all((batch[0] == 2).all() for batch in module.given)

    def test_resume_brings_the_memory_back(self, tmp_path):
        train = example("lightning_pruner").main
        _, first = train(str(tmp_path), epochs=1, **QUIET)
        saved = next(tmp_path.rglob("*.ckpt"))
        state = torch.load(saved, weights_only=True)["callbacks"]
        [ours] = [value for key, value in state.items() if "PrunerCallback" in key]
        assert ours["step"] == 16
        assert same(ours["density"], first.density.state_dict())
        _, resumed = train(str(tmp_path), epochs=2, checkpoint=str(saved), **QUIET)
        assert resumed.steps == 32
        assert not same(resumed.density.state_dict(), ours["density"])

    def test_a_run_resumed_after_an_epoch_ends_bit_identical(self, tmp_path):
        """Within an epoch Lightning itself begins the loader anew."""
        x, y = torch.randn(80, 20), torch.randint(2, (80,))

        def run(folder, checkpoint=None, **options):
            torch.manual_seed(0)
            module, ours = Module(), pruner()
            saves = pl.callbacks.ModelCheckpoint(folder, save_top_k=-1)
            trainer = pl.Trainer(default_root_dir=folder, callbacks=[PrunerCallback(ours), saves], **QUIET, **options)
            trainer.fit(module, DataLoader(TensorDataset(x, y), 20), ckpt_path=checkpoint)
            return module, ours

        module, ours = run(tmp_path / "a", max_epochs=3)
        run(tmp_path / "b", max_epochs=1)
        [saved] = (tmp_path / "b").glob("*step=4.ckpt")
        resumed, theirs = run(tmp_path / "c", checkpoint=str(saved), max_epochs=3)
        assert torch.equal(module.net.weight, resumed.net.weight)
        assert same(ours.state_dict(), theirs.state_dict())

    def test_the_share_pruned_is_logged_with_every_step(self, tmp_path):
        shares = []

        class Watch(pl.Callback):
            def on_train_batch_end(self, trainer, *_):
                shares.append(float(trainer.callback_metrics["pruned_share"]))

        fit(Module(), tmp_path, callbacks=[PrunerCallback(pruner()), Watch()])
        assert shares == [pytest.approx(0.4)] * 4

    def test_a_schedule_learns_the_number_of_batches(self, tmp_path):
        ours = pruner(pfb.window(0.4, stop=0.5))
        fit(Module(), tmp_path, accumulate_grad_batches=2, max_epochs=3, callbacks=[PrunerCallback(ours)])
        assert ours.total_steps == ours.steps == 12

    def test_a_schedule_over_training_without_end_is_refused(self, tmp_path):
        with pytest.raises(ValueError, match="this Trainer has no end"):
            fit(Module(), tmp_path, max_epochs=-1, callbacks=[PrunerCallback(pruner(pfb.window(0.4, stop=0.5)))])

    def test_lbfgs_and_several_optimizers_get_one_pruned_batch(self, tmp_path):
        class Quasi(Module):
            def configure_optimizers(self):
                return torch.optim.LBFGS(self.parameters(), max_iter=3)

        module, ours = Quasi(), pruner()
        fit(module, tmp_path, callbacks=[PrunerCallback(ours)])
        assert ours.steps == 4
        assert len(module.given) > 4
        assert len({id(batch[0]) for batch in module.given}) == 4

    def test_what_is_no_pruner_is_refused(self):
        with pytest.raises(TypeError, match="`pruner` must be a pfb.BatchPruner"):
            PrunerCallback(0.5)


class Classifier(pl.LightningModule):
    """With the paper's tool."""

    def __init__(self, prune=0.4):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(20, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2))
        self.blocker = pfb.attach(self.net, cut="1", prune=prune)

    def training_step(self, batch, index):
        return torch.nn.functional.cross_entropy(self.net(batch[0]), self.blocker.select(batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class TestLightningWithABlocker:
    def test_steps_with_the_optimizer_and_resumes(self, tmp_path):
        module = Classifier()
        callbacks = [BlockerCallback(module.blocker)]
        fit(module, tmp_path, accumulate_grad_batches=2, callbacks=callbacks, enable_checkpointing=True)
        assert module.blocker.steps == 2
        assert module.blocker.stats["kept_share"] == 12 / 20
        saved = next(tmp_path.rglob("*.ckpt"))
        state = torch.load(saved, weights_only=True)["callbacks"]
        [ours] = [value for key, value in state.items() if "BlockerCallback" in key]
        assert same(ours, module.blocker.state_dict())

    def test_a_schedule_learns_the_number_of_steps(self, tmp_path):
        module = Classifier(pfb.window(0.4, stop=0.5))
        fit(module, tmp_path, accumulate_grad_batches=2, max_epochs=3, callbacks=[BlockerCallback(module.blocker)])
        assert module.blocker.total_steps == 6

    @pytest.mark.parametrize("calls_itself", [False, True])
    def test_attached_to_a_module_that_is_not_called_the_first_step_says_so(self, tmp_path, calls_itself):
        class Root(pl.LightningModule):
            def __init__(self):
                super().__init__()
                self.body, self.head = torch.nn.Linear(20, 8), torch.nn.Linear(8, 2)

            def forward(self, x):
                return self.head(self.body(x))

            def training_step(self, batch, index):
                x, y = batch
                logits = self(x) if calls_itself else self.head(self.body(x))
                return torch.nn.functional.cross_entropy(logits, blocker.select(y))

            def configure_optimizers(self):
                return torch.optim.SGD(self.parameters(), lr=0.1)

        root = Root()
        blocker = pfb.attach(root, cut="body", prune=0.4)
        wrong = pytest.raises(RuntimeError, match=r"with Lightning: to `self.net`")
        with contextlib.nullcontext() if calls_itself else wrong:
            fit(root, tmp_path, callbacks=[BlockerCallback(blocker)])
        assert blocker.steps == (4 if calls_itself else 0)

    def test_several_optimizers_are_refused(self, tmp_path):
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
        with pytest.raises(ValueError, match="got 2"):
            fit(module, tmp_path, callbacks=[BlockerCallback(blocker)])

    def test_lbfgs_is_refused(self, tmp_path):
        """It runs each batch several times per step, and each run would count as a step."""

        class Quasi(pl.LightningModule):
            def __init__(self):
                super().__init__()
                self.net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))

            def training_step(self, batch, index):
                return self.net(batch[0]).square().mean()

            def configure_optimizers(self):
                return torch.optim.LBFGS(self.parameters())

        module = Quasi()
        blocker = pfb.attach(module.net, cut="0")
        with pytest.raises(ValueError, match="LBFGS.*decide_once"):
            fit(module, tmp_path, callbacks=[BlockerCallback(blocker)])


class TestTransformers:
    def options(self, **changes):
        return {"use_cpu": True, "disable_tqdm": True, "save_strategy": "epoch", "logging_steps": 1, **changes}

    @pytest.fixture(scope="class")
    def straight(self, tmp_path_factory):
        """A run of three epochs of 16 steps, which leaves a checkpoint after every ten."""
        steps = {"save_strategy": "steps", "save_steps": 10}
        folder = str(tmp_path_factory.mktemp("run"))
        return example("transformers_trainer").main(folder, epochs=3, **self.options(**steps))

    @pytest.fixture
    def within(self, straight, tmp_path):
        """The checkpoint in the middle of the second epoch, in a folder of the test's own."""
        place = tmp_path / "checkpoint-20"
        shutil.copytree(Path(straight.args.output_dir) / place.name, place)
        return place

    @pytest.mark.skipif(transformers.__version__ < "5", reason="resumes no run bit by bit, not even without pruning")
    def test_a_run_resumed_within_an_epoch_ends_bit_identical(self, straight, within):
        assert straight.pruner.steps == 48
        assert straight.pruner.stats["kept_share"] == 20 / 32
        fit = example("transformers_trainer").main
        resumed = fit(str(within.parent), epochs=3, checkpoint=str(within), **self.options(save_strategy="no"))
        assert resumed.pruner.steps == 48
        for a, b in zip(straight.model.parameters(), resumed.model.parameters(), strict=True):
            assert torch.equal(a, b)
        assert same(straight.pruner.state_dict(), resumed.pruner.state_dict())

    def test_a_checkpoint_without_our_state_is_an_error(self, within):
        (within / "pfb.pt").unlink()
        with pytest.raises(FileNotFoundError, match=r"no pfb.pt to resume"):
            example("transformers_trainer").main(
                str(within.parent), epochs=2, checkpoint=str(within), **self.options(save_strategy="no")
            )

    def test_the_share_pruned_stands_beside_the_loss(self, straight):
        *steps, end, evaluation = straight.state.log_history
        assert [line["pruned_share"] for line in steps] == [0.375] * 48
        assert all("loss" in line for line in steps)
        assert "pruned_share" not in end | evaluation

    def test_a_classifier_learns_and_is_evaluated_on_all_samples(self, straight):
        result = straight.predict(straight.eval_dataset)
        assert len(result.predictions) == 128
        assert result.metrics["test_accuracy"] > 0.9

    @pytest.mark.parametrize("with_trl", [False, True], ids=["Trainer", "SFTTrainer"])
    def test_transformers_sft(self, tmp_path, with_trl):
        if with_trl:
            pytest.importorskip("trl")
            pytest.importorskip("datasets")
        trainer, fell = example("transformers_sft").main(str(tmp_path), epochs=1, with_trl=with_trl, disable_tqdm=True)
        assert fell > 1
        pruner = trainer.pruner
        assert pruner.total_steps == trainer.state.max_steps * 2 == pruner.steps, "two micro-batches a step"
        assert trainer.state.log_history[0]["pruned_share"] in (0.375, 1 / 3)

    def test_what_is_no_pruner_is_refused(self):
        with pytest.raises(TypeError, match="`pruner` must be a pfb.BatchPruner"):
            PrunedTrainer(pruner=0.5)

    def small(self, folder, kind=PrunedTrainer, prune=0.5, **settings):
        def model_init(trial=None):
            torch.manual_seed(0)
            return GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=8, vocab_size=50))

        options = {"report_to": [], "use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "num_train_epochs": 1}
        arguments = TrainingArguments(str(folder), per_device_train_batch_size=8, **{**options, **settings})
        data = [{"input_ids": row, "labels": row} for row in torch.randint(50, (32, 8)).tolist()]
        return kind(
            model_init=model_init, args=arguments, train_dataset=data, eval_dataset=data[:8], pruner=pruner(prune)
        )

    def test_a_training_that_begins_anew_begins_with_the_pruner_as_it_was(self, tmp_path):
        trainer = self.small(tmp_path)
        trainer.train()
        first = torch.cat([p.flatten() for p in trainer.model.parameters()]).detach().clone()
        trainer.train()
        assert trainer.pruner.steps == 4
        assert torch.equal(first, torch.cat([p.flatten() for p in trainer.model.parameters()]).detach())

    def test_hyperparameter_search(self, tmp_path):
        """K9: a model for each trial and one pruner; each begins anew and saves in its place."""
        pytest.importorskip("optuna")
        trainer = self.small(tmp_path, prune=pfb.window(0.5, stop=0.9), save_strategy="epoch")
        seen = []

        class Watch(TrainerCallback):
            def on_train_end(self, args, state, control, **kwargs):
                seen.append((trainer.pruner.steps, trainer.pruner.total_steps))

        trainer.add_callback(Watch())
        best = trainer.hyperparameter_search(
            lambda trial: {"num_train_epochs": trial.suggest_int("num_train_epochs", 1, 2)},
            n_trials=3,
            backend="optuna",
        )
        assert best.run_id is not None
        assert len(seen) == 3
        assert all(steps == total and steps in (4, 8) for steps, total in seen)
        assert len(list(tmp_path.rglob("run-*/checkpoint-*/pfb.pt"))) >= 3

    def test_the_order_of_the_mixin_matters_and_is_noticed(self, tmp_path):
        """Behind the Trainer it would never be asked."""

        class Wrong(Trainer, PrunedTrainerMixin):
            pass

        with pytest.raises(TypeError, match="pruner"):
            self.small(tmp_path, Wrong)
