"""What processes decide together; of several see test_ddp.py."""

import torch

from covidseg.training.agreement import agreed


def test_one_process_agrees_with_itself():
    assert agreed(15, torch.device("cpu")) == 15
