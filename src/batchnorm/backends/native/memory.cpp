#include "memory.h"

#include <ATen/Context.h>
#include <ATen/EmptyTensor.h>
#include <ATen/ExpandUtils.h>
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdlib>
#include <limits>
#include <string_view>

#include "limit.h"
#include "pages.h"
#include "pool.h"

#if defined(__linux__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace batchnorm {
namespace {

// From this size on malloc returns freed memory to the system, so that each output costs page faults again. Measured on
// (16, 64, 16, 16) in float32, 1 MiB, forward and backward: 900 µs without the pool, 370 µs with it.
constexpr std::size_t kLarge = kHugePage / 2;

std::size_t most_idle(const std::string& root) { return memory_limit(root) / 8; }

// Never destroyed: tensors can die after static destructors have run.
// Made while the library is loaded, so that no fork meets it half made.
Pool& pool = *[] {
  auto* const made = new Pool;
  made->limit_idle(most_idle(""));
  return made;
}();

#if defined(__linux__) || defined(__APPLE__)
[[maybe_unused]] const int at_fork = pthread_atfork(
    [] { pool.before_fork(); }, [] { pool.after_fork_in_parent(); }, [] { pool.after_fork_in_child(); });
#endif

bool is_wanted() {
  const char* const value = std::getenv("BATCHNORM_HUGE_PAGES");
  return kCanMapPages && (value == nullptr || std::string_view(value) != "0");
}

const bool wanted = is_wanted();

void give_back(void* data) {
  c10::profiledCPUMemoryReporter().Delete(data);
  pool.give_back(data);
}

// A storage keeps this allocator for later resizes, so it serves every size: a storage that shrinks to nothing and
// grows again between uses (FSDP) then gets a block of the pool again.
// The context of the DataPtr is the address itself, as torch demands of storages with lazy clones.
class PoolAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(std::size_t size) override {
    void* const data = size < kLarge ? nullptr : pool.take(size);
    // where the system refuses a block, torch's allocator still finds memory or raises its own error
    if (data == nullptr) return c10::GetCPUAllocator()->allocate(size);
    c10::profiledCPUMemoryReporter().New(data, size);
    return {data, data, &give_back, c10::DeviceType::CPU};
  }

  void copy_data(void* to, const void* from, std::size_t bytes) const override { default_copy_data(to, from, bytes); }
};

PoolAllocator& allocator = *new PoolAllocator;

template <typename T>
void fill(void* data, std::size_t bytes) {
  using Limits = std::numeric_limits<T>;
  std::fill_n(static_cast<T*>(data), bytes / sizeof(T), Limits::has_quiet_NaN ? Limits::quiet_NaN() : Limits::max());
}

void fill(const at::Tensor& x) {
  void* const data = x.storage().mutable_data();
  switch (x.scalar_type()) {
#define BATCHNORM_FILL(type, name) \
  case c10::ScalarType::name:      \
    return fill<type>(data, x.storage().nbytes());
    AT_FORALL_SCALAR_TYPES_AND3(Half, BFloat16, Bool, BATCHNORM_FILL)
#undef BATCHNORM_FILL
    default:
      TORCH_CHECK(false, "expected a real dtype of an output, got ", x.scalar_type());
  }
}

}  // namespace

at::Tensor empty_strided(c10::IntArrayRef sizes, c10::IntArrayRef strides, c10::ScalarType dtype) {
  const bool large = wanted && at::detail::computeStorageNbytes(sizes, strides, c10::elementSize(dtype)) >= kLarge;
  auto* const from = large ? static_cast<c10::Allocator*>(&allocator) : c10::GetCPUAllocator();
  const c10::DispatchKeySet cpu(c10::DispatchKey::CPU);
  const at::Tensor x = at::detail::empty_strided_generic(sizes, strides, from, cpu, dtype);
  const auto& context = at::globalContext();
  if (context.deterministicAlgorithms() && context.deterministicFillUninitializedMemory()) fill(x);
  return x;
}

at::Tensor empty_like(const at::Tensor& x) {
  if (x.is_non_overlapping_and_dense()) return empty_strided(x.sizes(), x.strides(), x.scalar_type());
  return empty_strided(x.sizes(), at::infer_dense_strides(x.sizes(), x.strides()), x.scalar_type());
}

int64_t empty_cache() { return static_cast<int64_t>(pool.unmap_idle()); }

}  // namespace batchnorm

// `statistics`: live and idle bytes, calls served by new and by used blocks, the limit of idle bytes.
// `set_cgroup_root` and `empty_like` are for tests.
TORCH_LIBRARY_FRAGMENT(batchnorm_memory, m) {
  using namespace batchnorm;
  m.def("empty_cache() -> int", &empty_cache);
  m.def("statistics() -> int[]", [] {
    const Statistics s = pool.statistics();
    const auto number = [](auto n) { return static_cast<int64_t>(std::min<uint64_t>(n, INT64_MAX)); };
    return std::vector<int64_t>{number(s.live), number(s.idle), number(s.mapped), number(s.hits), number(s.idle_limit)};
  });
  m.def("set_cgroup_root(str root) -> ()", [](const std::string& root) { pool.limit_idle(most_idle(root)); });
  m.def("empty_like(Tensor x) -> Tensor", &empty_like);
}
