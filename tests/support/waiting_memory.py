"""The number of tensors of an activation's size in memory while the micro-batches of `big_batch` wait for one another.

`python -m tests.support.waiting_memory FOLDER` prints, for each direction, the largest number without offload and with
it. It runs in a separate process, because tensors that other tests have left would be counted too.
"""

import gc
import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

import batchnorm as bn
from batchnorm.training import crew, parking
from tests.support.big_batch_networks import classes, resnet

ACTIVATION = 4 * 6 * 32 * 32 * 4  # the bytes of a micro-batch of the first layers


def largest(offload: Path | None) -> dict[str, int]:
    """Direction → the largest number of activations in memory when all micro-batches had met."""
    model = bn.convert(resnet().model.float())
    most: dict[str, int] = {}
    meet = crew.combined

    def combined(meetings: Any) -> Any:
        tensors = filter(lambda o: issubclass(type(o), torch.Tensor), gc.get_objects())  # dead proxies have no class
        sizes = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
        count = sum(size == ACTIVATION for size in sizes.values())
        most[meetings[0].where] = max(count, most.get(meetings[0].where, 0))
        return meet(meetings)

    crew.combined = combined
    try:
        x = torch.randn(24, 3, 32, 32)
        bn.big_batch(model, F.cross_entropy, x, classes(24), micro_batch_size=4, offload=offload)
    finally:
        crew.combined = meet
    return most


if __name__ == "__main__":
    parking.SMALLEST = 1  # everything is worth moving
    print(json.dumps([largest(None), largest(Path(sys.argv[1]))]))
