"""Real architectures of torchvision, timm and transformers, tiny where they allow it, in both
wirings.
"""

import pytest
import torch

from studies.zoo import Member, Misfit, check, members
from tests.zoo import SmallNet

pytestmark = pytest.mark.filterwarnings("ignore")

# These take the batch size from the model's input after the cut as well, so the kept part alone
# does not fit.
NOT_WITH_REUSE = {"timm:twins_svt_small"}


@pytest.mark.parametrize("member", members(), ids=lambda member: member.id)
def test_two_steps(member, shallow):
    if shallow == "reuse" and member.id in NOT_WITH_REUSE:
        with pytest.raises(RuntimeError):
            check(member, shallow)
    else:
        check(member, shallow)


class Lost(SmallNet):
    def forward(self, x):
        return super().forward(x) * torch.nan


class Forgetful(SmallNet):
    def forward(self, x):
        return super().forward(x if self.training else x[:2])


@pytest.mark.parametrize(("kind", "message"), [(Lost, "loss is nan"), (Forgetful, "2 of 4 samples came out after")])
def test_a_model_that_does_not_fit_is_no_success(kind, message):
    """By an error that does not depend on asserts, which ``python -O`` leaves out."""
    inputs = {"image": torch.randn(4, 3, 8, 8), "labels": torch.arange(4)}
    with pytest.raises(Misfit, match=message):
        check(Member("own", kind.__name__, kind, lambda: inputs), "reuse")
