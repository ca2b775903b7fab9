"""The nine minutes on a GPU, rehearsed with tiny models on the CPU."""

import dataclasses
import itertools
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from studies.gpu import GpuConfig, images, packing, plan, run, scheduler, steps, table, trainings
from studies.gpu.plan import Item
from studies.gpu.scheduler import Journal, Queue, Scheduler
from studies.gpu.settings import parsed

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """120 images of two classes, packed."""
    from PIL import Image

    folder, data = (tmp_path_factory.mktemp(name) for name in ("jpeg", "packed"))
    generator = torch.Generator().manual_seed(0)
    for part, count in (("train", 48), ("test", 16)):
        for i, name in enumerate(("frog", "ship")):
            (folder / part / name).mkdir(parents=True)
            for k in range(count):
                noise = torch.randint(120, (8, 8, 3), generator=generator, dtype=torch.uint8) + 100 * i
                picture = Image.fromarray(noise.numpy()).resize((32, 32))
                picture.save(folder / part / name / f"{k:04}.jpg", quality=95)
    run(GpuConfig(pack=folder, data=data))
    return data


def tiny(data, out, **settings):
    return GpuConfig(
        **{"data": data, "out": out, "tiny": True, "device": "cpu", "workers": 0, "backend": "eager", **settings}
    )


# Images


def test_images_come_out_of_the_pack_as_they_went_in(data):
    found = images.load(data, torch.device("cpu"), "plain", plan.TINY)
    assert found.train.shape == (64, 3, 40, 40)
    assert found.test.shape == (32, 3, 32, 32)
    brightness = images.inner(found.train).float().mean((1, 2, 3))
    assert ((brightness > 110) == (found.labels == 1)).all()


def test_clips_hold_near_equal_frames_beside_single_images(data):
    found = images.load(data, torch.device("cpu"), "clips", plan.TINY)
    assert found.copies.tolist() == [8.0] * 16 + [1.0] * 16
    assert found.distinct.tolist() == [0, 8, *range(16, 32)]
    x = images.inner(found.train).float().flatten(1)
    distance = torch.cdist(x, x) / x.size(1) ** 0.5
    clip = torch.arange(32) // 8
    same = (clip[:, None] == clip) & (clip < 2) & ~torch.eye(32, dtype=torch.bool)
    assert distance[same & (clip[:, None] < 2)].max() < distance[~same & ~torch.eye(32, dtype=torch.bool)].min()


def test_nothing_packed_is_refused_with_the_command_that_packs(tmp_path):
    with pytest.raises(FileNotFoundError, match="--pack FOLDER"):
        packing.decode(tmp_path)
    with pytest.raises(FileNotFoundError, match="train/CLASS"):
        packing.pack(tmp_path, tmp_path)


# Time


class Sleeper:
    """Stands for a worker's process."""

    alive = True

    def __init__(self, seconds=0.0):
        self.seconds, self.asked = seconds, []

    def ask(self, item, until):
        self.asked.append(item.name)
        time.sleep(min(self.seconds, max(0.0, until - time.monotonic())))
        return {"status": "done", "seconds": self.seconds, "result": {}, "origin": {"device": "none"}}

    def end(self):
        self.alive = False


def items(*seconds):
    return [Item(f"item/{i}", "train", {"seed": i}, s, work=s) for i, s in enumerate(seconds)]


def test_an_item_that_does_not_fit_is_left_for_one_that_does(tmp_path):
    queue = Queue(items(100, 50, 1), Journal(tmp_path, {}))
    assert queue.take(time.monotonic() + 60).name == "item/1"
    assert queue.take(time.monotonic() + 60).name == "item/2"
    assert queue.take(time.monotonic() + 60) is None
    assert [item.name for item in queue.items] == ["item/0"]


def test_what_trainings_took_is_expected_of_the_next(tmp_path):
    queue = Queue(items(10, 20), Journal(tmp_path, {}))
    first = queue.take(time.monotonic() + 60)
    queue.learn(first, {"status": "done", "seconds": 100.0})
    assert queue.expected(queue.items[0]) == pytest.approx(200 * scheduler.LATE)


def test_several_workers_share_a_queue_and_write_one_line_for_each_item(tmp_path):
    journal, workers = Journal(tmp_path, {"commit": "abc"}), []

    def start():
        workers.append(Sleeper(0.05))
        return workers[-1]

    runs = Scheduler(journal, start, lambda text: None)
    queue = Queue(items(*[0.05] * 8), journal)
    end = time.monotonic() + 30
    runs.run([(queue, 3), (Queue([], journal), 1)], end, end)
    runs.close()
    assert len(workers) == 3
    assert all(worker.asked for worker in workers)
    written = scheduler.read(tmp_path)
    assert sorted(line["item"] for line in written) == [f"item/{i}" for i in range(8)]
    assert {(line["device"], line["commit"]) for line in written} == {("none", "abc")}
    assert not any(worker.alive for worker in workers)


