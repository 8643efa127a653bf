r"""The fast recipe: CIFAR-10 to 94% in seconds of one GPU, with a small network and no method.

    images --> 64 --> 128, residual --> 256 --> 512, residual --> maximum / 8 --> head

The widths are of 3x3 convolutions, and an arrow between two of them halves the sides by a maximum. What a training
loop costs shows where training is short: the goal that the field races for is 94% of CIFAR-10's test
images. The preset ``"fast/resnet9"`` of :class:`semaug.recipe.Recipe` is one way there. A step is a captured one of
:func:`semaug.training.fit` like any other.

* D. Page, "How to train your ResNet", 2018-2019: the network (ResNet-9), the rise and fall of the learning rate, and
  what made it faster: smoothed labels, and predictions averaged over an image and its mirror image.
* C. Szegedy, V. Vanhoucke, S. Ioffe, J. Shlens, Z. Wojna, "Rethinking the Inception architecture for computer vision",
  CVPR 2016, arXiv:1512.00567, section 7: :math:`q'(k) = (1 - s)\,[k = y] + s / C`.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from semaug.gaussian import at_least_float32
from semaug.networks import Network, Normalise, convolution, normalisation
from semaug.objective import Objective, Step

__all__ = ["Residual", "ScaledMax", "Smoothed", "resnet9"]


class Residual(nn.Module):
    """x + F(x), F two convolutions, each followed by norm and relu."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = _layer(width, width, pool=False), _layer(width, width, pool=False)

    def forward(self, maps: Float[Tensor, "N A H W"]) -> Float[Tensor, "N A H W"]:
        """Maps to maps."""
        return maps + self.second(self.first(maps))


class ScaledMax(nn.Module):
    """An eighth of the maximum over the pixels: the scale that Page gives the logits, in front of the head."""

    def forward(self, maps: Float[Tensor, "N A H W"]) -> Float[Tensor, "N A"]:
        """Maps to features."""
        return 0.125 * maps.amax((2, 3))


def resnet9(num_classes: int, channels: int = 3) -> Network:
    """Page's network for images of 32 pixels: 6.57 million parameters at 10 classes, A = 512."""
    stages: list[nn.Module] = [
        nn.Sequential(Normalise(channels), *_layer(channels, 64, pool=False)),
        nn.Sequential(_layer(64, 128, pool=True), Residual(128)),
        _layer(128, 256, pool=True),
        nn.Sequential(_layer(256, 512, pool=True), Residual(512)),
    ]
    network = Network(stages, 512, num_classes, "resnet9", static=True)
    network.pool = ScaledMax()
    return network


def _layer(inputs: int, outputs: int, pool: bool) -> nn.Sequential:
    """Convolution, perhaps the maximum of every 2 x 2 pixels, norm, relu."""
    halve = [nn.MaxPool2d(2)] if pool else []
    return nn.Sequential(convolution(inputs, outputs, 3), *halve, normalisation(outputs, "batch"), nn.ReLU())


class Smoothed(Objective):
    """Cross-entropy against smoothed labels; predictions are means over an image and its mirror image.

    smoothing: s of the source, the share of the target that all classes have equally, in [0, 1).
    mirror: whether the mirror image is asked too. Raises ValueError for a smoothing outside the range.
    """

    static = True

    def __init__(self, network: nn.Module, smoothing: float = 0.2, mirror: bool = True) -> None:
        super().__init__(network, smoothing=smoothing, mirror=mirror)
        if not 0 <= smoothing < 1:
            raise ValueError(f"smoothing: got {smoothing!r}; takes a number in [0, 1)")
        self.smoothing, self.mirror = smoothing, mirror

    def forward(self, images: Tensor, target: Tensor, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean over the batch of -sum_k q'(k) log p(k), in nats."""
        logits = at_least_float32(self.network(images))
        return F.cross_entropy(logits, target, label_smoothing=self.smoothing), {}

    def predict(self, images: Float[Tensor, "N channels H W"]) -> Float[Tensor, "N C"]:
        """The mean of the logits of both."""
        logits = self.network(images)
        return (logits + self.network(images.flip(-1))) / 2 if self.mirror else logits
