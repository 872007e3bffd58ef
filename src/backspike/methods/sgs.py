"""SGS: scale weight gradients by local spike activity (paper D, Park et al. 2023).

It changes only the weight gradients of linear and convolution layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..neuron.hooks import Handle, spiking_layers
from ..neuron.lif import LIF, Output
from .weight_mask import learning_layers

DECAY = math.exp(-1)  # of the traces, per timestep


def scale_gradients(
    model: nn.Module,
    alpha: float = 0.5,
    pair: str = "pre_post",
    *,
    normalise: str = "layer",
    mean_preserving: bool = False,
    pool_pre: bool = False,
) -> GradientScaling:
    """SGS (paper D, Park et al. 2023): scale weight gradients by pre- and postsynaptic activity.

        z[t] = exp(-1) z[t-1] + s[t]                  spike traces before and after, z[-1] = 0
        C[t] = sum of z_pre[t] z_post[t] over batch and positions; has the shape of the weight
        A[t] = (1 - alpha) + alpha C[t] / max C[t]    A = 1 where nothing spikes
        dL/dW = sum_t A[t] dW[t]

    Scaled are linear and (non-transposed) convolution layers between spikes of the same spatial
    size: not the first layer, not the classifier, and none with a stride or a pool in between.
    Gradients of inputs, biases and norms are unchanged.
    The layers are found in the first forward pass of `model` with gradients, by walking the
    autograd graph from the input of a layer back to the spikes it consists of, and from each
    spiking layer back, through norms and additions, to the layers that feed it. Ambiguous cases are
    not scaled; `print(handle)` lists each layer with the reason.

    alpha: strength; may be set on the handle at any time. 0 scales nothing. The layers of a block
        run one after the other while the handle exists, so even then gradients of layers that are
        fused without it change by rounding.
    pair: "pre_post"; or "pre_pre", which uses z_pre instead of z_post and needs a layer with as
        many outputs as inputs.
    normalise: take the max over the "layer" or over each output "channel".
    mean_preserving: divide A by its mean.
    pool_pre: also scale layers whose input is pooled spikes, using the trace of that input (for an
        average pool, the pooled trace).

    In distributed training, C is summed over ranks. Memory: activations of scaled layers are held
    by reference, plus one weight-shaped tensor each for C[t], dW[t] and their sum.

    Returns a handle: `.remove()` ends it, and it is a context manager.
    Raises ValueError for wrong arguments; the first forward pass raises RuntimeError if no layer
    can be scaled, for example under torch.compile, which hides the layers.

    Evidence: the first author's code, from which the paper is inferred. "pre_pre" is what the code
    computes after its second version (our reading). `mean_preserving`, `normalise="channel"` and
    `pool_pre` are ours (docs/methods.md).
    """
    return GradientScaling(model, alpha, _Rule(pair, normalise, mean_preserving, pool_pre))


@dataclass(frozen=True)
class _Rule:
    pair: str
    normalise: str
    mean_preserving: bool
    pool_pre: bool

    def __post_init__(self) -> None:
        if self.pair not in ("pre_post", "pre_pre"):
            raise ValueError(
                f"scale_gradients: pair must be 'pre_post' or 'pre_pre', got {self.pair!r}"
            )
        if self.normalise not in ("layer", "channel"):
            raise ValueError(
                f"scale_gradients: normalise must be 'layer' or 'channel', got {self.normalise!r}"
            )


def weight_gradient(layer: nn.Module, x: Tensor, g: Tensor) -> Tensor:
    """dL/dW for one input x and the output gradient g, in the dtype of g."""
    x = x.to(g.dtype)
    if isinstance(layer, nn.Linear):
        return g.reshape(-1, layer.out_features).t() @ x.reshape(-1, layer.in_features)
    assert isinstance(layer, nn.modules.conv._ConvNd)
    padding = layer.padding
    if layer.padding_mode != "zeros" or isinstance(padding, str):
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        x = F.pad(x, layer._reversed_padding_repeated_twice, mode=mode)
        padding = (0,) * len(layer.kernel_size)
    weight = layer.weight.detach().to(g.dtype)  # only its shape is read
    geometry = layer.stride, padding, layer.dilation, False, (0,) * len(layer.kernel_size)
    options = None, *geometry, layer.groups
    return torch.ops.aten.convolution_backward(g, x, weight, *options, (False, True, False))[1]


def scale(C: Tensor, alpha: float, rule: _Rule) -> Tensor:
    """A from C, both in the shape of the weights."""
    top = (
        C.max()
        if rule.normalise == "layer"
        else C.flatten(1).amax(1).view(-1, *[1] * (C.dim() - 1))
    )
    A = torch.where(
        top > 0, (1 - alpha) + alpha * (C / top.clamp(min=torch.finfo(C.dtype).tiny)), 1.0
    )
    return A / A.mean() if rule.mean_preserving else A


def scaled_weight_gradient(
    layer: Any, x: Tensor, post: Tensor, g: Tensor, alpha: float, rule: _Rule
) -> Tensor:
    """sum_t A[t] dW[t] from input x, spikes post and output gradient g, each `[T, B, ...]`."""
    dtype = layer.weight.dtype if layer.weight.dtype == torch.float64 else torch.float32
    total = torch.zeros_like(layer.weight, dtype=dtype)
    z_pre = z_post = torch.zeros((), dtype=dtype, device=x.device)
    for x_t, post_t, g_t in zip(x, post, g):
        z_pre = DECAY * z_pre + x_t.to(dtype)
        z_post = z_pre if rule.pair == "pre_pre" else DECAY * z_post + post_t.to(dtype)
        C = weight_gradient(layer, z_pre, z_post)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(C)
        total += scale(C, alpha, rule) * weight_gradient(layer, x_t, g_t).to(dtype)
    return total.to(layer.weight.dtype)


class _Mark:
    """A place in the autograd graph that belongs to the layer `name`."""

    def __init__(self, name: str) -> None:
        self.name = name

    def gradient(self, g: Tensor) -> Tensor | None:
        """The gradient of the anchor, from the gradient g at this place."""
        return None


class _Spikes(_Mark):
    """The output of a spiking layer."""


class _Use(_Mark):
    """The output of a linear or convolution layer, where its weight gradient is computed."""

    def __init__(
        self, name: str, layer: Any, x: Tensor, y: Tensor, scaling: GradientScaling
    ) -> None:
        super().__init__(name)
        self.layer = layer
        self.x = x.detach()
        self.shape = y.shape
        self.scaling = scaling
        self.post: Tensor | None = None

    def gradient(self, g: Tensor) -> Tensor:
        scaling, dtype = self.scaling, self.layer.weight.dtype
        with torch.autocast(g.device.type, enabled=False):
            if self.name not in scaling.scaled or not scaling.alpha:
                return weight_gradient(self.layer, self.x, g).to(dtype)
            if self.post is None:
                raise RuntimeError(
                    f"scale_gradients: layer {self.name!r} ran, but not "
                    f"{scaling.scaled[self.name]!r}, which should follow it"
                )
            T, folded = self.post.shape[0], self.shape != self.post.shape
            x, g = (a.unflatten(0, (T, -1)) if folded else a for a in (self.x, g))
            return scaled_weight_gradient(self.layer, x, self.post, g, scaling.alpha, scaling.rule)


class _Marked(torch.autograd.Function):
    """The identity on x; in backward, the mark computes the gradient of the anchor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, anchor: Tensor, mark: _Mark) -> Tensor:
        ctx.mark = mark
        return x.detach()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> Any:
        return g, ctx.mark.gradient(g), None


