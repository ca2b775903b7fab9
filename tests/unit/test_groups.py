"""Nobody is starved, copies are stopped: each kind of data of the study of groups, small."""

import pytest
import torch

import pfb
from pfb.lab.train.data.clips import frames
from studies.group_data import GROUPS, normalised
from studies.groups import SCALES, shares, stream
from tests.unit.test_neighbours import chances_of

OWN = list(SCALES)[1]


def kept(name, pictures, samples=1536):
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    data = GROUPS[name](samples, pictures, generator)
    told = stream(data, samples // 3, 64, 1, generator, torch.device("cpu"))
    return shares(data, told[OWN], generator)


@pytest.mark.parametrize(
    "name", ["cluster", "sky", "night", "site", "rare level", "fraud", "faults", "chirps", "chats"]
)
def test_a_group_without_copies_is_not_starved(name, pictures):
    assert kept(name, pictures)["group"] > LIMITS.get(name, 0.4)


LIMITS = {"chirps": 0.25}
"""A limit: a sketch tells spectrograms of a single tone apart by few things, beside noise."""


@pytest.mark.parametrize("name", ["events", "defects"])
def test_what_is_rare_and_matters_is_kept_above_the_rest(name, pictures):
    found = kept(name, pictures)
    assert found["group"] > found["rest"] - (0.05 if name == "defects" else 0)


@pytest.mark.parametrize(("name", "auc"), [("clips", 0.95), ("far clusters", 0.95), ("templates", 0.95)])
def test_copies_are_told_from_singles(name, auc, pictures):
    found = kept(name, pictures)
    assert found["auc"] > auc
    assert found["group"] < 0.35 < 0.65 < found["rest"]


def test_no_class_of_distinct_pictures_is_starved(pictures):
    assert kept("distinct", pictures)["group"] > 0.4


@pytest.mark.parametrize(("share", "is_seen"), [(0.5, True), (0.9, False)])
def test_a_state_that_is_nearly_all_is_taken_for_what_is_usual(share, is_seen):
    """A limit: of a sensor that is idle nine tenths of the time, idle and active go on alike."""
    torch.manual_seed(0)
    idle = int(2500 * share)
    x = torch.randn(2500, 12)
    x[:idle] = x[:1] + 0.05 * x[:idle]
    stopped, active = chances_of(x, (torch.arange(idle), torch.arange(idle, 2500)))
    assert (stopped < 0.6 * active) is is_seen


def test_a_shift_of_two_pixels_and_a_burnt_in_clock_hide_no_copies_where_own_views_are_known(pictures):
    g = torch.Generator().manual_seed(0)
    shown, sketch = pictures.some(700, g), pfb.Sketch()
    clips = shown[:60].repeat_interleave(9, 0)
    clock = frames(clips, g, shift=0)
    clock[:, :, 2:7, 2:29] = 255  # seven digits, of which two run
    clock[:, :, 2:7, 22:29] *= torch.randint(2, (len(clips), 1, 5, 7), generator=g).to(torch.uint8)
    for changed in (frames(clips, g, shift=2), clock):
        x = normalised(torch.cat([changed, shown[60:]]))
        near = pfb.find_copies(sketch(x), own=sketch.own_view(x, g), images=True).near
        assert near[: len(clips)].float().mean() > 0.95
        assert near[len(clips) :].float().mean() < 0.02
