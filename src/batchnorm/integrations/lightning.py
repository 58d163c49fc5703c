"""A callback and a LayerSync plugin for Lightning. Needs the package `lightning`; nothing else of ours imports this."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer, callbacks
from lightning.pytorch.plugins.layer_sync import TorchSyncBatchNorm
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import nn

from batchnorm.integrations.loop import Companion, Outcome, Settings
from batchnorm.integrations.torch_tools import share, unshare
from batchnorm.layers import BatchNorm
from batchnorm.tools.convert import convert, revert

# They put averaged weights into the model; older versions of Lightning have the first one only.
AVERAGING = tuple(
    getattr(callbacks, name) for name in ("StochasticWeightAveraging", "WeightAveraging") if hasattr(callbacks, name)
)


class BatchNormCallback(Outcome, Callback):
    """Lightning callback: windows, freezing, calibration, records and diagnosis of the batch norms.

    - With ``Trainer(accumulate_grad_batches=k)`` the running statistics are updated once for each step of
      the optimizer, by the merged moments of its micro-batches, a shorter last step included.
    - `freeze_at` and `unfreeze_at` freeze the batch norms by epoch.
    - `calibrate` sets the statistics before each validation and at the end, also those of averaged weights: put this
      callback behind `WeightAveraging` and `StochasticWeightAveraging`. The counters of batches go on.
    - `watch` passes the values that `bn.watch` reads to the loggers of the trainer.
    - At the end `report` holds what `bn.diagnose` finds, and Lightning's log shows it.

    Args:
        options: those of `batchnorm.integrations.loop.Settings`; ``calibrate=True`` takes the training data.

    Raises:
        TypeError, ValueError: a bad option; when training begins, a model without a batch norm of ours, or a callback
            that averages weights behind this one.

    Examples:
        >>> from batchnorm.integrations.lightning import BatchNormCallback  # doctest: +SKIP
        >>> trainer = Trainer(callbacks=[BatchNormCallback(calibrate=True, limit=100)])  # doctest: +SKIP
    """

    def __init__(self, **options: Any) -> None:
        self._companion = Companion(Settings(**options))
        self._stepped = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        everyone = trainer.callbacks
        late = [type(c).__name__ for c in everyone[everyone.index(self) :] if isinstance(c, AVERAGING)]
        if stage == "fit" and late and self._companion.settings.calibrate is not None:
            raise ValueError(
                f"BatchNormCallback(calibrate=...) comes before {late[0]}, so it would calibrate before the averaged "
                f"weights are in the model. Put it after: callbacks=[..., {late[0]}(...), BatchNormCallback(...)]"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._companion.begin(pl_module, _Loggers(trainer))

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._companion.epoch_begins(pl_module, trainer.current_epoch)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._stepped = False
        self._companion.micro_batch_begins(pl_module, trainer.accumulate_grad_batches)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        self._stepped = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._stepped:
            self._companion.step_ends(pl_module)
        else:
            self._companion.micro_batch_ends()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._companion.step_ends(pl_module)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._companion.calibrate(pl_module, self._batches(trainer))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._companion.end(pl_module, self._batches(trainer))
        if self.report is not None:
            rank_zero_info(f"Batch norms: {self.report}")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._companion.release(pl_module)

    def _batches(self, trainer: Trainer) -> Any:
        wanted = self._companion.settings.calibrate
        if wanted is not True:
            return wanted
        loader = trainer.train_dataloader
        if getattr(loader, "persistent_workers", False):
            raise ValueError(
                "calibrate=True would restart the persistent workers of the training DataLoader in the middle of an "
                "epoch: pass a separate loader, or a function that makes one, BatchNormCallback(calibrate=...)"
            )
        return loader


class _Loggers:
    """The loggers of a trainer as one writer, with the trainer's own step numbers."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer

    def log_metrics(self, values: dict[str, float], step: int) -> None:
        for logger in self._trainer.loggers:
            logger.log_metrics(values, step=self._trainer.global_step)


class BatchNormSync(TorchSyncBatchNorm):
    """All batch norms of a model share statistics between the ranks of the strategy, on CPUs too.

    ``Trainer(plugins=[BatchNormSync()])``, with ``sync_batchnorm=True`` or without. torch's layers become ours
    during training; our layers keep all their options, and their process group if they have one. After training every
    layer has its old class again (a layer of torch that was frozen meanwhile stays ours: torch's cannot be frozen).

    Examples:
        >>> from batchnorm.integrations.lightning import BatchNormSync  # doctest: +SKIP
        >>> trainer = Trainer(accelerator="cpu", devices=2, plugins=[BatchNormSync()])  # doctest: +SKIP
    """

    def __init__(self) -> None:
        self._theirs: list[nn.Module] = []

    def apply(self, model: nn.Module) -> nn.Module:
        """Share statistics; raises a ValueError if a layer has virtual batches."""
        before = {module for module in model.modules() if isinstance(module, BatchNorm)}
        convert(model)
        ours = [module for module in model.modules() if isinstance(module, BatchNorm)]
        self._theirs = [module for module in ours if module not in before]
        for layer in ours:
            share(layer, layer.process_group or True, change_class=False)
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        """Undo `apply`."""
        for module in model.modules():
            if isinstance(module, BatchNorm):
                unshare(module)
                if module in self._theirs and not module.frozen:
                    revert(module)
        self._theirs = []
        return model