class _Hook:
    """A hook for one module only: in copies of the model, also from a file, it has no effect."""

    def __init__(
        self, module: nn.Module | None, callback: Callable[..., Any], name: tuple[str, ...]
    ) -> None:
        self.module = module
        self.callback = callback
        self.name = name

    def __call__(self, module: nn.Module, *rest: Any) -> Any:
        return self.callback(*self.name, module, *rest) if module is self.module else None

    def __reduce__(self) -> Any:
        return _Hook, (None, print, ())


class GradientScaling(Handle):
    """The handle that `scale_gradients` returns.

    `scaled` maps each scaled layer to the spiking layer that follows it, `not_scaled` each other
    layer to the reason. Both are known, and printed as a table, after the first forward pass with
    gradients.
    """

    def __init__(self, model: nn.Module, alpha: float, rule: _Rule) -> None:
        super().__init__()
        self.alpha = alpha
        self.rule = rule
        self.scaled: dict[str, str] = {}
        self.not_scaled: dict[str, str] = {}
        self._layers: dict[str, Any] = {
            n: m for n, m in learning_layers(model) if not getattr(m, "transposed", False)
        }
        if not self._layers:
            raise ValueError(
                "scale_gradients: this model has no linear or convolution layer with a learned "
                "weight"
            )
        self._trace: _Trace | None = None  # while the first forward pass runs
        self._hidden: dict[str, nn.Parameter] = {}  # while a layer runs
        self._waiting: dict[str, list[_Use]] = {}  # by the spiking layer that will follow
        self._hook(model, model.register_forward_pre_hook, self._begin)
        for name, layer in self._layers.items():
            self._hook(layer, layer.register_forward_pre_hook, self._before_layer, name)
            self._hook(
                layer, layer.register_forward_hook, self._after_layer, name, always_call=True
            )
        for name, neuron in spiking_layers(model).items():
            self._hook(neuron, neuron.register_forward_pre_hook, self._before_spikes, name)
            self._hook(neuron, neuron.register_forward_hook, self._after_spikes, name)
        self._hook(model, model.register_forward_hook, self._end)

    @property
    def alpha(self) -> float:
        return self._alpha

    @alpha.setter
    def alpha(self, alpha: float) -> None:
        if not 0 <= alpha <= 1:
            raise ValueError(f"scale_gradients: alpha must lie in [0, 1], got {alpha}")
        self._alpha = alpha

    @property
    def traced(self) -> bool:
        return bool(self.scaled or self.not_scaled)

    def __str__(self) -> str:
        if not self.traced:
            return "scale_gradients: the first forward pass will find the layers to scale"
        width = max(map(len, self._layers))
        rows = [
            f"{name:{width}}  scaled      using the spikes of {self.scaled[name]}"
            if name in self.scaled
            else f"{name:{width}}  not scaled  {self.not_scaled[name]}"
            for name in self._layers
        ]
        return "\n".join(rows)

    def _hook(
        self,
        module: nn.Module,
        register: Callable[..., Any],
        callback: Callable[..., Any],
        *name: str,
        **options: bool,
    ) -> None:
        self.undo.append(register(_Hook(module, callback, name), **options).remove)

    def _begin(self, model: nn.Module, args: Any) -> None:
        self._trace = _Trace() if torch.is_grad_enabled() and not self.traced else None
        self._waiting.clear()

    def _before_layer(self, name: str, layer: Any, args: Any) -> None:
        if not torch.is_grad_enabled():
            return
        if self._trace is None and not self.traced:
            raise RuntimeError(
                "scale_gradients: the first forward pass must run the whole model, not a part of it"
            )
        if self._trace is not None or (name in self.scaled and self.alpha):
            # run the layer on a detached weight; _Use computes the gradient
            self._hidden[name] = layer._parameters["weight"]
            layer._parameters["weight"] = layer.weight.detach()

    def _after_layer(self, name: str, layer: Any, args: Any, y: Tensor | None) -> Tensor | None:
        weight = self._hidden.pop(name, None)
        if weight is None:
            return None
        layer._parameters["weight"] = weight
        if y is None:  # the layer raised
            return None
        use = _Use(name, layer, args[0], y, self)
        if self._trace is not None:
            self._trace.uses.setdefault(name, []).append((use, args[0].grad_fn))
        else:
            self._waiting.setdefault(self.scaled[name], []).append(use)
        return _Marked.apply(y, weight, use)

    def _before_spikes(self, name: str, neuron: LIF, args: Any) -> None:
        if self._trace is not None:
            self._trace.currents.append((name, args[0].grad_fn))

    def _after_spikes(self, name: str, neuron: LIF, args: Any, out: Tensor | Output) -> Any:
        spikes = out.spikes if isinstance(out, Output) else out
        assert spikes is not None
        if self._trace is None:
            for use in self._waiting.pop(name, ()):
                use.post = spikes.detach()
            return None
        self._trace.spikes[name] = spikes.detach()
        # the anchor puts spikes into the graph that depend on nothing learned
        spikes = _Marked.apply(
            spikes, torch.zeros((), device=spikes.device, requires_grad=True), _Spikes(name)
        )
        return out._replace(spikes=spikes) if isinstance(out, Output) else spikes

    def _end(self, model: nn.Module, args: Any, out: Any) -> None:
        trace, self._trace = self._trace, None
        if trace is None:
            return
        for name in self._layers:
            post, reason = trace.judge(name, self.rule)
            if reason:
                self.not_scaled[name] = reason
            else:
                self.scaled[name] = post
                trace.uses[name][0][0].post = trace.spikes[post]
        if not self.scaled:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in self.not_scaled.items())
            self.not_scaled.clear()
            raise RuntimeError(
                f"scale_gradients: no layer of this model can be scaled ({reasons}); it needs a "
                "layer between two spiking layers of the same spatial size, without torch.compile"
            )


