"""The micro-batches of one big batch, each in a thread that waits at every batch norm for the others."""

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from batchnorm.core.sharing import exchanging
from batchnorm.core.torch_internals import (
    TreeSpec,
    keystr,
    tree_flatten,
    tree_flatten_with_path,
    tree_leaves,
    tree_unflatten,
)
from batchnorm.training.baton import Coroutine, Ended
from batchnorm.training.exchange import Meeting, MicroBatchExchange, combined
from batchnorm.training.micro_batches import MicroBatch, joined
from batchnorm.training.parking import Parked, Parking
from batchnorm.training.thread_state import ThreadState


class Outputs(NamedTuple):
    """The message of a micro-batch after its forward pass: it waits for the gradients of its outputs."""

    leaves: list[Any]
    spec: TreeSpec

    @property
    def place(self) -> str:
        """For errors."""
        return "at the end of its forward pass"


class Crew:
    """Runs the micro-batches in turns: each round takes every micro-batch from one batch norm to the next.

    Each thread runs the whole forward and backward pass of its micro-batch, so every node of its graph runs once. Only
    the sums of the batch norms are exchanged between threads.
    """

    def __init__(self, model: nn.Module, batches: Iterable[MicroBatch], parking: Parking | None) -> None:
        self.model, self.state, self.parking = model, ThreadState(), parking
        self.coroutines: list[Coroutine] = []
        self.batches: list[MicroBatch] = []
        self._parked: list[Parked] = []  # by micro-batch; empty without `parking`
        self._waiting = iter(batches)
        self._outputs: list[Outputs] = []

    def __enter__(self) -> "Crew":
        return self

    def __exit__(self, *_: object) -> None:
        for coroutine in self.coroutines:
            coroutine.abandon()
        for coroutine in self.coroutines:
            coroutine.join()

    def forward(self) -> Iterator[None]:
        """Run the forward passes, one round at a time."""
        messages = []
        for number, (batch, last) in enumerate(_with_last(self._waiting)):
            self.batches.append(batch)
            parked = None if self.parking is None else self._park(batch)
            work = _Work(self, batch, number, parked, alone=last and number == 0)
            self.coroutines.append(Coroutine(work, f"micro-batch {number}"))
            messages.append(self._resume(number, None))
        if not messages:
            raise ValueError("expected at least one micro-batch from the iterable, got none")
        self._outputs = yield from self._until(Outputs, messages)

    def outputs(self) -> Any:
        """The nested outputs of the whole batch, detached from the graphs of the micro-batches."""
        parts = [tree_unflatten([_apart(leaf) for leaf in found.leaves], found.spec) for found in self._outputs]
        whole = joined(parts, "the model's outputs")
        for number, leaf in enumerate(tree_flatten(whole)[0]):
            if isinstance(leaf, Tensor) and any(found.leaves[number].requires_grad for found in self._outputs):
                leaf.requires_grad_()
        return whole

    def roots(self) -> list[Tensor]:
        """The tensors that backward passes start from: the outputs, and the inputs that require a gradient."""
        outputs = [leaf for found in self._outputs for leaf in found.leaves if isinstance(leaf, Tensor)]
        return outputs + [source for batch in self.batches for source in batch.sources]

    def backward(self, outputs: Any) -> Iterator[None]:
        """Run the backward passes from the gradients of `outputs`, one round at a time."""
        samples = [batch.samples for batch in self.batches]
        whole = [leaf.grad if isinstance(leaf, Tensor) else None for leaf in tree_flatten(outputs)[0]]
        split = [[None] * len(samples) if grad is None else grad.split(samples) for grad in whole]
        self._outputs = []
        messages = [self._resume(n, list(grads)) for n, grads in enumerate(zip(*split, strict=True))]
        yield from self._until(Ended, messages)
        leaves = [pair for batch in self.batches for pair in zip(batch.sources, batch.leaves, strict=True)]
        _backward([(source, leaf.grad) for source, leaf in leaves])  # the caller's own graph, in one pass

    def _until(self, end: type, messages: list[Any]) -> Generator[None, None, list[Any]]:
        """Run rounds until all micro-batches have sent an `end`; returns these messages."""
        while not all(isinstance(message, end) for message in messages):
            answer = combined(_together(messages))
            yield
            messages = [self._resume(number, answer) for number in range(len(self.coroutines))]
        return messages

    def _park(self, batch: MicroBatch) -> Parked:
        assert self.parking is not None
        self.parking.share(t for t in tree_leaves((batch.args, batch.keywords)) if isinstance(t, Tensor))
        self._parked.append(Parked(self.parking))
        return self._parked[-1]

    def _resume(self, number: int, answer: Any) -> Any:
        if self._parked:
            self._parked[(number + 1) % len(self._parked)].fetch()
        try:
            return self.coroutines[number].resume(answer)
        except Exception as error:
            error.add_note(f"in micro-batch {number} of bn.big_batch")
            raise


