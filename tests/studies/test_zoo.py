"""Real architectures of torchvision, timm and transformers, tiny where they allow it, in both
wirings.
"""

import pytest

from studies.zoo import check, members

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
