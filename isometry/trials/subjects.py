"""Networks and inputs that several analyses measure."""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn

from isometry import networks
from isometry.data import IMAGENET, load

__all__ = ["Scaled", "resnet_56"]


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


class Scaled(nn.Module):
    """exp(sigma x_c) W (x_1, ..., x_n), x_c having no derivative in the first factor: a map whose size varies between samples.

    Args:
        weight: [m, n], W.
        sigma: of the logarithm of the size, for normal inputs.
        column: c.
    """

    def __init__(self, weight: Tensor, sigma: float, column: int = 0) -> None:
        super().__init__()
        self.weight, self.sigma, self.column = nn.Parameter(weight), sigma, column

    @classmethod
    def of(cls, values: Tensor, sigma: float) -> Scaled:
        """Return the map whose W has these singular values [n], its directions random."""
        generator = torch.Generator().manual_seed(0)
        u, v = (torch.linalg.qr(torch.randn(len(values), len(values), generator=generator)).Q for _ in range(2))
        return cls((u * values) @ v.T, sigma)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 1 + n] -> [B, m]."""
        return torch.exp(self.sigma * x[:, self.column, None].detach()) * (x[:, 1:] @ self.weight.T)
