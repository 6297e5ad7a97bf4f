"""Every YAML file of every group makes what it names, found by the listing of the folders, and does its work once."""

import pytest
import torch
from hydra import compose, initialize_config_dir

from choices import choices
from covidseg.config.build import instantiate
from covidseg.config.paths import CONF
from covidseg.config.plain import as_dict


def composed(*overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", overrides=list(overrides))


@pytest.mark.parametrize("classes", [1, 2, 3])
@pytest.mark.parametrize("name", choices("loss"))
def test_a_loss_is_a_scalar_with_a_gradient(name, classes):
    loss = instantiate(composed(f"loss={name}").loss, "loss")
    logits = torch.randn(2, classes, 4, 4, 4, requires_grad=True)
    target = torch.randint(0, max(classes, 2), (2, 4, 4, 4))
    value = loss(logits, target)
    value.backward()
    assert value.shape == () and torch.isfinite(value) and logits.grad.abs().sum() > 0
    heads = [logits.detach(), logits.detach()]
    torch.testing.assert_close(loss(heads, target), value.detach())  # deep supervision: the mean of its heads


@pytest.mark.parametrize("name", choices("optimizer"))
def test_an_optimizer_and_its_schedule_go_downhill(name):
    options = as_dict(composed(f"optimizer={name}").optimizer)
    schedule = instantiate(options.pop("schedule"), "optimizer")
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = instantiate({**options, "_partial_": True}, "optimizer")([weight])
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
    before = weight.square().sum().item()
    for _ in range(5):
        optimizer.zero_grad()
        weight.square().sum().backward()
        optimizer.step()
        scheduler.step()
    assert weight.square().sum().item() < before


@pytest.mark.parametrize("name", choices("augment"))
def test_an_augmentation_keeps_shape_and_kind(name):
    augment = instantiate(composed(f"augment={name}").augment, "augment")
    image, labels = torch.rand(2, 1, 16, 16, 16), torch.randint(0, 3, (2, 1, 16, 16, 16), dtype=torch.uint8)
    changed, mask = augment(image, labels, torch.Generator().manual_seed(0))
    assert changed.shape == image.shape and changed.dtype == image.dtype and torch.isfinite(changed).all()
    assert mask.shape == labels.shape and mask.dtype == labels.dtype and set(mask.unique().tolist()) <= {0, 1, 2}


@pytest.mark.parametrize("name", [name for name in choices("callbacks") if name != "none"])
def test_a_callback_is_lightnings(name):
    import pytorch_lightning as pl

    made = [instantiate(options, "callbacks") for options in composed(f"callbacks={name}").callbacks.values()]
    assert made and all(isinstance(one, pl.Callback) for one in made)