def test_a_line_that_was_cut_off_is_measured_again(tmp_path):
    journal = Journal(tmp_path, {})
    one, two = items(1, 1)
    journal.write(one.name, one.settings, {"status": "done", "seconds": 1.0})
    journal.write(two.name, two.settings, {"status": "failed", "seconds": 1.0})
    with journal.path.open("a") as file:
        file.write('{"item": "item/1", "sta')
    again = Journal(tmp_path, {})
    assert [item.name for item in Queue([one, two], again).items] == ["item/1"]
    other = dataclasses.replace(one, settings={"seed": 0, "epochs": 2})
    assert Queue([other], again).items == [other]


def test_the_plan_fits_into_nine_minutes_where_it_is_timed():
    found = plan.plan(GpuConfig())
    names = [item.name for item in found.everything()]
    assert len(set(names)) == len(names)
    alone, last = (sum(item.seconds for item in part) for part in (found.alone, found.last))
    assert alone + last < 0.6 * 9 * 60
    first = [item for item in found.beside if item.name.startswith(("train/clips/0", "train/plain/0"))]
    assert alone + last + sum(item.seconds for item in first) / GpuConfig().workers < 8 * 60
    pairs = [tuple(item.name.split("/")[1:3]) for item in found.beside]
    assert len({*pairs}) == len([*itertools.groupby(pairs)])


# The whole


def test_a_rehearsal_that_is_cut_off_goes_on(data, tmp_path, capsys):
    """First no time for anything; then the timed steps of one model; then trainings beside them."""
    run(tiny(data, tmp_path, minutes=0.0, only="steps/swin_t"))
    (line,) = scheduler.read(tmp_path)
    assert line["status"] == "skipped"
    assert "steps/swin_t/eager/0.4" in line["skipped"]
    assert "Nothing was measured" in (tmp_path / "table.md").read_text()

    asked = "steps/swin_t,steps/gpt2,judging/tokens,waits"
    run(tiny(data, tmp_path, only=asked, commit="abc"))
    lines = [line for line in scheduler.read(tmp_path) if line["status"] == "done"]
    assert {line["item"] for line in lines} == {
        *("waits", "judging/tokens/64", "steps/gpt2/eager/0.4"),
        *("steps/swin_t/eager/0.4", "steps/swin_t/eager/0.5", "steps/swin_t/compiled/0.4"),
    }
    for line in lines:
        assert (line["device"], line["torch"], line["commit"], line["seed"]) == ("cpu", torch.__version__, "abc", 0)
        assert line["settings"]["tiny"]
    capsys.readouterr()
    path = run(tiny(data, tmp_path, only=asked + ",train/few/0"))
    told = capsys.readouterr().out
    assert "0 items to be timed, 3 trainings" in told
    text = path.read_text()
    assert "| swin_t, compiled, 8 x 32 | 40 % |" in text
    assert all(f"| `{arm}` | 1 |" in text for arm in plan.ARMS["few"])
    assert len(scheduler.read(tmp_path)) == 1 + 6 + 3


@pytest.mark.parametrize("arm", ["paper", "copies", "oracle", "removed-true", "short"])
def test_every_arm_trains_on_as_many_samples_as_it_says(data, arm):
    config = GpuConfig(tiny=True)
    of = "plain" if arm == "paper" else "clips"
    (item,) = [item for item in plan.trainings(config) if item.name == f"train/{of}/0/{arm}"]
    settings = {**item.settings, "epochs": 12}
    result = trainings.train(settings, data, torch.device("cpu"))
    batch, full = settings["batch"], result["full_steps"]
    assert full == 12 * (4 if of == "plain" else 2)
    share = result["trained"] / (full * batch)
    window = plan.WINDOW[1] - plan.WINDOW[0]
    if arm == "paper":
        assert 1 - 0.4 * window < share < 1 - 0.2 * window
    else:
        assert share == pytest.approx(1 - 0.4 * window, abs=0.05)
    assert result["steps"] == (full if arm in ("paper", "copies", "oracle") else round(full * (1 - 0.4 * window)))
    if arm == "oracle":
        assert result["frames_kept"] < 0.5 < result["singles_kept"]