# Operations in the autograd graph: those that only move elements, norms and additions, and pools.
_MOVES = frozenset({
    "View", "UnsafeView", "ReshapeAlias", "Permute", "Transpose", "T", "Squeeze", "Unsqueeze",
    "Expand", "Clone", "Alias", "ToCopy", "Select", "Slice", "Split", "SplitWithSizes", "Unbind",
    "Stack", "Cat", "CopySlices", "AsStrided", "UsualStrides",
})  # fmt: skip
_NORMS = frozenset({
    "Add", "Sub", "Mul", "Div", "Neg", "Pow", "Sqrt", "Rsqrt", "Reciprocal", "Mean", "Sum", "Var",
    "VarMean", "Std", "OverRanks", "NativeBatchNorm", "CudnnBatchNorm", "MiopenBatchNorm",
    "NativeLayerNorm", "NativeGroupNorm",
})  # fmt: skip
_POOLS = frozenset({
    "AvgPool2D", "AvgPool3D", "MaxPool2DWithIndices", "MaxPool3DWithIndices", "AdaptiveAvgPool2D",
    "AdaptiveAvgPool3D", "AdaptiveMaxPool2D", "AdaptiveMaxPool3D", "Mean", "Pool",
})  # fmt: skip


class _Trace:
    """What the first forward pass shows, and which layers can be scaled.

    uses: of each layer, with the graph node of its input.
    currents: names of spiking layers, with the graph node of their input.
    spikes: the output of each spiking layer.
    """

    def __init__(self) -> None:
        self.uses: dict[str, list[tuple[_Use, Any]]] = {}
        self.currents: list[tuple[str, Any]] = []
        self.spikes: dict[str, Tensor] = {}

    def judge(self, name: str, rule: _Rule) -> tuple[str, str]:
        """Return (the spiking layer after it, why the layer is not scaled or "")."""
        uses = self.uses.get(name, [])
        if len(uses) != 1:
            return "", "it runs more than once in a forward pass" if uses else "it did not run"
        use, source = uses[0]
        post, reason = self._post(use)
        reason = _no_spikes(source, rule) or reason
        return post, reason or _wrong_shape(use, self.spikes[post], rule)

    def _post(self, use: _Use) -> tuple[str, str]:
        """Return (the one spiking layer it feeds, why there is none or "")."""
        fed = {
            (neuron, obstacle)
            for neuron, node in self.currents
            for mark, obstacle in _origins(node, _MOVES | _NORMS)
            if mark is use
        }
        neurons = sorted({neuron for neuron, _ in fed})
        if not neurons:
            return "", "no spiking layer follows it directly"
        if len(neurons) > 1:
            return "", f"it feeds several spiking layers: {', '.join(neurons)}"
        if obstacles := sorted({obstacle for _, obstacle in fed} - {""}):
            return "", f"{obstacles[0]} lies between it and the spiking layer {neurons[0]}"
        if sum(neuron == neurons[0] for neuron, _ in self.currents) > 1:
            return "", f"the spiking layer {neurons[0]} runs more than once in a forward pass"
        return neurons[0], ""


