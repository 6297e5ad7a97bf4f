"""What the tests of the networks share."""

import pytest
import torch


@pytest.fixture(autouse=True)
def same_weights_in_any_order():
    """Each test draws the weights and volumes that it draws when it runs alone."""
    torch.manual_seed(0)
