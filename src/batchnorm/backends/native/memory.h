// Uninitialised CPU memory for the outputs of the kernels.
//
// Small outputs come from torch's allocator, those of 1 MiB and more from a pool of huge pages (see pool.h). A block
// comes back to the pool through the deleter of its DataPtr, when its storage dies or gets other memory. Two live
// tensors therefore never share a block by accident, whoever holds a storage.
//
// BATCHNORM_HUGE_PAGES=0 in the environment turns the pool off: all memory then comes from torch's allocator.
#pragma once

#include <ATen/core/Tensor.h>

namespace batchnorm {

// No dispatcher call and no default device: the result is an ordinary dense CPU tensor.
// torch.use_deterministic_algorithms fills it, as it fills the result of torch.empty.
at::Tensor empty_strided(c10::IntArrayRef sizes, c10::IntArrayRef strides, c10::ScalarType dtype);

// The strides are those of torch.empty_like: the same as `x` has, or dense ones in the same order of dimensions.
at::Tensor empty_like(const at::Tensor& x);

// Gives all idle memory back to the system and returns its bytes.
int64_t empty_cache();

}  // namespace batchnorm