def _no_spikes(source: Any, rule: _Rule) -> str:
    """Why the values from this node are not spikes with a trace, or ""."""
    found = _origins(source, _MOVES | _POOLS if rule.pool_pre else _MOVES)
    if not any(isinstance(mark, _Spikes) for mark, _ in found):
        return "its input is not spikes"
    if obstacles := sorted({obstacle for _, obstacle in found} - {""}):
        advice = "; pool_pre=True allows that" if obstacles[0] in _POOLS else ""
        return f"{obstacles[0]} lies between the spikes and its input{advice}"
    all_spikes = all(isinstance(mark, _Spikes) for mark, _ in found)
    return "" if all_spikes else "only a part of its input is spikes"


def _wrong_shape(use: _Use, post: Tensor, rule: _Rule) -> str:
    """Why the traces before and after the layer do not match, or ""."""
    x, y = list(use.x.shape), list(use.shape)
    linear = isinstance(use.layer, nn.Linear)
    folded = [post.shape[0] * post.shape[1], *post.shape[2:]]
    if y != folded and not (linear and y == list(post.shape)):
        return f"its output {y} and the spikes after it {list(post.shape)} differ in shape"
    if not linear and x[2:] != y[2:]:
        return f"its input and its output differ in size, {x[2:]} and {y[2:]}"
    mismatch = rule.pair == "pre_pre" and x != y
    return "pair='pre_pre' needs as many outputs as inputs" if mismatch else ""


def _origins(node: Any, passed: frozenset[str]) -> set[tuple[_Mark | None, str]]:
    """The marks at which a walk back from `node` ends, or None for data and parameters.

    Each comes with the first operation on the way that is not in `passed`, or "".
    """
    found: set[tuple[_Mark | None, str]] = set()
    seen: set[tuple[Any, str]] = set()
    stack = [(node, "")]
    while stack:
        node, obstacle = stack.pop()
        if (node, obstacle) in seen:
            continue
        seen.add((node, obstacle))
        mark = getattr(node, "mark", None)
        if node is None or isinstance(mark, _Mark) or not node.next_functions:
            found.add((mark if isinstance(mark, _Mark) else None, obstacle))
            continue
        operation = node.name().split("::")[-1].split("Backward")[0].lstrip("_")
        here = obstacle or ("" if operation in passed else operation)
        stack += [(before, here) for before, _ in node.next_functions]
    return found
