"""The literal form of the equations is the same method."""

import torch

import pfb
from studies import scoring


def test_the_literal_form_chooses_and_moves_as_pfb_does():
    torch.manual_seed(0)
    x, estimator = torch.randn(60, 5), pfb.DensityEstimator(8)
    estimator.accumulate(torch.randn(40, 5))
    estimator.apply()
    literal = scoring._Literal(x, estimator, 30)
    literal()
    kept = (-estimator.log_density(x)).topk(30).indices
    estimator.accumulate(x[kept])
    estimator.apply()
    torch.testing.assert_close(literal.centers_CD.float(), estimator.centers)
    torch.testing.assert_close(literal.counts_C.long(), estimator.counts)
