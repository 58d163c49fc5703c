"""Several backward passes add to `.grad` as one backward pass would, and not at all if one of them fails."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from batchnorm.core.torch_internals import post_accumulate_hooks


def leaves_of(roots: Iterable[Tensor]) -> list[Tensor]:
    """The tensors whose `.grad` a backward pass from `roots` adds to."""
    waiting: list[Any] = [t.grad_fn if t.grad_fn is not None else t for t in roots if t.requires_grad]
    leaves: dict[int, Tensor] = {}
    seen = set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = node if isinstance(node, Tensor) else getattr(node, "variable", None)
        if leaf is not None:
            leaves[id(leaf)] = leaf
        else:
            waiting += [following for following, _ in node.next_functions]
    return list(leaves.values())


Gradients = dict[int, Tensor]  # by the id of the leaf


@contextmanager
def as_one_backward(leaves: Iterable[Tensor], reduce: Callable[[Gradients], Gradients] | None = None) -> Iterator[None]:
    """Within a `with`, several backward passes act as one: gradients of `leaves` are added to `.grad` at the end.

    If one fails, every `.grad` is as before. Hooks of `register_post_accumulate_grad_hook` run once, at the end.
    `reduce` takes the sums of old and new gradients, and returns the gradients that are stored instead.
    """
    leaves = [leaf for leaf in leaves if leaf.requires_grad and leaf.is_leaf]
    before = [leaf.grad for leaf in leaves]
    hooks = [dict(post_accumulate_hooks(leaf)) for leaf in leaves]
    handles: list[Any] = []
    for leaf in leaves:
        leaf.grad = None
        post_accumulate_hooks(leaf).clear()
        handles.append(leaf.register_post_accumulate_grad_hook(_Owned()))
    reduced: Gradients = {}
    try:
        yield
        news = [leaf.grad for leaf in leaves]
        if reduce is not None:
            sums = {id(leaf): _sum(old, new) for leaf, old, new in zip(leaves, before, news, strict=True)}
            reduced = reduce({key: total for key, total in sums.items() if total is not None})
    finally:
        for leaf, old, own_hooks, handle in zip(leaves, before, hooks, handles, strict=True):
            handle.remove()
            leaf.grad = old
            if own_hooks:
                post_accumulate_hooks(leaf).update(own_hooks)
    for leaf, old, new, own_hooks in zip(leaves, before, news, hooks, strict=True):
        if id(leaf) in reduced:
            leaf.grad = _written(old, reduced[id(leaf)])
        elif new is not None:
            leaf.grad = _added(old, new)
        else:
            continue
        for hook in own_hooks.values():
            hook(leaf)


class _Owned:
    """A hook that copies the first gradient of a leaf, so that `.grad` shares memory with no other tensor.

    torch keeps the first gradient without a copy, and adds the second one in place. The first may be a view of a tensor
    that is still read or added to. (So torch itself is wrong for a + b, both unsqueezed, and two backward passes.)
    """

    def __init__(self) -> None:
        self.first = True

    def __call__(self, leaf: Tensor) -> None:
        if self.first and leaf.grad is not None and not leaf.grad.is_sparse:
            leaf.grad = leaf.grad.clone()
        self.first = False


@torch.no_grad()
def _sum(old: Tensor | None, new: Tensor | None) -> Tensor | None:
    return old + new if old is not None and new is not None else new if old is None else old


# Both add as torch does: in place, so that references to `.grad` see the sum; a sparse gradient becomes a new tensor.


@torch.no_grad()
def _added(old: Tensor | None, new: Tensor) -> Tensor:
    if old is None:
        return new
    return old + new if old.is_sparse or new.is_sparse else old.add_(new)


@torch.no_grad()
def _written(old: Tensor | None, new: Tensor) -> Tensor:
    return new if old is None or old is new or old.is_sparse or new.is_sparse else old.copy_(new)
