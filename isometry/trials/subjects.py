"""Networks and inputs that several analyses measure."""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn

from isometry import networks
from isometry.data import IMAGENET, load

__all__ = ["resnet_56"]


def resnet_56(quick: bool) -> tuple[nn.Module, Tensor, str]:
    """Return the pretrained ResNet-56, 2,000 CIFAR-10 test images and a description of both.

    Without $ISOMETRY_DATA it is a random ResNet-56 on 512 random images, which the description says.

    Args:
        quick: return a random ResNet-20 on 40 random images.
    """
    if quick or not os.environ.get("ISOMETRY_DATA"):
        net = networks.build("resnet-20" if quick else "resnet-56", seed=0)
        with torch.no_grad():  # a random net without trained statistics explodes: scale its branches down
            for module in net.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.weight.mul_(0.2)
        return net.eval(), torch.randn(40 if quick else 512, 3, 32, 32), "random weights"
    net = networks.build("resnet-56", weights="cifar10").eval()
    images = load("cifar10", normalization=IMAGENET).test.inputs
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return net, images[order[:2000]], "pretrained, CIFAR-10"
