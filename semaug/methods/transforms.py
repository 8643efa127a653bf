"""The draws of the mixing objectives for a DataLoader, a network or a training loop of one's own.

As ``collate_fn`` of a DataLoader::

    mix = BatchTransform(CutMix, num_classes=10, probability=1.0)
    loader = DataLoader(dataset, 128, shuffle=True, collate_fn=lambda samples: mix(*default_collate(samples)))

After torchvision's transforms of a batch, and one of two methods for every batch, as in timm's Mixup::

    both = v2.RandomChoice([BatchTransform(Mixup, 10, alpha=0.8), BatchTransform(CutMix, 10, probability=1.0)])
    images, target = v2.Compose([v2.RandomHorizontalFlip(), both])(images, target)

MixStyle as a layer of a network of one's own, after its first blocks::

    network = nn.Sequential(stem, block1, MixStyleLayer(), block2, MixStyleLayer(), block3, pool, head)
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.data import get_worker_info

from semaug._checks import check_choice, check_images, check_number, require
from semaug.core.pixels import Images
from semaug.methods import mixing
from semaug.methods.mixup import PARTNERS, CutMix, Cutout, Mixing, Mixup, ResizeMix, SaliencyMix, mix_styles
from semaug.networks import Network
from semaug.training.objective import Step

METHODS = (Mixup, CutMix, ResizeMix, SaliencyMix, Cutout)


class BatchTransform:
    """Batches of images and labels, mixed as the objective of that name mixes them.

    Args:
        method: Mixup, CutMix, ResizeMix, SaliencyMix or Cutout, or a subclass.
        num_classes: C.
        smoothing: the share of the labels that all classes get equally, in [0, 1).
        generator: on the images' device. By default every call seeds one from torch's global generator, so that
            ``torch.manual_seed`` decides, and the workers of a DataLoader draw differently.
        settings: as the method takes them.

    Raises:
        TypeError: for another method: it would need the network.
        ValueError: for settings that the method does not take.
    """

    def __init__(
        self,
        method: type[Mixing] | type[Cutout],
        num_classes: int,
        smoothing: float = 0.0,
        generator: torch.Generator | None = None,
        **settings: float,
    ) -> None:
        if not (isinstance(method, type) and issubclass(method, METHODS)):
            raise TypeError(f"method: got {method!r}; takes {', '.join(one.__name__ for one in METHODS)}")
        build: Callable[..., Mixing | Cutout] = method
        with torch.device("meta"):  # no weights: of a network a draw asks only how many classes there are
            self.method = build(Network([], 1, num_classes, "none"), **settings)
        self.smoothing = check_number("smoothing", smoothing, 0, 1, without=(1,))
        self.num_classes, self.generator = num_classes, generator

    def __call__(self, images: Images, target: mixing.Labels) -> tuple[Images, Float[Tensor, "N C"]]:
        """Images and soft labels.

        Args:
            images: (N, channels, H, W), floats, or bytes where pixels are not averaged (all but Mixup).
            target: class numbers (N,), int64, or soft labels (N, C).

        Raises:
            ValueError: for images of another shape, labels of other classes, and a generator of one's own in a worker
                of a DataLoader, where the copies of all workers would draw the same.
        """
        check_images(images)
        soft = mixing.soft_labels(target, self.num_classes)
        if len(soft) != len(images):
            raise ValueError(f"target: got {len(soft)} labels; takes {len(images)}, one an image")
        step = Step(torch.zeros(()), 0.0, self._generator(images.device))
        if isinstance(self.method, Cutout):
            images = self.method.cut(images, step)
        else:
            images, soft, _ = self.method.mix(images, soft, step)
        return images, (1 - self.smoothing) * soft + self.smoothing / self.num_classes

    def _generator(self, device: torch.device) -> torch.Generator:
        if self.generator is None:
            return _seeded(device)
        require(get_worker_info() is None, "generator", self.generator, "None in a worker of a DataLoader")
        return self.generator


class MixStyleLayer(nn.Module):
    """Maps of a batch with mixed styles, as :class:`MixStyle` mixes them; in evaluation mode the maps as they are.

    Every call in training mode seeds a generator from torch's global one, so that ``torch.manual_seed`` decides.

    Args:
        alpha: as probability and mix those of :class:`MixStyle`.
    """

    def __init__(self, alpha: float = 0.1, probability: float = 0.5, mix: str = "random") -> None:
        super().__init__()
        self.alpha = check_number("alpha", alpha, 0, without=(0,))
        self.probability = check_number("probability", probability, 0, 1)
        self.mix = check_choice("mix", mix, tuple(PARTNERS))

    def forward(self, features: Float[Tensor, "N A H W"]) -> Float[Tensor, "N A H W"]:
        """Raises ValueError for maps of less than two pixels, and an odd batch for "crossdomain"."""
        if not self.training:
            return features
        step = Step(torch.zeros(()), 0.0, _seeded(features.device))
        return mix_styles(features, step, self.alpha, self.probability, self.mix)


def _seeded(device: torch.device) -> torch.Generator:
    return torch.Generator(device).manual_seed(int(torch.randint(2**62, ())))
