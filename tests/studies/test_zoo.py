"""Real architectures of torchvision, timm and transformers, tiny where they allow it, pruned inside
the model and before it.
"""

import pytest
import torch
from timm.models.xcit import Xcit

from studies.zoo import Misfit, check, members
from tests.zoo import SmallNet

pytestmark = pytest.mark.filterwarnings("ignore")

# These take the batch size from the model's input after the cut as well, so the kept part alone
# does not fit.
NOT_INSIDE = {"timm:twins_svt_small"}
if not hasattr(Xcit, "forward_cls"):  # up to timm 1.0.27 at least
    NOT_INSIDE.add("timm:xcit_nano_12_p16_224")


@pytest.mark.parametrize("member", members(), ids=lambda member: member.id)
def test_two_steps_in_both_ways_one_after_the_other(member):
    """On one model, since it takes longer to make than to train."""
    torch.manual_seed(0)
    model, batch = member.make(), member.inputs()
    check(model, batch, "before")
    if member.id in NOT_INSIDE:
        with pytest.raises(RuntimeError):
            check(model, batch, "attach")
    else:
        check(model, batch, "attach")


class Lost(SmallNet):
    def forward(self, x):
        return super().forward(x) * torch.nan


class Forgetful(SmallNet):
    def forward(self, x):
        return super().forward(x if self.training else x[:2])


@pytest.mark.parametrize(("kind", "message"), [(Lost, "loss is nan"), (Forgetful, "2 of 6 samples came out after")])
def test_a_model_that_does_not_fit_is_no_success(kind, message):
    """By an error that does not depend on asserts, which ``python -O`` leaves out."""
    batch = {"image": torch.randn(6, 3, 8, 8), "labels": torch.arange(6) % 5}
    with pytest.raises(Misfit, match=message):
        check(kind(), batch, "attach")
