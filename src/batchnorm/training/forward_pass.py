"""One forward pass under `recompute`: recipes of outputs, and the objects that autograd saves in place of tensors."""

import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.weak import TensorWeakRef

from batchnorm.core.torch_internals import past_function_modes, saved_tensors_hooks_on_top, version
from batchnorm.training.saved_tensors import Kept, OuterHooks, Recipe, Saved, Source, View, geometry, unpack

SAVED_BY_A_NORM = 5  # tensors at most: input, output or residual, weight, bias, statistics


class Output(NamedTuple):
    """A tensor with a recipe, which is valid while the tensor lives and is not written to."""

    tensor: TensorWeakRef
    removal: "weakref.ref[Tensor]"
    dtype: torch.dtype
    geometry: tuple[object, ...]
    version: int
    recipe: Recipe

    def source_of(self, tensor: Tensor, address: int) -> Source | None:
        """The recipe of a tensor at the same address; None if it holds other values."""
        own = self.tensor()
        if own is not tensor:
            if own is None or _address(own) != address or tensor.dtype != self.dtype:
                return None
            if version(tensor) == self.version == version(own):
                return self.recipe if geometry(tensor) == self.geometry else View(self.recipe, tensor)
            return None
        return self.recipe if version(tensor) == self.version and _address(tensor) == address else None


class ForwardPass:
    """Hands autograd a recipe for each saved tensor that has one.

    Tensors are found by their storage, so views, reshapes and detached aliases of an output count as well. A recipe is
    left out if it would compute more than `links` outputs of residual blocks, one after the other.
    """

    def __init__(self, links: int) -> None:
        self.links = links
        self._outputs: dict[int, Output] = {}  # by the address of their memory; so is `_kept`
        self._kept: weakref.WeakValueDictionary[int, Kept] = weakref.WeakValueDictionary()
        self._latest: deque[tuple[Tensor, Saved]] = deque()
        before = saved_tensors_hooks_on_top()
        self._outer = None if before is None else OuterHooks(*before)
        self._hooks: torch.autograd.graph.saved_tensors_hooks | None
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, unpack)
        self._hooks.__enter__()

    def close(self) -> None:
        """Remove the hooks. The graph keeps the recipes it needs."""
        if self._hooks is not None and self.on_top():
            self._hooks.__exit__()
        self._hooks = None
        self._outputs.clear()
        self._forget_all_but(0)

    def on_top(self) -> bool:
        """True if autograd passes tensors to these hooks now; inside an activation checkpoint it does not."""
        top = saved_tensors_hooks_on_top()
        return top is not None and self._hooks is not None and top[0] is self._hooks.pack_hook

    def record(
        self,
        output: Tensor,
        compute: Callable[..., Tensor],
        inputs: Sequence[Tensor | None],
        residual: Tensor | None = None,
        keeps_residual: bool = False,
        differentiated: bool | None = None,
    ) -> None:
        """Store the recipe of an output: it equals ``compute(*inputs)``.

        `residual` is also among the inputs. `keeps_residual` and `differentiated` describe the output's autograd node,
        if it does not exist yet.
        """
        with past_function_modes():
            if not self.awaits(output, inputs, differentiated):
                return
            if residual is not None and not (keeps_residual or self.holds(residual)):
                return
            sources = [None if t is None else self.source(t) for t in inputs]
            self.keep_recipe(output, compute, sources, residual is not None)

    def awaits(self, output: Tensor, inputs: Sequence[Tensor | None] = (), differentiated: bool | None = None) -> bool:
        """True if a recipe for this output would be used; it would not for a view of a larger tensor, for example."""
        differentiated = output.requires_grad if differentiated is None else differentiated
        if not differentiated or not self.on_top() or not all(t is None or _address(t) for t in (output, *inputs)):
            return False
        return output.untyped_storage().nbytes() == output.numel() * output.element_size()

    def keep_recipe(
        self, output: Tensor, compute: Callable[..., Tensor], sources: Sequence[Source | None], is_block: bool = False
    ) -> None:
        """Store the recipe of an output, unless it needs more than `links` outputs of blocks."""
        links = max((s.links for s in sources if s is not None), default=0) + is_block
        if links <= self.links:
            recipe, outputs, address = Recipe(compute, sources, links), self._outputs, _address(output)
            removal = weakref.ref(output, lambda _: outputs.pop(address, None))  # to free its inputs too
            facts = output.dtype, geometry(output), version(output)
            outputs[address] = Output(TensorWeakRef(output), removal, *facts, recipe)
            for tensor, saved in self._latest:  # the output's own node saved it before the recipe existed
                if tensor is output:
                    saved.replace(recipe)
        self._forget_all_but(0)

    def computes(self, tensor: Tensor) -> bool:
        """True if the tensor has a recipe."""
        output = self._outputs.get(_address(tensor))
        return output is not None and output.source_of(tensor, _address(tensor)) is not None

    def holds(self, tensor: Tensor) -> bool:
        """True if the tensor is in memory anyway, or has a recipe."""
        kept = self._kept.get(_address(tensor))
        return type(tensor) is nn.Parameter or (kept is not None and kept.covers(tensor)) or self.computes(tensor)

    def _pack(self, tensor: Tensor) -> Saved:
        if self._outer is None and type(tensor) is nn.Parameter:  # in memory anyway
            return Saved(Kept(tensor))
        with past_function_modes():
            saved = Saved(source := self._find(tensor))
            source.add_reader()
            if isinstance(source, Kept):
                self._latest.append((tensor, saved))
                self._forget_all_but(SAVED_BY_A_NORM)
            return saved

    def source(self, tensor: Tensor) -> Source:
        """The recipe of a tensor that is an input of another recipe, or the tensor itself."""
        source = self._find(tensor)
        self._hand_over(tensor, source)
        return source

    def _find(self, tensor: Tensor) -> Source:
        for latest, saved in self._latest:
            if latest is tensor and isinstance(saved.source, Kept) and saved.source.covers(tensor):
                return saved.source
        address = _address(tensor)
        output = self._outputs.get(address)
        if output is not None and (source := output.source_of(tensor, address)) is not None:
            return source
        if self._outer is not None:  # the user's hooks may copy: give them a tensor only once
            kept = self._kept.get(address)
            if kept is not None and kept.is_all_of(tensor):
                return kept
        kept = Kept(tensor)
        if address:
            self._kept[address] = kept
        return kept

    def _forget_all_but(self, n: int) -> None:
        """Stop waiting for recipes of all but the last saved tensors; the user's hooks get these tensors now."""
        while len(self._latest) > n:
            tensor, saved = self._latest.popleft()
            self._hand_over(tensor, saved.source)

    def _hand_over(self, tensor: Tensor, source: Source) -> None:
        if self._outer is not None and isinstance(source, Kept) and source.outer is None:
            source.hand_over(tensor, self._outer)


def _address(tensor: Tensor) -> int:
    """The address of the tensor's memory; 0 if it has none."""
    if type(tensor) not in PLAIN or tensor.layout is not torch.strided or tensor.is_nested:
        return 0
    return tensor.untyped_storage().data_ptr()


PLAIN = (Tensor, nn.Parameter)
