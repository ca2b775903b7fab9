"""A step of the optimizer: from several batches, with shortened gradients, compiled."""

from inspect import signature

import pytest
import torch
from torch import nn

from pfb.lab.errors import RunError
from pfb.lab.train import loop
from pfb.lab.train.loop import Training, dry_run, train
from pfb.lab.train.output.folder import RunFolder
from tests.lab.train.runs import config, end_of, interrupt_evaluation, weights

pytestmark = [
    pytest.mark.usefixtures("_fresh_accelerate"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning"),
]

PLAIN = {"track": "none", "augment": False, "label_smoothing": 0.0, "method": "full"}


class TestAccumulate:
    def test_two_batches_are_as_good_as_one_of_twice_the_size(self, tmp_path, monkeypatch):
        """Without BatchNorm, whose statistics are those of a batch."""
        monkeypatch.setattr("pfb.lab.train.setup.build_for", perceptron)
        for name, changes in (("two", {"batch_size": 32, "accumulate": 2}), ("one", {"batch_size": 64})):
            settings = {**PLAIN, "epochs": 1, "lr_schedule": "constant"}
            train(config(tmp_path / name, **{**settings, **changes}))
        two, one = (weights(tmp_path / name) for name in ("two", "one"))
        for name in one:
            torch.testing.assert_close(two[name], one[name], atol=1e-6, rtol=1e-5)

    def test_the_blocker_counts_steps_of_the_optimizer_and_the_last_takes_what_is_left(self, tmp_path):
        training = Training(config(tmp_path / "run", accumulate=4, log_every=1, start=0.0, stop=0.5, track="none"))
        assert (training.length.per_epoch, training.blocker.total_steps) == (6, 4)
        shares = []
        step = training.blocker.step

        def noting():
            shares.append(training.blocker.prune)
            step()

        training.blocker.step = noting
        training.run(resume=False)
        assert shares == [0.4, 0.4, 0.0, 0.0]
        assert training.lr_schedule.last_epoch == 12
        assert [line["step"] for line in RunFolder(tmp_path / "run").steps()] == [4, 6, 10, 12]

    def test_it_resumes_bit_identical(self, tmp_path, monkeypatch):
        settings = {"accumulate": 4, "clip": 0.5, "ema": 0.9, "track": "none"}
        train(config(tmp_path / "straight", **settings))
        interrupt_evaluation(monkeypatch, at=3)
        with pytest.raises(KeyboardInterrupt):
            train(config(tmp_path / "broken", **settings))
        monkeypatch.undo()
        train(RunFolder(tmp_path / "broken").config(), resume=True)
        assert end_of(tmp_path / "broken") == end_of(tmp_path / "straight")


def test_clipped_gradients_are_no_longer_than_asked(tmp_path):
    training = Training(config(tmp_path / "run", clip=0.01, optimizer="sgd", momentum=0.0, weight_decay=0.0))
    before = [p.detach().clone() for p in training.plain_model.parameters()]
    training.sampler.set_epoch(0)
    rate = training.lr_schedule.get_last_lr()[0]
    training.step(training.prune(next(iter(training.train_loader))))
    moved = torch.cat([(b - p).flatten() for b, p in zip(before, training.plain_model.parameters(), strict=True)])
    assert float(moved.norm()) == pytest.approx(0.01 * rate, rel=1e-3)


class TestCompile:
    @pytest.fixture
    def compiled(self, monkeypatch):
        """What was compiled, without compiling it."""
        models = []
        monkeypatch.setattr(nn.Module, "compile", lambda model: models.append((model, len(hooks(model)))))
        return models

    def test_the_model_is_compiled_after_it_was_attached_to_and_so_is_what_is_timed(self, tmp_path, compiled):
        train(config(tmp_path / "run", epochs=1, compile=True, track="none"))
        (trained, attached), (timed, attached_too) = compiled
        assert trained is not timed
        assert attached
        assert attached_too
        assert "_orig_mod" not in "".join(weights(tmp_path / "run")), "names stay those of the plain model"

    @pytest.mark.slow
    def test_a_compiled_run_ends_as_one_that_is_not(self, tmp_path, monkeypatch, method):
        compile_ = nn.Module.compile
        monkeypatch.setattr(nn.Module, "compile", lambda model: compile_(model, backend="aot_eager"))
        summaries = [train(config(tmp_path / str(on), method=method, compile=on, track="none")) for on in (0, 1)]
        assert summaries[0]["test_loss"] == pytest.approx(summaries[1]["test_loss"], rel=1e-3)

    @pytest.mark.parametrize("run", [dry_run, train])
    def test_a_compiler_that_fails_is_one_line(self, tmp_path, monkeypatch, compiled, run):
        def fail(training, batch):
            from torch._dynamo.exc import BackendCompilerFailed

            reason = RuntimeError("No working C++ compiler\nin: g++")
            arguments = ("inductor", reason, None)  # PyTorch 2.6 takes no frame
            raise BackendCompilerFailed(*arguments[: len(signature(BackendCompilerFailed).parameters)])

        monkeypatch.setattr(loop.Training, "step", fail)
        with pytest.raises(RunError, match="^--compile: torch.compile failed .No working C.. compiler.; leave it out$"):
            run(config(tmp_path / "run", compile=True, track="none"))


def perceptron(*_):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def hooks(model):
    return [hook for m in model.modules() for hook in (*m._forward_hooks, *m._forward_pre_hooks)]
