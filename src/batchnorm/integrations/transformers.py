"""A callback for the Trainer of transformers. Needs transformers and accelerate; nothing else of ours imports this."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from batchnorm.integrations.loop import Companion, Outcome, Settings


class BatchNormCallback(Outcome, TrainerCallback):
    """Callback for transformers' Trainer: windows, freezing, calibration, records and diagnosis of the batch norms.

    - With ``gradient_accumulation_steps=k`` the running statistics are updated once for each step of the
      optimizer, by the merged moments of its micro-batches, a shorter last step included.
    - `freeze_at` and `unfreeze_at` freeze the batch norms by epoch.
    - `calibrate` sets the statistics before each evaluation and at the end; the counters of batches go on. A batch that
      is a dict goes to the model as keywords.
    - `watch` records one of every `watch` steps, and passes the values to `writer`.
    - At the end `report` holds what `bn.diagnose` finds.

    To share statistics between ranks, ``bn.convert(model, sync=True)`` before the Trainer is made.

    Args:
        writer: as that of `bn.watch`.
        options: those of `batchnorm.integrations.loop.Settings`.

    Raises:
        TypeError, ValueError: a bad option; when training begins, a model without a batch norm of ours.

    Examples:
        >>> from batchnorm.integrations.transformers import BatchNormCallback  # doctest: +SKIP
        >>> trainer = Trainer(model, args, callbacks=[BatchNormCallback(calibrate=batches)])  # doctest: +SKIP
    """

    def __init__(self, writer: Any = None, **options: Any) -> None:
        self._companion = Companion(Settings(**options))
        self._writer = writer

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self._companion.begin(model, self._writer)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self._companion.epoch_begins(model, int((state.epoch or 0) + 1e-6))  # a float: 1.5 within the second epoch

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self._companion.micro_batch_begins(model, args.gradient_accumulation_steps)

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._companion.micro_batch_ends()

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self._companion.step_ends(model)
        self._before_evaluation(control, model)

    def on_epoch_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self._before_evaluation(control, model)

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self._companion.end(model, self._companion.settings.calibrate)

    def _before_evaluation(self, control: Any, model: Any) -> None:
        """Calibrate if the Trainer's own callback, which runs first, has decided to evaluate; no event is between."""
        if control.should_evaluate:
            self._companion.calibrate(model, self._companion.settings.calibrate)
