// The CPU kernels: how a tensor is cut, threads, and what happens between the passes over memory.

#include "kernels.h"

#include <algorithm>
#include <cmath>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

#include "planes.h"
#include "rows.h"

extern "C" void GOMP_parallel(void (*)(void*), void*, unsigned, unsigned) __attribute__((weak));

namespace batchnorm {

namespace {

constexpr int64_t kBlock = 1024;      // values of a channel summed in the working precision: 4 KiB of float in L1
constexpr int64_t kPiece = 64;        // blocks of a run are multiples of so many values, whole cache lines in any dtype
constexpr int64_t kRun = 512;         // a run of so many values is a block of its own
constexpr int64_t kStack = 32;        // runs summed in the working precision: short ones fill few lanes of a register
constexpr int64_t kStretch = 16384;   // values of neighbouring channels that are read in one go: 16 pages of float
constexpr int64_t kCached = 262144;   // values of a band, to be read a second time
constexpr int64_t kBands = 16;        // bands to keep for threads to share
constexpr int64_t kItem = 16384;      // values that make a piece of work worth handing to a thread
constexpr int64_t kItems = 64;        // pieces that keep the threads of a large machine busy
constexpr int64_t kTile = 32;         // rows summed in the working precision
constexpr int64_t kRows = 64;         // rows in a piece of work, which begins by reading each column's parameters
constexpr int64_t kSerial = 32768;    // below so many values one thread is done before a second has started

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

Cut cut(bool rows, int64_t N, int64_t C, int64_t S, int64_t virtual_batch_size) {
  Cut cut{};
  cut.rows = rows;
  cut.N = N, cut.C = C, cut.S = S;
  cut.parallel = N * C * S >= kSerial;
  cut.per_group = virtual_batch_size > 0 ? std::min(virtual_batch_size, N) : N;
  cut.groups = ceil_div(N, cut.per_group);
  const int64_t values = cut.per_group * S;  // of a channel
  if (rows) {
    cut.pieces = ceil_div(C, kSlice);
    cut.width = ceil_div(C, cut.pieces);
    const int64_t most = kItems / std::max<int64_t>(cut.groups * cut.pieces, 1);
    cut.chunks = std::max<int64_t>(std::min({values * std::min(C, kSlice) / kItem, values / kRows, most}), 1);
    cut.stack = kTile;
    cut.split = cut.span = 1;
    cut.together = cut.pieces == 1 ? std::max<int64_t>(kBlock / C, 1) : 1;
  } else {
    cut.span = S <= kBlock ? S : ceil_div(S, ceil_div(S, kBlock) * kPiece) * kPiece;
    cut.split = ceil_div(S, cut.span);
    cut.stack = S < kRun ? std::min(std::max<int64_t>(kBlock / S, 1), kStack) : 1;
    const int64_t share = cut.parallel ? C / kBands : C;  // threads need bands to share
    const int64_t band = std::min({kStretch / S, kCached / values, share, kBand});
    cut.width = std::max<int64_t>(band, 1);
    cut.pieces = ceil_div(C, cut.width);
    const int64_t chunks = cut.groups * C >= kBands ? 1 : std::min(kItems / (cut.groups * C), values / kItem);
    cut.chunks = std::max<int64_t>(chunks, 1);
    cut.together = std::max<int64_t>(kBlock / S, 1);
  }
  cut.items = cut.groups * cut.pieces * cut.chunks;
  cut.fused = cut.groups == 1 && cut.chunks == 1;
  return cut;
}

int64_t moment_table_size(const Cut& cut) { return 4 * cut.chunks * cut.groups * cut.C; }
int64_t sum_table_size(const Cut& cut) { return 2 * cut.chunks * cut.groups * cut.C; }

void set_moment_tables(Call& call, double* memory) {
  const int64_t each = moment_table_size(call.cut) / 4;
  call.part_count = memory;
  call.part_mean = memory + each;
  call.part_low = memory + 2 * each;
  call.part_m2 = memory + 3 * each;
}

void set_sum_tables(Call& call, double* memory) {
  call.part_g = memory;
  call.part_gx = memory + sum_table_size(call.cut) / 2;
}

// ---- channels

namespace {

// Updates the running statistics by the batch, with the unbiased variance.
void update_statistics(Call& call, int64_t c0, int64_t width, const double* count, const double* mean,
                       const double* m2) {
  double old_mean[kSlice], old_variance[kSlice];
  read_channels(call.running_mean, c0, width, 0, old_mean);
  read_channels(call.running_var, c0, width, 0, old_variance);
  const double momentum = call.momentum, limit = call.limit;
  int64_t skipped = 0;
  for (int64_t j = 0; j < width; ++j) {
    const double variance = m2[j] / (count[j] - 1);
    const bool known = count[j] > 1;
    const bool fits = (limit == 0) | ((std::abs(mean[j]) <= limit) & (variance <= limit));  // NaN does not
    const double to_mean = old_mean[j] + momentum * (mean[j] - old_mean[j]);
    const double to_variance = old_variance[j] + momentum * (variance - old_variance[j]);
    old_mean[j] = known & fits ? to_mean : old_mean[j];
    old_variance[j] = known & fits ? to_variance : old_variance[j];
    skipped += known & !fits;
  }
  write_channels(call.running_mean, c0, width, old_mean);
  write_channels(call.running_var, c0, width, old_variance);
  if (skipped) call.skipped.store(true, std::memory_order_relaxed);
}

// Calls f(first channel, how many) for slices of all channels, whose doubles fit on the stack.
template <class F>
void each_slice(int64_t channels, F f) {
  for (int64_t c0 = 0; c0 < channels; c0 += kSlice) f(c0, std::min(kSlice, channels - c0));
}

// Moments of each group from those of its chunks, in order.
void merge_moments(Call& call) {
  const int64_t columns = call.cut.groups * call.cut.C;
  each_slice(columns, [&](int64_t c0, int64_t width) {
    double low[kSlice] = {};
    double *const count = call.count + c0, *const mean = call.mean + c0, *const m2 = call.m2 + c0;
    for (double* const to : {count, mean, m2}) std::fill_n(to, width, 0.0);
    for (int64_t k = 0; k < call.cut.chunks; ++k) {
      const int64_t part = k * columns + c0;
      each_vector<double>(width, [&](int64_t j, auto lanes, int) __attribute__((always_inline)) {
        Doubles n = load(count + j, lanes), middle = load(mean + j, lanes), rest = load(low + j, lanes);
        Doubles squares = load(m2 + j, lanes);
        absorb(n, middle, rest, squares, load(call.part_count + part + j, lanes), load(call.part_mean + part + j, lanes),
               load(call.part_low + part + j, lanes), load(call.part_m2 + part + j, lanes));
        store(count + j, n, lanes), store(mean + j, middle, lanes), store(low + j, rest, lanes);
        store(m2 + j, squares, lanes);
      });
    }
    for (int64_t j = 0; j < width; ++j) mean[j] += low[j];
  });
}

// Gradient sums of each group from those of its chunks, in order.
void merge_sums(Call& call) {
  const int64_t columns = call.cut.groups * call.cut.C;
  std::fill_n(call.sum_g, columns, 0.0);
  std::fill_n(call.sum_gx, columns, 0.0);
  for (int64_t k = 0; k < call.cut.chunks; ++k) {
    for (int64_t i = 0; i < columns; ++i) {
      call.sum_g[i] += call.part_g[k * columns + i];
      call.sum_gx[i] += call.part_gx[k * columns + i];
    }
  }
}

}  // namespace

void finish_channels(
    Call& call, int64_t c0, int64_t width, const double* count, const double* mean, const double* m2) {
  for (int64_t j = 0; j < width; ++j) {
    const double variance = m2[j] / count[j];
    call.mean[c0 + j] = mean[j];
    call.variance[c0 + j] = variance;
    call.rstd[c0 + j] = 1 / std::sqrt(variance + call.eps);
  }
  if (call.running_mean.type != Type::absent) update_statistics(call, c0, width, count, mean, m2);
}

template <class R>
void read_normalizer(const Call& call, int64_t group, int64_t c0, int64_t width, R* hi, R* scale, R* shift) {
  double by[kSlice], plus[kSlice];
  const int64_t at = (call.shared ? 0 : group * call.cut.C) + c0;
  if (call.scale) {
    std::copy_n(call.scale + at, width, by);
    std::copy_n(call.shift + at, width, plus);
  } else {
    read_channels(call.weight, c0, width, 1, by);
    read_channels(call.bias, c0, width, 0, plus);
    for (int64_t j = 0; j < width; ++j) by[j] *= call.rstd[at + j];
  }
  for (int64_t j = 0; j < width; ++j) {
    const double mean = call.mean[at + j];
    hi[j] = static_cast<R>(mean);
    scale[j] = static_cast<R>(by[j]);
    shift[j] = static_cast<R>(plus[j] - (mean - hi[j]) * by[j]);
  }
}

template <class R>
void read_gradient(const Call& call, int64_t group, int64_t c0, int64_t width, R* slope, R* along, R* constant) {
  double a[kSlice], b[kSlice], c[kSlice];
  const int64_t at = (call.shared ? 0 : group * call.cut.C) + c0;
  if (call.a) {
    std::copy_n(call.a + at, width, a);
    std::copy_n(call.b + at, width, b);
    std::copy_n(call.c + at, width, c);
  } else {
    read_channels(call.weight, c0, width, 1, a);
    const double share = call.constant ? 0 : 1 / static_cast<double>(call.cut.N * call.cut.S);
    for (int64_t j = 0; j < width; ++j) {
      const double rstd = call.rstd[at + j];
      a[j] *= rstd;
      // where the statistics are constants, sums that are not finite have no part in the gradient
      b[j] = share > 0 ? -a[j] * rstd * rstd * (call.sum_gx[at + j] * share) : 0;
      c[j] = share > 0 ? -a[j] * (call.sum_g[at + j] * share) : 0;
    }
  }
  for (int64_t j = 0; j < width; ++j) {
    const double mean = call.mean[at + j];
    slope[j] = static_cast<R>(a[j]);
    along[j] = static_cast<R>(b[j]);
    constant[j] = static_cast<R>(c[j] - b[j] * (mean - static_cast<R>(mean)));
  }
}

template <class R>
void finish_sums(const Call& call, int64_t group, int64_t c0, int64_t width, const double* sum_g, double* sum_gx) {
  const double* mean = call.mean + (call.shared ? 0 : group * call.cut.C) + c0;
  for (int64_t j = 0; j < width; ++j) sum_gx[j] -= (mean[j] - static_cast<R>(mean[j])) * sum_g[j];
}

void write_affine_gradients(const Call& call, int64_t c0, int64_t width) {
  double by_weight[kSlice];
  for (int64_t j = 0; j < width; ++j) by_weight[j] = call.sum_gx[c0 + j] * call.rstd[c0 + j];
  write_channels(call.dweight, c0, width, by_weight);
  write_channels(call.dbias, c0, width, call.sum_g + c0);
}

template void read_normalizer(const Call&, int64_t, int64_t, int64_t, float*, float*, float*);
template void read_normalizer(const Call&, int64_t, int64_t, int64_t, double*, double*, double*);
template void read_gradient(const Call&, int64_t, int64_t, int64_t, float*, float*, float*);
template void read_gradient(const Call&, int64_t, int64_t, int64_t, double*, double*, double*);
template void finish_sums<float>(const Call&, int64_t, int64_t, int64_t, const double*, double*);
template void finish_sums<double>(const Call&, int64_t, int64_t, int64_t, const double*, double*);

// ---- running a kernel

namespace {

using Kernel = void (*)(Call&);

// A forked child has its parent's record of a team of threads, but not the threads: it would wait for them for ever.
std::atomic<bool> forked{false};
#if defined(__unix__) || defined(__APPLE__)
[[maybe_unused]] const int at_fork = pthread_atfork(nullptr, nullptr, [] { forked.store(true); });
#endif

struct Team {
  Kernel kernel;
  Call* call;
};

void run(Call& call, Kernel kernel) {
  call.ticket.store(0, std::memory_order_relaxed);
  const int64_t threads = call.cut.parallel ? std::min<int64_t>(call.threads, call.cut.items) : 1;
  if (threads <= 1 || GOMP_parallel == nullptr || forked.load(std::memory_order_relaxed)) {
    kernel(call);
    return;
  }
  // torch's own team: a second one would leave both waiting for the other's spinning threads
  Team team{kernel, &call};
  GOMP_parallel(
      [](void* argument) {
        auto* team = static_cast<Team*>(argument);
        team->kernel(*team->call);
      },
      &team, static_cast<unsigned>(threads), 0);
}


// The kernel of this name for the call's dtype, layout and mask.
#define KERNEL(call, name) \
  pick(call, [](auto kernels) -> Kernel { return &decltype(kernels)::name; })

template <class F>
Kernel pick(const Call& call, F kernel) {
  Kernel found = nullptr;
  with_type(call.type, [&](auto t) {
    using T = decltype(t);
    if (call.cut.rows) {
      using rows::Mask;
      found = call.mask == nullptr ? kernel(rows::Kernels<T, Mask::none>{})
              : call.mask_shared   ? kernel(rows::Kernels<T, Mask::row>{})
                                   : kernel(rows::Kernels<T, Mask::value>{});
    } else {
      found = call.mask ? kernel(planes::Kernels<T, true>{}) : kernel(planes::Kernels<T, false>{});
    }
  });
  return found;
}

template <class F>
Kernel pick_unmasked(const Call& call, F kernel) {
  Kernel found = nullptr;
  with_type(call.type, [&](auto t) {
    using T = decltype(t);
    found = call.cut.rows ? kernel(rows::Kernels<T, rows::Mask::none>{}) : kernel(planes::Kernels<T, false>{});
  });
  return found;
}

#define UNMASKED(call, name) \
  pick_unmasked(call, [](auto kernels) -> Kernel { return &decltype(kernels)::name; })

}  // namespace

void moments(Call& call) {
  run(call, KERNEL(call, moments));
  merge_moments(call);
}

void normalize(Call& call) { run(call, KERNEL(call, normalize)); }

void backward_reduce(Call& call) {
  run(call, KERNEL(call, reduce));
  merge_sums(call);
}

void backward_apply(Call& call) { run(call, KERNEL(call, apply)); }

void forward(Call& call) {
  if (call.cut.fused) {
    run(call, UNMASKED(call, forward));
    return;
  }
  run(call, UNMASKED(call, moments));
  merge_moments(call);
  each_slice(call.cut.C, [&](int64_t c0, int64_t width) {
    finish_channels(call, c0, width, call.count + c0, call.mean + c0, call.m2 + c0);
  });
  run(call, UNMASKED(call, normalize));
}

void backward(Call& call) {
  if (call.cut.fused) {
    run(call, UNMASKED(call, backward));
    return;
  }
  run(call, UNMASKED(call, reduce));
  merge_sums(call);
  each_slice(call.cut.C, [&](int64_t c0, int64_t width) { write_affine_gradients(call, c0, width); });
  if (call.y) run(call, UNMASKED(call, apply));
}

void read_population(Call& call) {
  each_slice(call.cut.C, [&](int64_t c0, int64_t width) {
    read_channels(call.running_mean, c0, width, 0, call.mean + c0);
    read_channels(call.running_var, c0, width, 1, call.variance + c0);
    for (int64_t c = c0; c < c0 + width; ++c) call.rstd[c] = 1 / std::sqrt(call.variance[c] + call.eps);
  });
}

}  // namespace batchnorm
