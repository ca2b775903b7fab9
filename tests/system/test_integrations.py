"""Adapters and examples: every example runs, resumes where it claims to, and scales its loss as it
says.
"""

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
from torch.utils.data import DataLoader, TensorDataset
from transformers import GPT2Config, GPT2LMHeadModel, TrainingArguments

import pfb
from pfb.integrations.lightning import BlockerCallback
from pfb.integrations.transformers import BlockingTrainer

EXAMPLES = Path(__file__).parents[2] / "examples"
pytestmark = pytest.mark.filterwarnings("ignore")  # third-party trainers warn about our tiny set-ups


def example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def same(a, b):
    """Two states, tensor for tensor."""
    equal = [torch.equal(a[k], b[k]) if isinstance(a[k], torch.Tensor) else a[k] == b[k] for k in a]
    return a.keys() == b.keys() and all(equal)


def test_every_example_is_tested():
    tested = "".join(path.read_text() for path in Path(__file__).parents[1].rglob("test_*.py"))
    assert all(path.stem in tested for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb"))


def test_plain_loop():
    assert example("plain_loop").main(epochs=3) > 0.8


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
    assert share[~is_copy].mean() > share[is_copy].mean() + 0.4, "copies are what is stopped"
    assert names["model"](names["x"][:7]).shape == (7, 10)


def test_torchvision_script():
    report = example("torchvision_script").main(epochs=2, model_name="shufflenet_v2_x0_5")
    assert report["stopped"] == pytest.approx(6 / 16 * 2 / 6), "the window ends with the second of six steps"
    assert 0 <= report["accuracy"] <= 1


def test_timm_script():
    accuracy, blocker = example("timm_script").main(epochs=4, accumulate=2)
    assert accuracy > 40
    assert blocker.steps == blocker.total_steps == 16, "the optimizer's, not the micro-batches'"


def test_torchvision_detection():
    first, last, blocker = example("torchvision_detection").main(steps=15)
    assert last < 0.8 * first
    assert blocker.selection.indices.numel() == 6


@pytest.mark.parametrize("reader", ["tarfile", "webdataset"])
def test_webdataset_shards(reader):
    if reader == "webdataset":
        pytest.importorskip("webdataset")
    accuracy, blocker = example("webdataset_shards").main(with_webdataset=reader == "webdataset")
    assert accuracy > 0.9
    assert blocker.steps == blocker.total_steps == 24, "which the stream did not know"


@pytest.mark.parametrize("streaming", [False, True])
def test_huggingface_datasets(streaming):
    pytest.importorskip("datasets")
    accuracy, blocker = example("huggingface_datasets").main(streaming=streaming)
    assert accuracy > 0.9
    assert blocker.stats["kept_share"] == 20 / 32


def test_accelerate_resume(capsys):
    runpy.run_path(str(EXAMPLES / "accelerate_resume.py"), run_name="__main__")
    assert "bit-identical" in capsys.readouterr().out


@pytest.fixture
def window_without_total_steps(monkeypatch):
    """The examples attach with a schedule that is not told its length; these are their blockers."""
    attach, blockers = pfb.attach, []

    def attach_with_window(model, prune, **settings):
        blockers.append(attach(model, prune=pfb.window(prune, stop=0.5), **settings))
        return blockers[-1]

    monkeypatch.setattr(pfb, "attach", attach_with_window)
    return blockers


QUIET = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False, "logger": False}


def fit(module, folder, **options):
    """Four batches of 20 samples an epoch."""
    data = TensorDataset(torch.randn(80, 20), torch.randint(2, (80,)))
    options = {"max_epochs": 1, "enable_checkpointing": False, "default_root_dir": folder, **QUIET, **options}
    pl.Trainer(**options).fit(module, DataLoader(data, 20))


