"""The players of DCGAN: convolutions of stride 2, for images of 28, 32 or 64 pixels a side.

* Radford, Metz, Chintala, ICLR 2016, https://arxiv.org/abs/1511.06434
* spectral normalisation: Miyato, Kataoka, Koyama, Yoshida, ICLR 2018, https://arxiv.org/abs/1802.05957
"""

from __future__ import annotations

import itertools

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from semaug._checks import check_count, check_flag

Images = Float[Tensor, "N channels H W"]


class Generator(nn.Module):
    """Images in [-1, 1] from codes: a linear layer to small maps, doubled by transposed convolutions.

    Args:
        size: side of the images, 7 or 4 doubled once or more: 28, 32, 64.
        channels: of the images.
        latent: numbers of a code, K.
        width: channels of the last maps, twice as many at each smaller size.

    Raises:
        ValueError: for another size and counts below 1.
    """

    def __init__(self, size: int = 28, channels: int = 1, latent: int = 64, width: int = 8) -> None:
        super().__init__()
        channels, latent = check_count("channels", channels), check_count("latent", latent)
        width = check_count("width", width)
        base, doublings = _halvings(size)
        self.image_shape, self.latent = (channels, size, size), latent
        self.name = f"dcgan(latent={latent}, width={width})"
        widest = width * 2**doublings
        layers: list[nn.Module] = [
            nn.Linear(latent, widest * base**2, bias=False),
            nn.Unflatten(1, (widest, base, base)),
        ]
        for k in reversed(range(doublings)):
            wide, narrow = width * 2 ** (k + 1), width * 2**k
            layers += [nn.BatchNorm2d(wide), nn.ReLU(), nn.ConvTranspose2d(wide, narrow, 4, 2, 1, bias=False)]
        layers += [nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, channels, 3, padding=1), nn.Tanh()]
        self.layers = nn.Sequential(*layers)

    def forward(self, codes: Float[Tensor, "N K"]) -> Images:
        """Raises ValueError for codes of another width."""
        if codes.ndim != 2 or codes.shape[1] != self.latent:
            raise ValueError(f"codes: got shape {tuple(codes.shape)}; takes (N, {self.latent})")
        return self.layers(codes)


class Discriminator(nn.Module):
    """A logit of each image in [-1, 1], above 0 for real: convolutions of stride 2 down to 7 or 4 pixels, and a layer.

    There is no normalisation over the batch: an image's logit is its own, as R1 asks.

    Args:
        size: side of the images, as of :class:`Generator`.
        channels: of the images.
        width: channels of the first maps, doubled at each halving.
        spectral: whether every layer is divided by its largest singular value, as a power iteration has it.

    Raises:
        ValueError: for another size, counts below 1 and a flag that is none.
    """

    def __init__(self, size: int = 28, channels: int = 1, width: int = 24, spectral: bool = False) -> None:
        super().__init__()
        channels, width = check_count("channels", channels), check_count("width", width)
        spectral = check_flag("spectral", spectral)
        base, halvings = _halvings(size)
        self.image_shape = (channels, size, size)
        self.name = f"dcgan(width={width}{', spectral' if spectral else ''})"
        widths = [channels, *(width * 2**k for k in range(halvings))]
        layers: list[nn.Module] = []
        for narrow, wide in itertools.pairwise(widths):
            layers += [nn.Conv2d(narrow, wide, 4, 2, 1), nn.LeakyReLU(0.2)]
        layers += [nn.Flatten(), nn.Linear(widths[-1] * base**2, 1)]
        if spectral:
            layers = [spectral_norm(part) if hasattr(part, "weight") else part for part in layers]
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Images) -> Float[Tensor, " N"]:
        """Raises ValueError for images of another shape."""
        if images.ndim != 4 or tuple(images.shape[1:]) != self.image_shape:
            raise ValueError(
                f"images: got shape {tuple(images.shape)}; takes (N, {', '.join(map(str, self.image_shape))})"
            )
        return self.layers(images).squeeze(1)


def _halvings(size: int) -> tuple[int, int]:
    """The smallest maps, of 7 or 4 pixels, and how often they are doubled; raises ValueError for other sides."""
    size = check_count("size", size)
    for base in (7, 4):
        doublings = (size // base).bit_length() - 1
        if doublings >= 1 and size == base * 2**doublings:
            return base, doublings
    raise ValueError(f"size: got {size}; takes 7 or 4, doubled once or more: 28, 32, 64")
