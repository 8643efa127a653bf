r"""Mean and covariance of every class's features, updated online, exactly.

After step $t$ the state is the pooled, biased (divided by $n$) mean and covariance of all features of a class seen so
far, however the stream was cut into batches. A batch brings $m_j$ features of class $j$, of mean $\mu'_j$ and
covariance $\Sigma'_j$:

$$\mu_j \leftarrow \frac{n_j \mu_j + m_j \mu'_j}{n_j + m_j}, \tag{9}$$
$$\Sigma_j \leftarrow \frac{n_j \Sigma_j + m_j \Sigma'_j}{n_j + m_j}
  + \frac{n_j m_j\,(\mu_j - \mu'_j)(\mu_j - \mu'_j)^\top}{(n_j + m_j)^2}, \tag{10}$$
$$n_j \leftarrow n_j + m_j. \tag{11}$$

It takes one product a class. Let $R$ hold the rows $a_i - \mu'_j$ of the batch and the further row
$\sqrt{n_j m_j / (n_j + m_j)}\,(\mu'_j - \mu_j)$. Then (10) is
$\Sigma_j \leftarrow (n_j \Sigma_j + R^\top R) / (n_j + m_j)$, positive semi-definite by construction, and without the
cancellation of $\mathbb E\,aa^\top - \mu\mu^\top$. (The code takes deviations from the new mean; the further row is
then $\sqrt{n_j}$ times the shift of the mean.)

The C A^2 numbers of a full covariance do not fit at C = 1000, A = 2048 (16.8 GB). A factored one,
$\Sigma_j = F_j F_j^\top + \mathrm{diag}(d_j)$ with $F_j$ (A, r), takes C A (r + 1). Incremental principal component
analysis updates it: the rows of $F_j^\top$ and of the batch together, weighted as in (10), are reduced to their first r
principal directions, and the variances of the others are added to $d_j$. So the variance along every axis, hence the
trace, stays exact; correlations outside the r directions are lost.

Wang et al., "Implicit Semantic Data Augmentation for Deep Networks", NeurIPS 2019, https://arxiv.org/abs/1909.12220;
equations numbered as in notebook 1, which corrects (10).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Literal, NamedTuple, cast

import torch
import torch.distributed as dist
from jaxtyping import Float, Int64
from torch import Tensor, nn

from semaug._checks import (
    NotFiniteError,
    check_choice,
    check_count,
    check_device,
    check_features,
    check_number,
    require,
)
from semaug.core.tensors import Covariance, Factored, tracing

Form = Literal["full", "diagonal", "factored"]

FORMS = ("full", "diagonal", "factored")

_CHUNK = 2**22  # numbers held at once in temporary products: 16 MB


class _Batch(NamedTuple):
    """A batch by class, for the U classes present in it."""

    present: Int64[Tensor, " U"]
    group: Int64[Tensor, " N"]  # place of each row's class among those present; rows are in its order
    size: Int64[Tensor, " U"]  # m
    rows: Float[Tensor, "N A"]  # deviations from the new mean
    jump: Float[Tensor, "U A"]  # the further row: sqrt(n) times the shift of the mean
    old: Float[Tensor, " U"]  # n / (n + m)
    share: Float[Tensor, " U"]  # 1 / (n + m)


class ClassMoments(nn.Module):
    """Count, mean and covariance of each class, updated a batch at a time by (9) to (11).

    Buffers: ``count`` (C,), the number of features seen, in float64, since float32 cannot count beyond $2^{24}$;
    ``mean`` (C, A); and ``covariance``, which is (C, A, A) for "full" and the variances (C, A) for "diagonal". For
    "factored" the buffers are ``factor`` (C, A, r) and ``diagonal`` (C, A), and the attribute ``covariance`` gives both
    as one Factored. A class never seen has zeros. ``half()`` or ``float()`` never lowers the precision of a buffer.

    In a data-parallel run every process must call :meth:`update` at every step. Each gathers the features of all, N A
    numbers a process in place of the C A^2 of reduced sums, and takes the same step: all hold the state that one
    process would have with the whole batch.

    Args:
        num_classes: C.
        num_features: A.
        covariance: "full", "diagonal" or "factored".
        rank: r from 1 to A, for "factored" only.
        decay: every update first multiplies the old counts by it, so that the weight of a feature fades as
            decay^(age in updates) while the network changes; in (0, 1]. None keeps every feature, as the paper does.

    Raises:
        ValueError: for values outside these, and where the covariance does not fit the memory of a device, here or
            when the module is moved to one.
    """

    count: Tensor
    mean: Tensor
    factor: Tensor
    diagonal: Tensor

    def __init__(
        self,
        num_classes: int,
        num_features: int,
        covariance: Form = "full",
        rank: int | None = None,
        decay: float | None = None,
    ) -> None:
        super().__init__()
        C, A = self.shape = check_count("num_classes", num_classes), check_count("num_features", num_features)
        self.form = check_choice("covariance", covariance, FORMS)
        if covariance == "factored":
            require(rank is not None and check_count("rank", rank) <= A, "rank", rank, f"a whole number from 1 to {A}")
        else:
            require(rank is None, "rank", rank, f"None for covariance={covariance!r}")
        self.rank = None if rank is None else int(rank)
        self.decay = None if decay is None else check_number("decay", decay, 0, 1, without=(0,))
        self._check_memory(torch.get_default_device())
        self.register_buffer("count", torch.zeros(C, dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(C, A))
        if self.rank is not None:  # laid out (C, r, A) in memory: its rows join those of a batch
            self.register_buffer("factor", torch.zeros(C, self.rank, A).mT)
            self.register_buffer("diagonal", torch.zeros(C, A))
        else:
            self.register_buffer("covariance", torch.zeros((C, A, A) if covariance == "full" else (C, A)))

    @property
    def covariance(self) -> Covariance:
        """The buffer of that name, or the factored covariance."""
        if self.form == "factored":
            return Factored(self.factor, self.diagonal)
        return cast(Tensor, super().__getattr__("covariance"))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ClassMoments:
        """Moves and casts as any module, but never to a lower precision, and not where it cannot fit."""
        device = fn(self.count).device
        if device != self.count.device:
            self._check_memory(device)

        def precise(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            dtype = torch.promote_types(tensor.dtype, moved.dtype)
            return moved if moved.dtype == dtype else tensor.to(moved.device, dtype)

        return super()._apply(precise, recurse)

    def _check_memory(self, device: torch.device) -> None:
        """Refuse what cannot fit, before the system kills the process for it."""
        C, A = self.shape
        columns = {"full": A, "diagonal": 1, "factored": (self.rank or 0) + 1}
        needed, available = 4 * C * A * columns[self.form], _memory(device)
        if available is not None and needed > available:
            rank = min(32, A)
            raise ValueError(
                f"covariance: got {self.form!r} of {C} classes and {A} features, {_size(needed)}; takes what fits in "
                f"the {_size(available)} of {device}, as 'factored' with rank={rank} "
                f"({_size(4 * C * A * (rank + 1))}) or 'diagonal' ({_size(4 * C * A)})"
            )

    @torch.no_grad()
    def update(self, features: Float[Tensor, "N A"], target: Int64[Tensor, " N"]) -> None:
        r"""Take in a batch by (9) to (11), in the dtype of the buffers.

        Args:
            features: (N, A) of any float dtype.
            target: (N,) int64 class numbers.

        Raises:
            ValueError, TypeError: before anything changes, for features that do not fit, are not finite or so large
                that their squares overflow (a norm of the batch above 2e16 in float32), and a target outside [0, C).
        """
        check_features(features, target, *self.shape)
        check_device("features", features, self.mean, "the moments")
        dtype = self.mean.dtype
        with torch.autocast(features.device.type, enabled=False):
            features = features.to(dtype)
            limit = torch.finfo(dtype).max ** 0.5 / 2**10  # a million squared differences of features do not overflow
            if not tracing(features) and not torch.linalg.vector_norm(features).item() <= limit:
                got = f"values whose squares overflow {dtype}"
                raise NotFiniteError(f"features: got {got}; takes a norm up to {limit:.2g}")
            features, target = _gathered(features, target)
            if self.decay is not None:
                self.count *= self.decay
            if tracing(features) and self.form != "factored":
                self._update_all(features, target)
            else:
                self._update_present(features, target)

    def _update_all(self, x: Tensor, target: Tensor) -> None:
        """(9) to (11) for all classes at once: shapes do not depend on the data, and a GPU has few kernels to start."""
        size = torch.zeros_like(self.mean[:, 0]).index_add_(0, target, torch.ones_like(x[:, 0]))
        self.count.add_(size)
        total = self.count.to(x.dtype)
        new = (size / total.clamp_min(1e-30))[:, None]  # m / (n + m); 0 for a class never seen
        batch_mean = torch.zeros_like(self.mean).index_add_(0, target, x) / size.clamp_min(1)[:, None]
        shift, old = batch_mean - self.mean, 1 - new
        jump = (old * new).sqrt() * shift
        rows = (x - batch_mean[target]) * total.rsqrt()[target, None]
        covariance = cast(Tensor, self.covariance)
        if self.form == "diagonal":
            covariance.mul_(old).add_(jump.square()).index_add_(0, target, rows.square())
        else:
            covariance.mul_(old[:, :, None]).baddbmm_(jump[:, :, None], jump[:, None])
            length = max(1, _CHUNK // self.shape[1] ** 2)
            for part, labels in zip(rows.split(length), target.split(length), strict=True):
                covariance.index_add_(0, labels, part[:, :, None] * part[:, None])
        self.mean.addcmul_(new, shift)

    def _update_present(self, x: Tensor, target: Tensor) -> None:
        """(9) to (11) for the classes of the batch."""
        target, order = target.sort()
        present, index, size = target.unique_consecutive(return_inverse=True, return_counts=True)
        x, count, mean = (t.index_select(0, i) for t, i in ((x, order), (self.count, present), (self.mean, present)))
        total = count + size
        shift = torch.zeros_like(mean).index_add_(0, index, x).div_(size[:, None]).sub_(mean)
        new = (size / total).to(x.dtype)[:, None]
        mean.addcmul_(new, shift)
        self.mean.index_copy_(0, present, mean)
        self.count.index_copy_(0, present, total)
        rows = x - mean.index_select(0, index)
        jump = shift.mul_(new).mul_(count.sqrt().to(x.dtype)[:, None])
        old, share = (count / total).to(x.dtype), total.reciprocal().to(x.dtype)
        update = {"full": self._full, "diagonal": self._diagonal, "factored": self._factored}[self.form]
        update(_Batch(present, index, size, rows, jump, old, share))

    def _full(self, batch: _Batch) -> None:
        """One product a class, added to its covariance in place: no memory of the size of a covariance is needed."""
        labels = torch.cat([batch.group, torch.arange(len(batch.present), device=batch.rows.device)])
        rows = torch.cat([batch.rows, batch.jump]).index_select(0, labels.sort(stable=True).indices)
        covariances, parts = cast(Tensor, self.covariance).unbind(), rows.split((batch.size + 1).tolist())
        numbers = (each.tolist() for each in (batch.present, batch.old, batch.share))
        for part, j, old, share in zip(parts, *numbers, strict=True):
            covariances[j].addmm_(part.T, part, beta=old, alpha=share)

    def _diagonal(self, batch: _Batch) -> None:
        """The same with squares in place of products."""
        squares = batch.jump.square().index_add_(0, batch.group, batch.rows.square())
        covariance = cast(Tensor, self.covariance)
        variance = covariance.index_select(0, batch.present).mul_(batch.old[:, None])
        covariance.index_copy_(0, batch.present, variance.addcmul_(squares, batch.share[:, None]))

    def _factored(self, batch: _Batch) -> None:
        """Old factor, batch and jump as rows of one matrix a class, padded to the longest; chunks of classes."""
        present, index, rows = batch.present, batch.group, batch.rows * batch.share.sqrt()[batch.group, None]
        jump = batch.jump * batch.share.sqrt()[:, None]
        place = torch.arange(len(rows), device=rows.device) - (batch.size.cumsum(0) - batch.size)[index]
        most, factor, rank = int(batch.size.max()), self.factor.mT, cast(int, self.rank)
        length = max(1, _CHUNK // (self.shape[1] * (rank + 1 + most)))
        for first in range(0, len(present), length):
            chunk = slice(first, first + length)
            here = (index >= first) & (index < first + length)
            stack = rows.new_zeros(len(present[chunk]), rank + 1 + most, self.shape[1])
            stack[:, :rank] = factor.index_select(0, present[chunk]) * batch.old[chunk, None, None].sqrt()
            stack[:, rank] = jump[chunk]
            stack[index[here] - first, rank + 1 + place[here]] = rows[here]
            leading, rest = _principal(stack, rank)
            factor.index_copy_(0, present[chunk], leading)
            rest += self.diagonal.index_select(0, present[chunk]) * batch.old[chunk, None]
            self.diagonal.index_copy_(0, present[chunk], rest)

    @torch.no_grad()
    def merge(self, other: ClassMoments) -> None:
        """Take in other moments, as if their features had been seen here: exactly, but for the factored form and decay.

        Args:
            other: moments of the same form, classes and features; a factored one may have another rank.

        Raises:
            ValueError: for moments of another form or shape or on another device.
        """
        mine, theirs = ((each.form, *each.shape) for each in (self, other))
        require(mine == theirs, "other", theirs, f"moments of the same form, classes and features, {mine}")
        check_device("other", other.mean, self.mean, "these moments")
        total, dtype = self.count + other.count, self.mean.dtype
        new = (other.count / total.clamp_min(1e-300)).to(dtype)[:, None]
        shift = other.mean.to(dtype) - self.mean
        jump = (new * (1 - new)).sqrt() * shift
        if self.form == "diagonal":
            cast(Tensor, self.covariance).lerp_(cast(Tensor, other.covariance).to(dtype), new).add_(jump.square())
        elif self.form == "full":
            cast(Tensor, self.covariance).lerp_(cast(Tensor, other.covariance).to(dtype), new[:, :, None])
            cast(Tensor, self.covariance).baddbmm_(jump[:, :, None], jump[:, None])
        else:
            self.diagonal.lerp_(other.diagonal.to(dtype), new)
            for j, share in enumerate(new):
                old, added = self.factor[j].T * (1 - share).sqrt(), other.factor[j].T.to(dtype) * share.sqrt()
                leading, rest = _principal(torch.cat([old, added, jump[j : j + 1]])[None], cast(int, self.rank))
                self.factor[j] = leading[0].T
                self.diagonal[j] += rest[0]
        self.mean.add_(new * shift)
        self.count.copy_(total)

    def extra_repr(self) -> str:
        """Shown by print."""
        C, A = self.shape
        return f"{C}, {A}, covariance={self.form!r}, rank={self.rank}, decay={self.decay}"


def _principal(rows: Float[Tensor, "U k A"], rank: int) -> tuple[Float[Tensor, "U r A"], Float[Tensor, "U A"]]:
    """The first principal directions of second moments rows^T rows, scaled, and the variances outside them.

    They come from the eigenvectors of the k x k matrix rows rows^T, k being above the rank, by little. In float64,
    because LAPACK sometimes fails in float32 where eigenvalues repeat, as the zeros of a new class do.
    """
    vectors = torch.linalg.eigh((rows @ rows.mT).double()).eigenvectors[:, :, -rank:].to(rows.dtype)
    leading = vectors.mT @ rows
    return leading, (rows.square().sum(1) - leading.square().sum(1)).clamp_min_(0)


def _memory(device: torch.device) -> int | None:
    """Bytes a device could give: a GPU's that are free or cached, all of the machine for a CPU; None if unknown."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    if device.type == "cpu" and hasattr(os, "sysconf"):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _size(number: float) -> str:
    """A number of bytes with its unit."""
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.3g} MB"


def _gathered(features: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The batches of all processes, in order of rank; shares of different length are padded on the way."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return features, target
    world, length = dist.get_world_size(), len(features)

    def joined(x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(world)]
        dist.all_gather(parts, x)
        return torch.cat(parts)

    if not tracing(features):
        length = int(joined(torch.full_like(target[:1], length)).max())
    padding = length - len(features)
    features = joined(nn.functional.pad(features, (0, 0, 0, padding)).contiguous())
    target = joined(nn.functional.pad(target, (0, padding), value=-1).contiguous())
    if tracing(features):
        return features, target  # every share has the same length where shapes are static
    return features[target >= 0], target[target >= 0]