class TestLightning:
    def test_steps_with_the_optimizer_also_when_batches_accumulate(self, tmp_path):
        train = example("lightning_callback").main
        module = train(str(tmp_path), epochs=1, enable_checkpointing=False, **QUIET)
        assert module.blocker.steps == 16
        assert module.blocker.stats["kept_share"] == 20 / 32
        module = train(str(tmp_path), epochs=1, enable_checkpointing=False, accumulate_grad_batches=4, **QUIET)
        assert module.blocker.steps == 4

    def test_resume_brings_the_estimator_back(self, tmp_path):
        train = example("lightning_callback").main
        first = train(str(tmp_path), epochs=1, **QUIET)
        saved = next(tmp_path.rglob("*.ckpt"))
        state = torch.load(saved, weights_only=True)["callbacks"]
        [ours] = [value for key, value in state.items() if "BlockerCallback" in key]
        assert ours["step"] == 16
        assert same(ours["estimator"], first.blocker.density.state_dict())
        resumed = train(str(tmp_path), epochs=2, checkpoint=str(saved), **QUIET)
        assert resumed.blocker.steps == 32
        assert not same(resumed.blocker.density.state_dict(), ours["estimator"])

    def test_the_share_pruned_is_logged_with_every_step(self, tmp_path):
        shares = []

        class Watch(pl.Callback):
            def on_train_batch_end(self, trainer, *_):
                shares.append(float(trainer.callback_metrics["pruned_share"]))

        module = example("lightning_callback").Classifier()
        fit(module, tmp_path, callbacks=[BlockerCallback(module.blocker), Watch()])
        assert shares == [pytest.approx(0.4)] * 4

    def test_a_schedule_learns_the_number_of_steps(self, tmp_path, window_without_total_steps):
        module = example("lightning_callback").Classifier()
        fit(module, tmp_path, accumulate_grad_batches=2, max_epochs=3, callbacks=[BlockerCallback(module.blocker)])
        assert module.blocker.total_steps == 6

    def test_a_schedule_over_training_without_end_is_refused(self, tmp_path, window_without_total_steps):
        module = example("lightning_callback").Classifier()
        with pytest.raises(ValueError, match="this Trainer has no end"):
            fit(module, tmp_path, max_epochs=-1, callbacks=[BlockerCallback(module.blocker)])

    @pytest.mark.parametrize("calls_itself", [False, True])
    def test_attached_to_a_module_that_is_not_called_the_first_step_says_so(self, tmp_path, shallow, calls_itself):
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
        blocker = pfb.attach(root, cut="body", prune=0.4, shallow=shallow)
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
        """A run of three epochs, which leaves a checkpoint after each."""
        return example("transformers_trainer").main(str(tmp_path_factory.mktemp("run")), epochs=3, **self.options())

    @pytest.fixture
    def half(self, straight, tmp_path):
        """The checkpoint after its first epoch, in a folder of the test's own."""
        place = tmp_path / "checkpoint-16"
        shutil.copytree(Path(straight.args.output_dir) / place.name, place)
        return place

    def test_labels_inside_the_forward_and_resume(self, straight, half):
        assert straight.blocker.steps == 48
        assert straight.blocker.stats["kept_share"] == 20 / 32
        fit = example("transformers_trainer").main
        resumed = fit(str(half.parent), epochs=3, checkpoint=str(half), **self.options(save_strategy="no"))
        assert resumed.blocker.steps == 48
        for a, b in zip(straight.model.parameters(), resumed.model.parameters(), strict=True):
            assert torch.equal(a, b), "a resumed run ends bit-identical"
        assert same(*(trainer.blocker.density.state_dict() for trainer in (straight, resumed)))

    def test_a_checkpoint_without_our_state_is_an_error(self, half):
        (half / "pfb.pt").unlink()
        with pytest.raises(FileNotFoundError, match=r"no pfb.pt to resume"):
            example("transformers_trainer").main(str(half.parent), epochs=2, checkpoint=str(half), **self.options())

    def test_the_share_pruned_stands_beside_the_loss(self, straight):
        *steps, end, evaluation = straight.state.log_history
        assert [line["pruned_share"] for line in steps] == [0.375] * 48
        assert all("loss" in line for line in steps)
        assert "pruned_share" not in end | evaluation

    def test_a_schedule_learns_the_number_of_steps(self, tmp_path, window_without_total_steps):
        blockers = window_without_total_steps
        example("transformers_trainer").main(str(tmp_path), epochs=1, **self.options(save_strategy="no"))
        assert blockers[0].total_steps == 16

    def test_a_causal_language_model(self, tmp_path):
        trainer, loss = example("transformers_causal_lm").main(str(tmp_path), epochs=1, disable_tqdm=True)
        assert loss["after"] < loss["before"] - 1
        assert trainer.blocker.total_steps == trainer.state.max_steps
        assert [line["pruned_share"] for line in trainer.state.log_history if "loss" in line] == [0.375]

    def test_a_classifier_learns_and_is_evaluated_on_all_samples(self, straight):
        result = straight.predict(straight.eval_dataset)
        assert len(result.predictions) == 128
        assert result.metrics["test_accuracy"] > 0.9

    def test_refusals(self, tmp_path):
        model = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=3, n_head=2, vocab_size=50))
        smoothing = TrainingArguments(str(tmp_path), report_to=[], label_smoothing_factor=0.1, use_cpu=True)
        with pfb.attach(model) as blocker, pytest.raises(ValueError, match='shallow="recompute"'):
            BlockingTrainer(model=model, args=smoothing, blocker=blocker)
        blocker = pfb.attach(model, shallow="recompute")
        with pytest.raises(ValueError, match="label_smoothing_factor"):
            BlockingTrainer(model=model, args=smoothing, blocker=blocker)
        plain = TrainingArguments(str(tmp_path), report_to=[], use_cpu=True)
        with pytest.raises(ValueError, match="compute_loss_func"):
            BlockingTrainer(model=model, args=plain, blocker=blocker, compute_loss_func=lambda *_: 0.0)