class _Work:
    """The forward and the backward pass of a micro-batch, called in its thread; `alone` if there is only one."""

    def __init__(self, crew: Crew, batch: MicroBatch, number: int, parked: Parked | None, alone: bool) -> None:
        self.crew, self.batch, self.number, self.parked, self.alone = crew, batch, number, parked, alone

    def __call__(self, coroutine: Coroutine) -> None:
        self.crew.state.run(lambda: self._run(coroutine))

    def _run(self, coroutine: Coroutine) -> None:
        with ExitStack() as stack:
            if not self.alone:
                stack.enter_context(exchanging(MicroBatchExchange(coroutine, self.number, self.parked)))
            if self.parked is not None:
                stack.enter_context(self.parked.watching(self.crew.state.hooks))
            with self.crew.state.autocasting():
                leaves, spec = self._outputs()
            gradients = coroutine.wait(Outputs(leaves, spec))
            pairs = list(zip(leaves, gradients, strict=True))
            del leaves, gradients
            _backward(pairs)

    def _outputs(self) -> tuple[list[Any], TreeSpec]:
        outputs = self.crew.model(*self.batch.args, **self.batch.keywords)
        paths, spec = tree_flatten_with_path(outputs)
        for path, leaf in paths:
            if isinstance(leaf, Tensor) and (leaf.dim() == 0 or len(leaf) != self.batch.samples):
                raise ValueError(
                    f"expected the model's output{keystr(path)} to have the {self.batch.samples} samples of its "
                    f"micro-batch along dimension 0, got shape {tuple(leaf.shape)}; compute values of no "
                    "single sample, such as an average, in loss_fn, which gets the whole batch"
                )
        if not any(isinstance(leaf, Tensor) for _, leaf in paths):
            raise ValueError(f"expected the model to return tensors, got {type(outputs).__name__}")
        return [leaf for _, leaf in paths], spec


def _with_last(batches: Iterator[MicroBatch]) -> Iterator[tuple[MicroBatch, bool]]:
    """Each item, and True for the last one."""
    for batch in batches:
        for following in batches:
            yield batch, False
            batch = following
        yield batch, True


def _backward(pairs: list[tuple[Any, Any]]) -> None:
    """Run a backward pass from the tensors that have a gradient."""
    wanted = [(t, grad) for t, grad in pairs if grad is not None and t.requires_grad]
    pairs.clear()
    if wanted:
        roots, gradients = zip(*wanted, strict=True)
        torch.autograd.backward(roots, gradients)


def _apart(leaf: Any) -> Any:
    return leaf.detach() if isinstance(leaf, Tensor) else leaf


def _together(messages: Sequence[Any]) -> Sequence[Meeting]:
    """Return the messages if all micro-batches are at the same batch norm.

    Raises:
        RuntimeError: they are at different ones.
    """
    first = messages[0]
    for number, message in enumerate(messages):
        if _place(message) != _place(first):
            raise RuntimeError(
                f"micro-batch 0 is {_place(first)}, and micro-batch {number} is {_place(message)}. In bn.big_batch all "
                "micro-batches must call the same batch norms in the same order: a model whose calls depend on the "
                "data or on the number of samples can be run as one batch only"
            )
    return messages


def _place(message: Any) -> str:
    return "at the end of its backward pass" if isinstance(message, Ended) else message.place
