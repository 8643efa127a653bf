r"""Attacks: the images nearest to given ones that the classifier gets wrong, looked for along the gradient of its loss.

In the box of the side $2 \epsilon$ around an image, FGSM goes once, as far as it may, along the sign of the gradient,
which is the best step for a loss that is linear; PGD goes in smaller steps of $\alpha$ and back into the box each time:

$$x^* = x + \epsilon\, \mathrm{sign}\, \nabla_x \mathrm{CE}(f(x), y), \qquad
  x_{t+1} = \Pi_\epsilon \bigl( x_t + \alpha\, \mathrm{sign}\, \nabla_x \mathrm{CE}(f(x_t), y) \bigr). \tag{38}$$

Goodfellow, Shlens, Szegedy, "Explaining and Harnessing Adversarial Examples", ICLR 2015,
https://arxiv.org/abs/1412.6572; Madry, Makelov, Schmidt, Tsipras, Vladu, "Towards Deep Learning Models Resistant to
Adversarial Attacks", ICLR 2018, https://arxiv.org/abs/1706.06083.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from semaug.data import Split
from semaug.evaluation import Predict, evaluating

FloatImages = Float[Tensor, "N channels H W"]
Labels = Int64[Tensor, " N"] | Float[Tensor, "N C"]


def fgsm(
    predict: Predict, images: FloatImages, target: Labels, epsilon: float, clip: tuple[float, float] = (0, 1)
) -> FloatImages:
    """The images after one step (38) of ``epsilon``, in the unit of the images, and clipped to ``clip``.

    predict: images to logits (N, C), differentiable; a module, or the module whose method it is, runs in evaluation
    mode and gets back the mode it had. Its parameters get no gradient. Raises ValueError for an epsilon that is
    negative or not finite, a clip that is not low < high, and images outside of clip.
    """
    return pgd(predict, images, target, epsilon, 1, epsilon, clip=clip)


def pgd(
    predict: Predict,
    images: FloatImages,
    target: Labels,
    epsilon: float,
    steps: int,
    step_size: float,
    generator: torch.Generator | None = None,
    clip: tuple[float, float] = (0, 1),
) -> FloatImages:
    """The images after ``steps`` steps (38) of ``step_size``, none further from where it was than ``epsilon``.

    generator: with one, the first step starts anywhere in the box, without at the image. The rest as in :func:`fgsm`.
    """
    for name, value in (("epsilon", epsilon), ("step_size", step_size)):
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name}: got {value!r}; takes a finite number from 0")
    if steps < 1:
        raise ValueError(f"steps: got {steps}; takes a whole number from 1")
    low, high = clip
    if not low < high:
        raise ValueError(f"clip: got {clip}; takes (low, high), low < high")
    if not bool(((images >= low) & (images <= high)).all()):
        got = f"{float(images.min()):.3g} to {float(images.max()):.3g}"
        raise ValueError(f"images: got values {got}; takes {low} to {high} (clip)")
    images = images.detach()
    least, most = (images - epsilon).clamp_min(low), (images + epsilon).clamp_max(high)
    found = images
    if generator is not None:
        found = least + (most - least) * torch.rand(images.shape, generator=generator, device=images.device)
    with evaluating(predict), torch.enable_grad():
        for _ in range(steps):
            found = found.detach().requires_grad_()
            # in float32 the gradient at the right class is 0 from a margin of 17 on: the sure would look robust
            loss = F.cross_entropy(predict(found).double(), target, reduction="sum")
            (slope,) = torch.autograd.grad(loss, found)
            found = (found + step_size * slope.sign()).clamp(least, most)
    return found.detach()


def attacked_accuracy(
    predict: Predict, split: Split, attack: Callable[[Tensor, Tensor], Tensor], batch_size: int = 500
) -> float:
    """Accuracy on a split whose images go through ``attack(images, target)`` first, a batch at a time.

    Raises ValueError for an empty split.
    """
    if len(split) == 0:
        raise ValueError("split: got 0 images; takes at least one")
    right = 0
    for start in range(0, len(split), batch_size):
        rows = slice(start, start + batch_size)
        images = attack(split.floats(rows), split.target[rows])
        with torch.no_grad(), evaluating(predict):
            right += int((predict(images).argmax(1) == split.target[rows]).sum())
    return right / len(split)