def test_a_failure_is_a_line_and_the_rest_goes_on(data, tmp_path, monkeypatch):
    measured = steps.step_times

    def fail(settings, device):
        if settings["prune"] == 0.4:
            raise RuntimeError("no kernel image")
        return measured(settings, device)

    monkeypatch.setitem(worker_measures(), "steps", fail)
    path = run(tiny(data, tmp_path, only="steps/swin_t/eager"))
    status = {line["item"]: line["status"] for line in scheduler.read(tmp_path)}
    assert status == {"steps/swin_t/eager/0.4": "failed", "steps/swin_t/eager/0.5": "done"}
    assert "| steps/swin_t/eager/0.4 | failed | RuntimeError: no kernel image |" in path.read_text()


def worker_measures():
    from studies.gpu import worker

    return worker.MEASURES


def test_processes_train_and_none_is_left_when_the_time_is_up(data, tmp_path):
    """By the command line, in processes of its own, with PyTorch alone."""
    hide = tmp_path / "hide"
    hide.mkdir()
    for name in ("tyro", "matplotlib", "rich", "accelerate", "timm", "tensorboard"):
        (hide / f"{name}.py").write_text(f"raise ImportError('{name} is not there')\n")
    flags = [
        *("--data", str(data), "--out", str(tmp_path), "--device", "cpu", "--only", "train/few/0", "--minutes", "2")
    ]
    path = f"{hide}:{ROOT / 'src'}:{ROOT}"
    asked = subprocess.run(
        [sys.executable, "-m", "studies.gpu", "--tiny", "--workers", "1", *flags],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={"PYTHONPATH": path, "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", "HOME": str(tmp_path)},
        check=False,
    )
    assert asked.returncode == 0, asked.stderr + (tmp_path / "errors.log").read_text()
    status = {line["item"]: line["status"] for line in scheduler.read(tmp_path)}
    assert status == dict.fromkeys((f"train/few/0/{arm}" for arm in plan.ARMS["few"]), "done")


def test_a_worker_that_is_late_or_ends_is_told(tmp_path, data):
    with (tmp_path / "errors.log").open("a") as errors:
        worker = scheduler.Worker(data, "cpu", errors)
        (item,) = items(1)
        assert worker.ask(item, time.monotonic())["status"] == "cut off"
        assert not worker.alive
        worker = scheduler.Worker(data, "no-such-device", errors)
        answer = worker.ask(item, time.monotonic() + 60)
    assert answer["status"] == "failed"
    assert "exit code 1" in answer["error"]
    assert not worker.alive


# Settings and tables


def test_flags_are_those_of_the_settings(tmp_path):
    assert parsed([]) == GpuConfig()
    assert parsed(["--minutes", "3", "--tiny", "--out", str(tmp_path)]) == GpuConfig(
        minutes=3.0, tiny=True, out=tmp_path
    )


def test_goals_are_judged_round_by_round():
    times = {"full": [1.0] * 5, "ideal": [0.6] * 5, "copies": [0.605, 0.605, 0.605, 0.7, 0.7], "paper": [0.7] * 5}
    settings = {"model": "resnet50", "mode": "eager", "batch": 256, "size": 224, "prune": 0.4}
    result = {
        "step_seconds": times,
        "launch_seconds": dict.fromkeys(times, 0.01),
        "peak_bytes": dict.fromkeys(times, 2**30),
        "state_bytes": 2**29,
    }
    origin = dict.fromkeys(("device", "torch", "cuda", "cudnn", "commit"), "x")
    line = {"item": "steps/resnet50/eager/0.4", "status": "done", "settings": settings, "result": result, **origin}
    text = table.render([json.loads(json.dumps(line))])
    assert "| 40.0 (40.0 to 40.0) | 39.5 (30.0 to 39.5) | 30.0 (30.0 to 30.0) (missed) | 0.5 (0.5 to 10.0) |" in text
    assert "| 1.00 | 1.00 | 1.00 | 1.00 | 0.50 |" in text


def test_no_images_leave_the_timed_items(tmp_path, capsys):
    run(tiny(tmp_path, tmp_path / "out", only="judging/tokens,train/few/0"))
    assert "nothing is trained" in capsys.readouterr().out
    done = [line["item"] for line in scheduler.read(tmp_path / "out") if line["status"] == "done"]
    assert done == ["judging/tokens/64"]


def test_kept_samples_are_those_of_the_pruner():
    for n, prune in itertools.product((8, 16, 256), plan.PRUNES):
        pruner = steps.pruner_of("uniform", torch.nn.Identity(), prune)
        assert len(pruner(torch.randn(n, 3, 4, 4))) == steps.kept_of(n, prune)
