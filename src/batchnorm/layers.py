"""The layers: their state and options. The computation is in `functional`."""

import warnings
from typing import Any, Literal, Self, Unpack

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from batchnorm.core import ops, population, recipes, sharing
from batchnorm.core.fx_leaf import as_leaf
from batchnorm.core.moments import Moments
from batchnorm.core.population import Bank, Window, unfit
from batchnorm.core.recipes import of_thread
from batchnorm.core.rules import OPTIONS, NonFinite, Options, Renorm, Rules, Single
from batchnorm.core.torch_internals import recomputing, transformed, unwatched
from batchnorm.core.validation import Call, check_number, in_words
from batchnorm.functional import Moving, dense, is_common, normalized


def _option(name: str) -> Any:
    """An option as an attribute of the layer, kept in its rules."""
    return property(
        lambda layer: getattr(layer.rules, name),
        lambda layer, value: layer.set_options(**{name: value}),
    )


class BatchNorm(_BatchNorm):
    """Batch normalization of an input of any rank, (N, C, *).

    y = activation((x − μ) / √(σ² + eps) · γ + β + residual), per channel. In training μ and σ² (biased) are the
    batch's; in evaluation they are the running statistics, which training updates:
    running ← (1 − momentum)·running + momentum·batch (with the unbiased variance), or with ``momentum=None`` the
    average over all batches so far. Without running statistics the batch's are used in evaluation too.

    A drop-in for torch's: same signature, state_dict and errors. `BatchNorm1d`, `BatchNorm2d` and `BatchNorm3d` are
    this layer for one rank, as subclasses of torch's classes.

    Args:
        num_features: C, the size of dimension 1.
        eps: added to the variance.
        momentum: the weight of the newest batch in the running statistics, or None for a plain average.
        affine: True for learned γ (`weight`) and β (`bias`).
        track_running_stats: True to keep running statistics.
        bias: False for γ without β.
        activation: "relu", "relu6", "leaky_relu", "silu", "gelu" or "hardswish", applied in the same pass.
        virtual_batch_size: size of the ghost batches: in training, each is normalised by its own statistics.
        process_group: the ranks that share statistics in training; True for all.
        renorm: `bn.Renorm(r_max, d_max, warmup)`: batch renormalisation.
        single: one value per channel in training is an "error", as in torch, or is normalised by the running
            statistics ("population").
        nonfinite: if a channel's batch holds NaN or Inf, its running statistics are not updated ("skip", counted in
            `skipped_batches`), an error is raised ("raise"), or they are updated as in torch ("propagate").
        recompute: False to leave this layer out of `bn.recompute`.
        device: of the parameters and buffers; None for torch's default device.
        dtype: the same; None for torch's default dtype.

    Shape:
        input, residual and output: (N, C, *), the output in the input's dtype and memory format. `mask` broadcasts
        over the input, or over (N, *) for all channels alike; `lengths` are (N,) for an input (N, C, L).

    Raises:
        ValueError: an input of the wrong rank, one value per channel in training, an unknown option.
        RuntimeError: another number of channels than `num_features`, or a dtype that does not fit.

    Examples:
        >>> import torch, batchnorm as bn
        >>> layer = bn.BatchNorm(3)
        >>> x = torch.randn(64, 3, 8, 8) * 10 + 5
        >>> y = layer(x)
        >>> bool(y.mean().abs() < 1e-6), bool((y.std(correction=0) - 1).abs() < 1e-4)
        (True, True)

    Source: Ioffe & Szegedy 2015 (arXiv:1502.03167), algorithms 1 and 2; for virtual batches, Hoffer et al. 2017
    (arXiv:1705.08741), algorithm 1; for `renorm`, Ioffe 2017 (arXiv:1702.03275).
    """

    # Default states are class attributes: layers that torch made or pickled have them too.
    rules: Rules = Rules()
    activation: str | None = _option("activation")
    virtual_batch_size: int | None = _option("virtual_batch_size")
    process_group: Any = _option("process_group")
    renorm: Renorm | None = _option("renorm")
    single: Single = _option("single")
    nonfinite: NonFinite = _option("nonfinite")
    recompute: bool = _option("recompute")
    frozen: Literal[False, "statistics", "all"] = False  # set by `freeze`
    _paused: int = 0  # number of `bn.paused` contexts that are open
    _window: Window | None = None  # set by `bn.accumulate`
    _domain: str | None = None  # set by `bn.domain`
    _skips: int | Tensor = 0
    _skips_reported: int = 0
    _name: str | None = None  # the path in the model, set by `convert`
    _fused: bool = False  # `convert` gave the layer the activation or addition that followed it
    _before_sharing: tuple[Any, Any] | None = None  # class and process group before `share` changed them
    _theirs: tuple[str, str] | None = None  # module and name of the class that `convert` found, if not torch's

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        activation: str | None = None,
        virtual_batch_size: int | None = None,
        process_group: Any = None,
        renorm: Renorm | None = None,
        single: Single = "error",
        nonfinite: NonFinite = "skip",
        recompute: bool = True,
    ) -> None:
        check_number("eps", eps)
        if momentum is not None:
            check_number("momentum", momentum)
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device=device, dtype=dtype, bias=bias
        )
        self.set_options(
            activation=activation,
            virtual_batch_size=virtual_batch_size,
            process_group=process_group,
            renorm=renorm,
            single=single,
            nonfinite=nonfinite,
            recompute=recompute,
        )

    def set_options(self, **options: Unpack[Options]) -> Self:
        """Set the options beyond torch's, by their names in the constructor; returns the layer.

        Raises:
            TypeError: an unknown option.
            ValueError: an unknown value; then none is set.
        """
        self.rules = self.rules.changed(**options)
        if not isinstance(self._skips, Tensor):
            self._skips = torch.tensor(0, device="cpu")  # a tensor from the start: compiled code adds to it
        return self

    def adopt_options(self) -> None:
        """Move options from plain attributes, as torch's SyncBatchNorm and old pickles have them, into the rules."""
        found = {name: self.__dict__.pop(name) for name in OPTIONS if name in self.__dict__}
        if found:
            self.set_options(**found)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.adopt_options()

    @property
    def skipped_batches(self) -> int:
        """The number of batches that did not update a channel's running statistics because they were not finite."""
        return int(self._skips)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2D input (N, C, *) (got {input.dim()}D input)")

    def forward(
        self,
        input: Tensor,
        residual: Tensor | None = None,
        mask: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> Tensor:
        if type(input) is not Tensor and isinstance(input, fx.Proxy):
            return as_leaf(self, BatchNorm.forward, input, residual, mask, lengths)
        try:
            self._check_input_dim(input)
            if mask is None and lengths is None and (output := self._in_common_case(input, residual)) is not None:
                return output
            return self._in_general(input, residual, mask, lengths)
        except (AttributeError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            if (clearer := in_words(error, input, self._name and self.label())) is None:
                raise
            raise clearer from error

    def _in_general(
        self, input: Tensor, residual: Tensor | None, mask: Tensor | None, lengths: Tensor | None
    ) -> Tensor:
        """The output of any call, through `functional`."""
        bank: Any = self if self._domain is None else self.banks[self._domain]
        training, rules = self.training, self.rules
        # In training, running statistics that are not tracked are neither read nor written.
        known = self.track_running_stats or not training
        mean, var = (bank.running_mean, bank.running_var) if known else (None, None)
        by_batch = (training and not self.frozen) or (mean is None and var is None)
        affine = bank if bank.affine else self
        limits, group, label, moving = None, None, "", None
        if by_batch:
            limits = rules.renorm.limits(bank.num_batches_tracked) if rules.renorm else None
            if (group := sharing.resolve(self._group())) is not None:
                label = self._label()
        learns = training and by_batch and mean is not None and not self._paused and not recomputing()
        learns = learns and sharing.updates_running_statistics()
        if learns and self._window is None and rules.nonfinite != "raise":
            assert mean is not None
            assert var is not None
            moving = Moving(mean, var, bank.num_batches_tracked, self._skip_counter(mean.device), self.momentum)
        call = Call(
            input, residual, mask, lengths, affine.weight, affine.bias, mean, var, by_batch, self.eps, rules
        )  # fmt: skip
        output, batch = normalized(call, limits, moving, group, label)
        if batch is not None:
            if learns:
                self._update_running_statistics(bank, batch)
        elif learns and unwatched() and self._may_ask() and int(self._skips) != self._skips_reported:
            self._report_skip(unfit(Moments.of(input.detach()), bank.running_var.dtype))
        return output

    def _in_common_case(self, input: Tensor, residual: Tensor | None) -> Tensor | None:
        """The output of nearly every call, straight from the operator; None if `_in_general` has to be called.

        `_in_general` takes more time than the kernel of a small tensor. It raises clear errors for calls that the
        operator refuses.
        """
        rules = self.rules
        if not (rules.common and self._alone and self._window is None and self._domain is None):
            return None
        if not is_common(input) or sharing.open_exchanges:
            return None
        held, batches, skips, momentum = self._parameters, None, self._skips, self.momentum
        try:  # nn.Module's __getattr__ costs a microsecond per name
            if residual is not None and not residual.is_floating_point():
                return None
            weight, bias = held["weight"], held["bias"]
            mean, var = self._buffers["running_mean"], self._buffers["running_var"]
            x = input if input.is_contiguous() else dense(input)[0]
            if self.training and not self.frozen:
                if not self.track_running_stats or self._paused or recomputing():
                    mean = var = None
                else:
                    batches = self._buffers["num_batches_tracked"]
                output, statistics = ops.forward(
                    x, residual, weight, bias, None, None, mean, var, batches, skips, momentum, self.eps,
                    rules.activation, rules.nonfinite == "skip",
                )  # fmt: skip
                if mean is not None and int(skips) != self._skips_reported:
                    self._report_skip(unfit(Moments.of(input.detach()), mean.dtype))
            elif mean is None:
                return None
            else:
                output, statistics = ops.forward(
                    x, residual, weight, bias, mean, var, None, None, None, None, None, self.eps, rules.activation,
                    False,
                )  # fmt: skip
        except (AttributeError, KeyError, RuntimeError, TypeError):
            # parametrised or pruned layers, and arguments that the operator refuses
            return None
        if of_thread.listener is not None and rules.recompute:
            recipes.plain(output, x, residual, weight, bias, statistics, rules.activation)
        return output

    # True if the layer shares its statistics with other ranks only when it has a process group
    _alone = True

    def _group(self) -> Any:
        return self.rules.process_group

    def label(self) -> str:
        """The name of the layer in errors: its path in the model if `convert` has set it."""
        kind = f"{type(self).__name__}({self.num_features})"
        return f"{self._name}: {kind}" if self._name else kind

    def _label(self) -> str:
        """The layer and the step in errors; no step on an accelerator, where reading it would wait for the device."""
        name = self.label()
        batches = self.num_batches_tracked
        if batches is None or batches.device.type != "cpu" or torch.compiler.is_compiling():
            return name
        return f"{name}, step {int(batches) + 1}"

    def _update_running_statistics(self, bank: Any, batch: Moments) -> None:
        """Update the running statistics by the batch, or by the window of micro-batches that it completes."""
        if self._window is not None:
            window = self._window.add(batch)
            if window is None:
                return
            batch = window
        nonfinite = self.rules.nonfinite
        label = self._label() if nonfinite == "raise" else ""
        statistics = bank.running_mean, bank.running_var, bank.num_batches_tracked
        skipped = population.move(*statistics, batch, self.momentum, nonfinite, label)
        if nonfinite == "skip":
            self._count_skip(skipped)

    def close_window(self) -> None:
        """Update the running statistics by the micro-batches of a window that is not full, if there are any."""
        window, self._window = self._window, None
        if window is not None and (batch := window.drain()) is not None:
            self._update_running_statistics(self if self._domain is None else self.banks[self._domain], batch)

    def _skip_counter(self, device: torch.device) -> Tensor | None:
        """The counter of skipped batches, which the operators add to; layers that torch made have none."""
        if not isinstance(self._skips, Tensor) or device.type == "meta":
            return None
        if self._skips.device != device:  # the layer was on another device
            self._skips = self._skips.to(device)
        return self._skips

    def _may_ask(self) -> bool:
        """True if the counter can be read without waiting for a device."""
        return not isinstance(self._skips, Tensor) or self._skips.is_cpu

    def _count_skip(self, channels: Tensor) -> None:
        """Count without waiting for the device. On CPU the first skip is reported: reading costs nothing there."""
        if torch.compiler.is_compiling() or channels.device.type != "cpu":
            if not (channels.is_meta or torch.compiler.is_exporting() or transformed()):
                self._skips = self._skips + channels.any()
        elif type(channels) is Tensor and not transformed() and channels.any():  # there are values to read
            self._skips = self._skips + 1
            self._report_skip(channels)

    def _report_skip(self, channels: Tensor) -> None:
        if not self._skips_reported:
            found = channels.nonzero().flatten().tolist()
            which = f"of channels {found} are" if found else "of some channels, in compiled steps before this one, were"
            warnings.warn(
                f"{self!r}: the batch statistics {which} not finite; their running statistics were not updated. This "
                "is shown once; layer.skipped_batches counts",
                RuntimeWarning,
                stacklevel=3,
            )
        self._skips_reported = int(self._skips)

    def freeze(self, affine: bool = False) -> None:
        """Normalise by the running statistics and do not update them; with `affine`, γ and β do not train."""
        if self.running_mean is None:
            raise ValueError(f"{self!r} has no running statistics to normalise by: it cannot be frozen")
        self.frozen = "all" if affine else "statistics"
        if affine:
            self.requires_grad_(False)

    def unfreeze(self) -> None:
        """Undo `freeze`."""
        if self.frozen == "all":
            self.requires_grad_(True)
        self.frozen = False

    def add_bank(self, name: str, affine: bool = False) -> None:
        """Add running statistics `name`, a copy of the layer's own; with `affine` also γ and β."""
        if self.running_mean is None:
            raise ValueError(f"{self!r} has no running statistics, so there is nothing for `bn.domain` to switch")
        if not hasattr(self, "banks"):
            self.banks = nn.ModuleDict()
        if name not in self.banks:
            self.banks[name] = Bank(self, affine)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        counter = f"{prefix}num_batches_tracked"
        if self.frozen and counter in destination and not keep_vars:
            # the counter's dtype and shape mark the frozen layer: files of tensors alone keep both, and torch's layers
            # accept them
            shape = (1,) if self.frozen == "all" else ()
            destination[counter] = destination[counter].to(torch.int32).reshape(shape)
        if self.frozen and hasattr(destination, "_metadata"):  # torch's layers ignore this entry
            destination._metadata[prefix[:-1]]["frozen"] = self.frozen

    def _load_from_state_dict(self, state_dict: Any, prefix: str, local_metadata: Any, *args: Any) -> None:
        banks, own = f"{prefix}banks.", ".running_mean"
        for name in [k[len(banks) : -len(own)] for k in state_dict if k.startswith(banks) and k.endswith(own)]:
            self.add_bank(name, affine=f"{banks}{name}.weight" in state_dict)
        frozen = local_metadata.get("frozen")
        if (counter := state_dict.get(f"{prefix}num_batches_tracked")) is not None and counter.dtype is torch.int32:
            frozen = frozen or ("all" if counter.dim() else "statistics")
            state_dict[f"{prefix}num_batches_tracked"] = counter.to(torch.int64).reshape(())
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)
        if frozen:
            self.freeze(affine=frozen == "all")

    def extra_repr(self) -> str:
        default = Rules()
        changed = [f"{k}={v!r}" for k in OPTIONS if (v := getattr(self.rules, k)) != getattr(default, k)]
        frozen = [f"frozen={self.frozen!r}"] if self.frozen else []
        return ", ".join([super().extra_repr(), *changed, *frozen])


class BatchNorm1d(BatchNorm, nn.BatchNorm1d):
    """`BatchNorm` for (N, C) or (N, C, L), a subclass of `torch.nn.BatchNorm1d`."""

    _check_input_dim = nn.BatchNorm1d._check_input_dim


class BatchNorm2d(BatchNorm, nn.BatchNorm2d):
    """`BatchNorm` for (N, C, H, W), a subclass of `torch.nn.BatchNorm2d`."""

    _check_input_dim = nn.BatchNorm2d._check_input_dim


class BatchNorm3d(BatchNorm, nn.BatchNorm3d):
    """`BatchNorm` for (N, C, D, H, W), a subclass of `torch.nn.BatchNorm3d`."""

    _check_input_dim = nn.BatchNorm3d._check_input_dim


class SyncBatchNorm(BatchNorm, nn.SyncBatchNorm):
    """`BatchNorm` that shares statistics with every rank unless told otherwise, a subclass of `torch.nn.SyncBatchNorm`.

    Unlike torch's it works on any device and backend, with ranks of different sizes, and is differentiable twice.
    Without a process group of several ranks it is plain `BatchNorm`. The formula, the shapes and all other arguments
    are those of `BatchNorm`.

    Args:
        process_group: the ranks that share statistics in training; None or True for all.

    Raises:
        ValueError: together with `virtual_batch_size`, if statistics are shared; or as `BatchNorm`.
        RuntimeError: a rank could not exchange its statistics; the message names the layer.

    Examples:
        >>> import torch, batchnorm as bn
        >>> layer, alone = bn.SyncBatchNorm(3), bn.BatchNorm(3)
        >>> x = torch.randn(8, 3, 4)
        >>> torch.equal(layer(x), alone(x))  # one process
        True

    Source: Ioffe & Szegedy 2015 (arXiv:1502.03167), algorithm 1; the statistics of the ranks are merged by
    `Moments.merge`.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: Any | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        activation: str | None = None,
        virtual_batch_size: int | None = None,
        renorm: Renorm | None = None,
        single: Single = "error",
        nonfinite: NonFinite = "skip",
        recompute: bool = True,
    ) -> None:
        super().__init__(
            num_features,
            eps,
            momentum,
            affine,
            track_running_stats,
            device,
            dtype,
            bias=bias,
            activation=activation,
            virtual_batch_size=virtual_batch_size,
            process_group=process_group,
            renorm=renorm,
            single=single,
            nonfinite=nonfinite,
            recompute=recompute,
        )

    _alone = False

    def _group(self) -> Any:
        group = self.rules.process_group
        return True if group is None else group
