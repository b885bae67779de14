"""A small residual network for pictures of 32 pixels: less than a million weights, made to be trained on one core."""

from __future__ import annotations

import torch
from torch import Tensor, nn

FILTERS = 24  # of the stem: twelve eigenvectors of 2x2 colour patches, and their negatives


class Refine(nn.Module):
    """x + relu(norm(conv(x)))"""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.relu(self.norm(self.conv(x)))


class Stage(nn.Module):
    """Halves the side, then refines twice: relu(norm(pool(conv(x)))), then two residual steps."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.widen = nn.Conv2d(inner, outer, 3, padding=1, bias=False)
        self.pool = nn.MaxPool2d(2)
        self.norm = nn.BatchNorm2d(outer)
        self.refine = nn.Sequential(Refine(outer), Refine(outer))

    def forward(self, x: Tensor) -> Tensor:
        return self.refine(torch.relu(self.norm(self.pool(self.widen(x)))))


class Backbone(nn.Module):
    """Whitened 2x2 stem, three stages, maximum over the picture: (n, 4 width) of images (n, 3, H, W)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, FILTERS, 2)
        self.stages = nn.Sequential(Stage(FILTERS, width), Stage(width, 4 * width), Stage(4 * width, 4 * width))

    def forward(self, images: Tensor) -> Tensor:
        return self.stages(torch.relu(self.stem(images))).amax((2, 3))


class ResNet(nn.Module):
    """A backbone and one linear head.

    The side shrinks to an eighth: 32 px ends at 3x3, 16 px, the least, at 1x1. Colours enter in [0, 1]; the stem
    whitens them, so no normalisation goes before it.

    Args:
        classes: how many logits.
        width: channels of the first stage; the others have four times as many.
    """

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.backbone = Backbone(width)
        self.head = nn.Linear(4 * width, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.backbone(images))


def resnet(classes: int, width: int = 32) -> ResNet:
    """A fresh network; `width=32` has 0.8 million weights.

    Cost: 44 million multiply-adds a picture of 32 px at width 32.
    """
    return ResNet(classes, width)


@torch.no_grad()
def whiten(model: ResNet, images: Tensor) -> None:
    """Fix the stem: patches of these images (n, 3, H, W) in [0, 1] leave it uncorrelated, with unit variance.

    Rows are eigenvectors of the covariance of 2x2 patches over the root of their eigenvalue, then the same negated.
    Source: Page 2018 and Jordan 2024 (arXiv 2404.00498), who start fast CIFAR-10 training so.
    """
    patches = images.float().unfold(2, 2, 1).unfold(3, 2, 1).permute(0, 2, 3, 1, 4, 5).reshape(-1, 12)
    mean = patches.mean(0)
    values, vectors = torch.linalg.eigh((patches - mean).T.double() @ (patches - mean).double() / len(patches))
    rows = (vectors / (values + 5e-4).sqrt()).T.float()
    rows = torch.cat([rows, -rows])
    stem = model.backbone.stem
    stem.weight.copy_(rows.reshape(FILTERS, 3, 2, 2))
    assert stem.bias is not None
    stem.bias.copy_(-rows @ mean)
