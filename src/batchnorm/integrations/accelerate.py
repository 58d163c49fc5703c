"""Windows and calibration for loops with Accelerate, which is not imported: only methods of its objects are called."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from batchnorm.integrations.loop import Settings, calibrated
from batchnorm.tools.calibrate import Calibration
from batchnorm.tools.sweep import Feed, feed_by_default
from batchnorm.training.accumulate import close_windows, forget_windows, have_windows, open_windows
from batchnorm.training.own_layers import own_layers


@contextmanager
def accumulate(accelerator: Any, *models: nn.Module) -> Iterator[None]:
    """Do ``accelerator.accumulate(*models)``, and update the running statistics once for each step of the optimizer.

    A window opens at the first micro-batch of a step and closes at the one for which `accelerator.sync_gradients`
    holds, a shorter last step included. If the block fails, its window is dropped.

    Args:
        accelerator: an `accelerate.Accelerator`.
        *models: the models that are trained, as for the method of Accelerate.

    Raises:
        ValueError: none of the models has a batch norm of ours.

    Examples:
        >>> from batchnorm.integrations.accelerate import accumulate
        >>> for x, y in loader:  # doctest: +SKIP
        ...     with accumulate(accelerator, model):
        ...         accelerator.backward(loss(model(x), y))
        ...         optimizer.step()
        ...         optimizer.zero_grad()

    Source: the merge is that of Chan, Golub & LeVeque 1983 (`Moments.merge`).
    """
    ours = [model for model in models if own_layers(model)]
    if not ours:
        raise ValueError("none of these models has a batch norm of ours: bn.convert(model) first")
    if accelerator.gradient_accumulation_steps == 1:
        with accelerator.accumulate(*models):
            yield
        return
    for model in ours:
        if not have_windows(model):
            open_windows(model)
    try:
        with accelerator.accumulate(*models):
            yield
    except BaseException:
        for model in ours:
            forget_windows(model)
        raise
    if accelerator.sync_gradients:
        for model in ours:
            close_windows(model)


def calibrate(
    accelerator: Any,
    model: nn.Module,
    batches: Any,
    *,
    exact: bool = True,
    limit: int | None = None,
    feed: Feed = feed_by_default,
) -> Calibration:
    """`bn.calibrate` of a model that `accelerator.prepare` wrapped, over all of its ranks, each with its own batches.

    Call it between two epochs or two steps: counters of batches, windows and random generators are the same afterwards
    as before.

    Args:
        accelerator: an `accelerate.Accelerator`.
        model: as `accelerator.prepare` returned it.
        batches, exact, limit, feed: as in `bn.calibrate`; each rank has its own batches.

    Raises:
        ValueError, FloatingPointError: as `bn.calibrate`.

    Examples:
        >>> from batchnorm.integrations.accelerate import calibrate
        >>> calibrate(accelerator, model, loader, limit=100)  # doctest: +SKIP

    Source: Wu & Johnson 2021 (arXiv:2105.07576), section 3, as `bn.calibrate`.
    """
    settings = Settings(exact=exact, limit=limit, feed=feed)
    return calibrated(accelerator.unwrap_model(model), batches, settings)
