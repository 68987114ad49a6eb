"""Fitting many small coordinate networks at once: batched matrix products, backward by hand.

A chunk of networks runs through preallocated buffers, so that a step allocates nothing and stays in
the cache; autograd's bookkeeping costs more than the arithmetic at this size. The sine frequency is
folded into the weights while they are trained (``sin(w0 (x W + b))`` is ``sin(x W' + b')`` with
``W' = w0 W``), and Adam's step is scaled to match: the iterates are those of the plain recipe.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

EPS = 1e-8


@dataclass(frozen=True)
class INR:
    """A coordinate network: ``f(x) = last(act(… act(first(x)))) + shift``, all layers Linear.

    Attributes:
        sizes: widths from coordinates to channels, such as (2, 32, 32, 1).
        activation: ``sine`` (``sin(w0 z)``) or ``relu``.
        w0: frequency of the sines.
        shift: added to the output.
    """

    sizes: tuple[int, ...] = (2, 32, 32, 1)
    activation: str = "sine"
    w0: float = 30.0
    shift: float = 0.5

    @property
    def gain(self) -> float:
        """What is folded into the hidden layers."""
        return self.w0 if self.activation == "sine" else 1.0

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """(inputs, outputs) of every layer."""
        return list(pairwise(self.sizes))

    def init(self, rng: torch.Generator, scheme: str) -> dict[str, Tensor]:
        """Weights of one network, keys ``seq.i.weight`` ``[out, in]`` and ``seq.i.bias``.

        Args:
            rng: where the numbers come from.
            scheme: ``dws`` (±√(6/inputs)/w0 on all layers, biases 0), ``siren`` (Sitzmann et al.
                2020: ±1/inputs first, then ±√(6/inputs)/w0, biases as in torch) or ``kaiming``
                (±√(6/inputs), biases as in torch; for ReLU).
        """
        out: dict[str, Tensor] = {}
        for i, (a, b) in enumerate(self.shapes):
            bound = math.sqrt(6 / a) / (1.0 if scheme == "kaiming" else self.w0)
            if scheme == "siren" and i == 0:
                bound = 1 / a
            out[f"seq.{i}.weight"] = _uniform(rng, bound, b, a)
            out[f"seq.{i}.bias"] = (torch.zeros(b) if scheme == "dws"
                                    else _uniform(rng, 1 / math.sqrt(a), b))
        return out

    def __call__(self, weights: Mapping[str, Tensor], x: Float[Tensor, "p i"]
                 ) -> Float[Tensor, "n p o"]:
        """Outputs of n networks, weights stacked ``[n, …]``, as the stored weights give them."""
        last = len(self.sizes) - 2
        h = x.expand(len(weights["seq.0.bias"]), *x.shape)
        for i in range(last + 1):
            z = torch.baddbmm(weights[f"seq.{i}.bias"].unsqueeze(1), h,
                              weights[f"seq.{i}.weight"].transpose(1, 2))
            h = z if i == last else (z * self.w0).sin() if self.activation == "sine" else z.relu()
        return h + self.shift


def _uniform(rng: torch.Generator, bound: float, *shape: int) -> Tensor:
    return (torch.rand(*shape, generator=rng) * 2 - 1) * bound


@dataclass(frozen=True)
class Fit:
    """How a network is fitted, by Adam on all coordinates.

    Attributes:
        steps: at most.
        lr: step size; the greatest one of a schedule.
        betas: Adam's.
        schedule: ``constant``, or ``cosine`` down to 0 after the warm-up.
        warmup: share of the steps in which the step size grows from 0.
        weight_decay: added to the gradient, times the weight.
        stop_psnr: a network that reaches it, in dB, stops; None for none.
        check: steps between two looks at that.
    """

    steps: int = 1000
    lr: float = 5e-4
    betas: tuple[float, float] = (0.9, 0.999)
    schedule: str = "constant"
    warmup: float = 0.0
    weight_decay: float = 0.0
    stop_psnr: float | None = None
    check: int = 20

    def rate(self, step: int) -> float:
        """Step size of step 1, 2, …."""
        done = step / self.steps
        if self.warmup and done < self.warmup:
            return self.lr * done / self.warmup
        if self.schedule == "constant":
            return self.lr
        rest = (done - self.warmup) / max(1 - self.warmup, 1e-9)
        return self.lr * (0.5 + 0.5 * math.cos(math.pi * rest)) + 1e-9


@dataclass(frozen=True)
class Fitted:
    """Fitted networks.

    Attributes:
        weights: name → ``[n, …]``.
        mse: of the stored weights, ``[n]``; NaN for one that diverged.
        steps: how many each was trained, ``[n]``.
    """

    weights: Mapping[str, Tensor]
    mse: Float[Tensor, " n"]
    steps: tuple[int, ...]


def fit(net: INR, how: Fit, start: Sequence[Mapping[str, Tensor]], x: Float[Tensor, "p i"],
        targets: Float[Tensor, "n p o"]) -> Fitted:
    """Fit one network to each target.

    Args:
        net: the architecture.
        how: the recipe of the fit.
        start: n initialisations.
        x: coordinates.
        targets: what each network should give at them.
    """
    stacked = {name: torch.stack([s[name] for s in start]) for name in start[0]}
    final = {name: torch.empty_like(value) for name, value in stacked.items()}
    steps = [how.steps] * len(start)
    alive = torch.arange(len(start))
    run = _Run(net, how, stacked, x, targets)
    for step in range(1, how.steps + 1):
        run.forward()
        if how.stop_psnr is not None and step > 1 and (step - 1) % how.check == 0:
            done = run.error.square().mean((1, 2)) <= 10 ** (-how.stop_psnr / 10)
            if bool(done.any()):
                _store(final, run.weights(), alive, done)
                for i in alive[done].tolist():
                    steps[i] = step - 1
                alive = alive[~done]
                if not len(alive):
                    break
                run = run.without(done, targets[alive])
                run.forward()
        run.backward()
        run.update(step)
    else:
        _store(final, run.weights(), alive, torch.ones(len(alive), dtype=torch.bool))
    mse = (net(final, x) - targets).square().mean((1, 2))
    return Fitted(final, torch.where(mse.isfinite(), mse, math.nan), tuple(steps))


def _store(final: Mapping[str, Tensor], found: Mapping[str, Tensor], alive: Tensor, done: Tensor
           ) -> None:
    for name, value in found.items():
        final[name][alive[done]] = value[done]


class _Run:
    """Buffers and state of one chunk; parameters of all networks in one flat vector.

    The flat vector is parameter-major, so each parameter is a contiguous ``[n, in, out]``.
    """

    def __init__(self, net: INR, how: Fit, weights: Mapping[str, Tensor], x: Tensor,
                 targets: Tensor) -> None:
        n, p = len(targets), len(x)
        self.net, self.how, self.targets, self.n = net, how, targets.contiguous(), n
        self.coordinates = x
        self.x = x.expand(n, p, x.shape[1])
        self.sizes = [s for a, b in net.shapes for s in (a * b, b)]
        total = n * sum(self.sizes)
        self.hidden = n * sum(self.sizes[:-2])  # where the gain is folded in
        self.theta, self.gradient = torch.empty(total), torch.empty(total)
        self.mean, self.square, self.scale = (torch.zeros(total) for _ in range(3))
        self.p, self.g = self._views(self.theta), self._views(self.gradient)
        for i in range(len(net.shapes)):
            self.p[2 * i].copy_(weights[f"seq.{i}.weight"].transpose(1, 2))
            self.p[2 * i + 1].copy_(weights[f"seq.{i}.bias"].unsqueeze(1))
        self.theta[:self.hidden] *= net.gain
        self.p[-1].add_(net.shift)
        inner = net.sizes[1:-1]
        # z: pre-activation, then slope of the activation; h: activation; d: gradient at z
        self.z, self.h, self.d = ([torch.empty(n, p, w) for w in inner] for _ in range(3))
        self.error = torch.empty(n, p, net.sizes[-1])

    def _views(self, flat: Tensor) -> list[Tensor]:
        out, at = [], 0
        shapes = [s for a, b in self.net.shapes for s in ((a, b), (1, b))]
        for size, shape in zip(self.sizes, shapes, strict=True):
            out.append(flat[at:at + self.n * size].view(self.n, *shape))
            at += self.n * size
        return out

    def forward(self) -> None:
        """Activations, slopes and errors at the present parameters."""
        h = self.x
        for i, (z, out) in enumerate(zip(self.z, self.h, strict=True)):
            torch.baddbmm(self.p[2 * i + 1], h, self.p[2 * i], out=z)
            if self.net.activation == "sine":
                torch.sin(z, out=out)
                z.cos_()
            else:
                torch.clamp(z, min=0, out=out)
                z.gt_(0)
            h = out
        torch.baddbmm(self.p[-1], h, self.p[-2], out=self.error)
        self.error.sub_(self.targets)

    def backward(self) -> None:
        """Gradient of each network's mean squared error; the buffers are used up."""
        e = self.error.mul_(2 / self.error[0].numel())
        d, last = e, len(self.z)
        for i in range(last, -1, -1):
            h = self.h[i - 1] if i else self.x
            if i == last and e.shape[2] == 1:  # a row times a matrix is several times faster
                torch.bmm(e.transpose(1, 2), h, out=self.g[2 * i].transpose(1, 2))
            else:
                torch.bmm(h.transpose(1, 2), d, out=self.g[2 * i])
            torch.sum(d, 1, keepdim=True, out=self.g[2 * i + 1])
            if i:
                below, w = self.d[i - 1], self.p[2 * i].transpose(1, 2)
                if d.shape[2] == 1:
                    torch.mul(d, w, out=below)
                else:
                    torch.bmm(d, w, out=below)
                d = below.mul_(self.z[i - 1])

    def update(self, step: int) -> None:
        """One step of Adam (L2 regularisation added to the gradient)."""
        how, gain, k = self.how, self.net.gain, self.hidden
        g, (b1, b2) = self.gradient, how.betas
        if how.weight_decay:
            g[:k].add_(self.theta[:k], alpha=how.weight_decay / gain**2)
            g[k:].add_(self.theta[k:], alpha=how.weight_decay)
            self.g[-1].sub_(how.weight_decay * self.net.shift)
        self.mean.lerp_(g, 1 - b1)
        self.square.mul_(b2).addcmul_(g, g, value=1 - b2)
        torch.sqrt(self.square, out=self.scale).mul_(1 / math.sqrt(1 - b2**step))
        rate = how.rate(step) / (1 - b1**step)
        for part, factor in ((slice(None, k), gain), (slice(k, None), 1.0)):
            scale = self.scale[part].add_(EPS / factor)
            self.theta[part].addcdiv_(self.mean[part], scale, value=-rate * factor)

    def weights(self) -> dict[str, Tensor]:
        """Stacked weights as they are stored."""
        out = {}
        last = len(self.net.shapes) - 1
        for i in range(last + 1):
            factor = 1.0 if i == last else self.net.gain
            bias = self.p[2 * i + 1].squeeze(1)
            out[f"seq.{i}.weight"] = (self.p[2 * i] / factor).transpose(1, 2).contiguous()
            out[f"seq.{i}.bias"] = bias - self.net.shift if i == last else bias / factor
        return out

    def without(self, done: Tensor, targets: Tensor) -> _Run:
        """The same run with some networks taken out."""
        keep = ~done
        rest = _Run(self.net, self.how, {n: w[keep] for n, w in self.weights().items()},
                    self.coordinates, targets)
        for name in ("theta", "mean", "square"):
            mine, theirs = self._views(getattr(self, name)), rest._views(getattr(rest, name))
            for source, target in zip(mine, theirs, strict=True):
                target.copy_(source[keep])
        return rest


