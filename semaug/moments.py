r"""Mean and covariance of every class's features, kept online, exactly.

After step $t$ the state is the pooled, biased (divided by $n$) mean and covariance of all features of a class seen so
far, however the stream was cut into batches. A batch brings $m_j$ features of class $j$, of mean $\mu'_j$ and
covariance $\Sigma'_j$:

$$\mu_j \leftarrow \frac{n_j \mu_j + m_j \mu'_j}{n_j + m_j}, \tag{9}$$
$$\Sigma_j \leftarrow \frac{n_j \Sigma_j + m_j \Sigma'_j}{n_j + m_j}
  + \frac{n_j m_j\,(\mu_j - \mu'_j)(\mu_j - \mu'_j)^\top}{(n_j + m_j)^2}, \tag{10}$$
$$n_j \leftarrow n_j + m_j. \tag{11}$$

Computed as one product a class: with $R$ the rows $a_i - \mu'_j$ of the batch and the further row
$\sqrt{n_j m_j / (n_j + m_j)}\,(\mu'_j - \mu_j)$, (10) is
$\Sigma_j \leftarrow (n_j \Sigma_j + R^\top R) / (n_j + m_j)$: positive semi-definite by construction, and without the
cancellation of $\mathbb E\,aa^\top - \mu\mu^\top$.

Wang et al., "Implicit Semantic Data Augmentation for Deep Networks", NeurIPS 2019, https://arxiv.org/abs/1909.12220,
eqs. (9)-(11) of the TPAMI version, https://arxiv.org/abs/2007.10538; in (10) as here, not as some notes reprint it.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.distributed as dist
from jaxtyping import Float, Int64
from torch import Tensor, nn

from semaug.gaussian import check_features, tracing

Form = Literal["full", "diagonal"]
FORMS = ("full", "diagonal")
_CHUNK = 2**22  # numbers in the outer products held at once on the compiled path: 16 MB


class ClassMoments(nn.Module):
    r"""Count, mean and covariance of each class, updated a batch at a time.

    Buffers: ``count`` (C,) float64, the number of features seen (float64 counts exactly up to $2^{53}$ and holds the
    fractions that decay makes; float32 would stop at $2^{24}$); ``mean`` (C, A); ``covariance`` (C, A, A), or the
    variances (C, A) for "diagonal". A class never seen has zeros.

    decay: old counts are multiplied by it at every update, so that the weight of a feature fades as decay^(age in
    updates) while the network drifts; None keeps every feature for ever, as the paper does.

    In a data-parallel run every process must call :meth:`update` at every step: each gathers the features of all (N A
    numbers a process, far fewer than the C A^2 of reduced sums) and takes the same step, so that all hold the
    same state, that of one process with the whole batch.
    """

    count: Tensor
    mean: Tensor
    covariance: Tensor

    def __init__(
        self,
        num_classes: int,
        num_features: int,
        covariance: Form = "full",
        rank: int | None = None,
        decay: float | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("num_classes", num_classes), ("num_features", num_features)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be an integer from 1, got {value!r}")
        if covariance not in FORMS:
            raise ValueError(f"covariance must be one of {', '.join(FORMS)}, got {covariance!r}")
        if rank is not None:
            raise ValueError(f"rank is for factored covariances, got {rank!r} for {covariance!r}")
        if decay is not None and not 0 < decay <= 1:
            raise ValueError(f"decay must lie in (0, 1] or be None, got {decay!r}")
        self.form, self.decay = covariance, decay
        self.register_buffer("count", torch.zeros(num_classes, dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(num_classes, num_features))
        square = (num_features,) if covariance == "full" else ()
        self.register_buffer("covariance", torch.zeros(num_classes, num_features, *square))

    @torch.no_grad()
    def update(self, features: Float[Tensor, "N A"], target: Int64[Tensor, " N"]) -> None:
        """Take in a batch: features (N, A) of any float dtype, target (N,) int64; (9) to (11), in the buffers' dtype.

        Raises ValueError or TypeError for features that do not fit or are not finite and a target outside [0, C).
        """
        check_features(features, target, *self.mean.shape)
        if features.device != self.mean.device:
            raise ValueError(
                f"features are on {features.device} but the moments on {self.mean.device}; move one of them"
            )
        with torch.autocast(features.device.type, enabled=False):
            features, target = _gathered(features.to(self.mean.dtype), target)
            if self.decay is not None:
                self.count *= self.decay
            if tracing(features):
                self._update_all(features, target)
            else:
                self._update_present(features, target)

    def _update_all(self, x: Tensor, target: Tensor) -> None:
        """(9) to (11) for all classes at once: shapes do not depend on the data."""
        batch = torch.zeros_like(self.count).index_add_(0, target, torch.ones_like(target, dtype=self.count.dtype))
        total = self.count + batch
        old = (self.count / total.clamp_min(1e-300)).to(x.dtype)[:, None]  # n / (n + m); 0 for a class never seen
        new = (batch / total.clamp_min(1e-300)).to(x.dtype)[:, None]
        batch_mean = torch.zeros_like(self.mean).index_add_(0, target, x) / batch.clamp_min(1).to(x.dtype)[:, None]
        rows = (x - batch_mean[target]) * total.rsqrt().to(x.dtype)[target, None]
        shift = batch_mean - self.mean
        jump = (old * new).sqrt() * shift
        kept = torch.where(batch[:, None] > 0, old, 1)
        if self.form == "diagonal":
            self.covariance.mul_(kept).add_(jump.square()).index_add_(0, target, rows.square())
        else:
            self.covariance.mul_(kept[:, :, None]).baddbmm_(jump[:, :, None], jump[:, None])
            size = max(1, _CHUNK // self.mean.shape[1] ** 2)
            for part, labels in zip(rows.split(size), target.split(size), strict=True):
                self.covariance.index_add_(0, labels, part[:, :, None] * part[:, None])
        self.mean.add_(new * shift)
        self.count.copy_(total)

    def _update_present(self, x: Tensor, target: Tensor) -> None:
        """(9) to (11) for the classes of the batch; a full covariance by one product each, straight into it."""
        target, order = target.sort()
        present, index, batch = target.unique_consecutive(return_inverse=True, return_counts=True)
        x, count, mean = (t.index_select(0, i) for t, i in ((x, order), (self.count, present), (self.mean, present)))
        total = count + batch
        shift = torch.zeros_like(mean).index_add_(0, index, x).div_(batch[:, None]).sub_(mean)
        new = (batch / total).to(x.dtype)[:, None]
        mean.addcmul_(new, shift)
        self.mean.index_copy_(0, present, mean)
        self.count.index_copy_(0, present, total)
        rows = x - mean.index_select(0, index)  # from the new mean, so that the old one adds the row:
        jump = shift.mul_(new).mul_(count.sqrt().to(x.dtype)[:, None])
        old, share = (count / total).to(x.dtype)[:, None], total.reciprocal().to(x.dtype)[:, None]
        if self.form == "diagonal":
            squares = jump.square_().index_add_(0, index, rows.square_())
            variance = self.covariance.index_select(0, present).mul_(old).addcmul_(squares, share)
            self.covariance.index_copy_(0, present, variance)
            return
        labels = torch.cat([index, torch.arange(len(present), device=x.device)])
        rows = torch.cat([rows, jump]).index_select(0, labels.sort(stable=True).indices)
        start = 0
        for j, m, beta, alpha in zip(*(t.flatten().tolist() for t in (present, batch, old, share)), strict=True):
            part = rows[start : start + m + 1]
            self.covariance[j].addmm_(part.T, part, beta=beta, alpha=alpha)
            start += m + 1

    @torch.no_grad()
    def merge(self, other: ClassMoments) -> None:
        """Take in other moments: exactly as if their features had been seen here (without decay).

        Raises ValueError for moments of another form or shape or on another device.
        """
        mine, theirs = (self.form, *self.mean.shape), (other.form, *other.mean.shape)
        if mine != theirs:
            raise ValueError(f"other must be moments of the same form, classes and features {mine}, got {theirs}")
        if other.mean.device != self.mean.device:
            raise ValueError(
                f"other is on {other.mean.device} but these moments on {self.mean.device}; move one of them"
            )
        total = self.count + other.count
        new = (other.count / total.clamp_min(1e-300)).to(self.mean.dtype)[:, None]
        shift = other.mean.to(self.mean.dtype) - self.mean
        jump = (new * (1 - new)).sqrt() * shift
        if self.form == "diagonal":
            self.covariance.lerp_(other.covariance.to(self.mean.dtype), new).add_(jump.square())
        else:
            self.covariance.lerp_(other.covariance.to(self.mean.dtype), new[:, :, None])
            self.covariance.baddbmm_(jump[:, :, None], jump[:, None])
        self.mean.add_(new * shift)
        self.count.copy_(total)

    def extra_repr(self) -> str:
        """Shown by print."""
        classes, features = self.mean.shape
        return f"{classes}, {features}, covariance={self.form!r}, decay={self.decay}"


def _gathered(features: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The batches of all processes, in order of rank; shares of different length are padded on the way."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return features, target
    world, length = dist.get_world_size(), len(features)
    if not tracing(features):
        lengths = [torch.zeros_like(target[:1]) for _ in range(world)]
        dist.all_gather(lengths, torch.full_like(target[:1], length))
        length = int(torch.cat(lengths).max())
    padding = length - len(features)
    features = nn.functional.pad(features, (0, 0, 0, padding)).contiguous()
    target = nn.functional.pad(target, (0, padding), value=-1).contiguous()
    all_features = [torch.empty_like(features) for _ in range(world)]
    all_targets = [torch.empty_like(target) for _ in range(world)]
    dist.all_gather(all_features, features)
    dist.all_gather(all_targets, target)
    features, target = torch.cat(all_features), torch.cat(all_targets)
    if tracing(features):
        return features, target  # every share has the same length where shapes are static
    return features[target >= 0], target[target >= 0]
