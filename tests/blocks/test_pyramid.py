"""The pyramids against equations (6) to (9) in plain array code, and their reach."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from covidseg.blocks.pyramid import ASPP, PASPP, RATES, ResASPP

CHANNELS = 8
PYRAMIDS = {
    "aspp": (ASPP, None),
    "resaspp": (ResASPP, "inputs"),
    "resaspp, outputs": (partial(ResASPP, paspp_sum="outputs"), "outputs"),
    "paspp": (PASPP, "inputs"),
    "paspp, outputs": (partial(PASPP, paspp_sum="outputs"), "outputs"),
}


def pyramid(x, block, reference, summed="inputs"):
    """`summed`: what eq. (7) adds up, said here and not asked of the block: its default is a reading of the paper."""
    fp1, fp2, fp3, fp4 = fp = [reference.unit(x, unit) for unit in block.reduce]  # eq. (6)
    fd = [
        reference.unit(part, unit, dilation=2**t) for t, (part, unit) in enumerate(zip(fp, block.atrous, strict=True))
    ]
    if isinstance(block, ResASPP):  # eq. (7)
        if summed == "outputs":
            fp1, fp2, fp3, fp4 = fd
        fd = [fd[0] + fp1 + fp2, fd[1] + fp1 + fp2, fd[2] + fp3 + fp4, fd[3] + fp3 + fp4]
    if isinstance(block, PASPP):  # eq. (8)
        fd = [
            reference.unit(np.concatenate(fd[:2]), block.pairs[0]),
            reference.unit(np.concatenate(fd[2:]), block.pairs[1]),
        ]
    return reference.unit(np.concatenate(fd), block.merge)  # eq. (9)


@pytest.mark.parametrize("make, summed", PYRAMIDS.values(), ids=PYRAMIDS)
@pytest.mark.parametrize("seed", [0, 1])
def test_equations_6_to_9(make, summed, seed, reference, randomised, compare):
    block = randomised(make(CHANNELS), seed)
    assert compare(block, lambda x: pyramid(x, block, reference, summed), CHANNELS, size=(10, 9, 11)) < 1e-6


def pairs_of_every_other(fuse, self, inputs, outputs):
    first, second, third, fourth = ResASPP.fuse(self, inputs, outputs)
    return [self.pairs[0](torch.cat([first, third], 1)), self.pairs[1](torch.cat([second, fourth], 1))]


def other_rate(forward, self, x):
    return forward(self, x) if self.dilation[0] == 1 else nn.functional.conv3d(x, self.weight, padding=3, dilation=3)


MUTATIONS = {
    "eq. 6: other rates": (nn.Conv3d, "forward", other_rate),
    "eq. 7: inputs and outputs swapped": (ResASPP, "fuse", lambda fuse, self, i, o: fuse(self, o, i)),
    "eq. 7: outputs summed": (ResASPP, "fuse", lambda fuse, self, i, o: fuse(self, o, o)),
    "eq. 7: no sums": (ResASPP, "fuse", lambda fuse, self, i, o: o),
    "eq. 7: other neighbours": (ResASPP, "fuse", lambda fuse, self, i, o: fuse(self, [i[0], i[2], i[1], i[3]], o)),
    "eq. 8: other neighbours": (PASPP, "fuse", pairs_of_every_other),
    "eq. 9: other order": (torch, "cat", lambda cat, parts, dim: cat(parts[::-1], dim)),
}


@pytest.mark.parametrize("owner, name, broken", MUTATIONS.values(), ids=MUTATIONS)
def test_a_broken_equation_shows(owner, name, broken, reference, randomised, compare, monkeypatch):
    block = randomised(PASPP(CHANNELS))
    whole = getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *args, **kwargs: broken(whole, *args, **kwargs))
    assert compare(block, lambda x: pyramid(x, block, reference), CHANNELS, size=(10, 9, 11)) > 1e-3


@pytest.mark.parametrize("make", [make for make, _ in PYRAMIDS.values()], ids=PYRAMIDS)
def test_taps_along_each_axis(make):
    block = make(CHANNELS).double().eval()  # fresh batch norms: the identity, so ReLU apart the block is linear
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.abs_()
    x = torch.zeros(1, CHANNELS, 21, 21, 21, dtype=torch.float64, requires_grad=True)
    block(x + 1)[0, :, 10, 10, 10].sum().backward()
    for axis in range(3):
        line = _line(x.grad[0].sum(0), axis)
        assert {abs(int(i) - 10) for i in line.nonzero()} == {0, 1, 2, 4, 8}
    assert {int(i) for i in (x.grad[0].sum(0).nonzero() - 10).abs().max(1).values.unique()} == {0, *RATES}


def _line(volume, axis):
    index = [10, 10, 10]
    index[axis] = slice(None)
    return volume[tuple(index)]


def test_only_the_fusion_differs():
    shapes = [
        {name: value.shape for name, value in make(CHANNELS).state_dict().items()} for make in (ASPP, ResASPP, PASPP)
    ]
    assert shapes[0] == shapes[1]
    assert {name: shape for name, shape in shapes[2].items() if not name.startswith("pairs.")} == shapes[0]


def test_paspp_is_smaller_than_the_residual_block_it_replaces():
    assert sum(p.numel() for p in PASPP(512).parameters() if p.ndim > 1) == round(9.25 * 512**2)


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="multiple of 4 channels, got 6"):
        ASPP(6)
    with pytest.raises(ValueError, match="multiple of 4 channels, got 0"):
        ASPP(0)
    with pytest.raises(ValueError, match="'inputs' or 'outputs'"):
        PASPP(8, paspp_sum="both")