def grid(height: int, width: int) -> Float[Tensor, "p 2"]:
    """Coordinates of the pixels of an image in [-1, 1], row by row: (y, x)."""
    axes = (torch.linspace(-1, 1, height), torch.linspace(-1, 1, width))
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2)


def psnr(mse: float) -> float:
    """Peak signal-to-noise ratio in dB of images in [0, 1]."""
    return math.inf if mse == 0 else -10 * math.log10(mse)


def meta_init(net: INR, scheme: str, x: Float[Tensor, "p i"], targets: Float[Tensor, "m p o"],
              rng: torch.Generator, *, rounds: int = 100, size: int = 8, steps: int = 15,
              lr: float = 5e-3, rate: float = 0.3) -> dict[str, Tensor]:
    """An initialisation that learns fast: Reptile (Nichol et al. 2018) over the targets.

    Args:
        net, scheme, x: as in :func:`fit`; where Reptile starts.
        targets: images to learn from.
        rng: of the start and of the choice of images.
        rounds: updates; each fits ``size`` networks for ``steps`` steps of ``lr``.
        rate: how far towards their mean an update goes.
    """
    theta = net.init(rng, scheme)
    how = Fit(steps=steps, lr=lr, betas=(0.9, 0.95))
    for i in range(rounds):
        pick = torch.randint(len(targets), (size,), generator=rng)
        found = fit(net, how, [theta] * size, x, targets[pick]).weights
        weight = rate * (1 - i / rounds)
        theta = {name: value.lerp(found[name].mean(0), weight) for name, value in theta.items()}
    return theta
