"""What a step costs in operations."""

import pytest
import torch
from torch import nn

from pfb.model.cost import shallow_share


def test_equal_layers_count_alike_and_every_modules_mode_is_kept():
    """In evaluation mode PyTorch fuses whole layers, whose operations are not counted."""
    layer = nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
    model.layers[1].eval()
    assert shallow_share(model, "layers.0", torch.randn(2, 5, 16)) == pytest.approx(0.25)
    assert (model.training, model.layers[0].training, model.layers[1].training) == (True, True, False)
