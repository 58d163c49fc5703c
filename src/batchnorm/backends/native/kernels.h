// What the kernels are called with. No torch here: addresses and sizes that ops.cpp has checked.
#pragma once

#include <atomic>
#include <cstdint>

#include "vector.h"

namespace batchnorm {

enum class Type : int { absent, float32, float64, bfloat16, float16 };

// A per-channel parameter or buffer in its own dtype.
struct Channels {
  void* data = nullptr;
  Type type = Type::absent;
};

// How a tensor is cut into pieces of work: a function of its shape alone, so that results do not depend on threads.
//
// Planes are (N, C, S): each channel is N runs of S values. A piece of work is a band of neighbouring channels, by a
// chunk of their blocks. Rows are (N·S, C): a channel's values lie C apart. A piece of work is a slice of the columns,
// by a chunk of the rows. Either way samples may be split into groups with statistics of their own.
struct Cut {
  bool rows, fused, parallel;  // fused: one chunk and one group, so that statistics and output are one piece of work
  int64_t N, C, S, groups, per_group, chunks, items;
  int64_t width;     // channels of a band, or columns of a slice
  int64_t pieces;    // bands or slices
  int64_t split;     // planes: blocks that a run is cut into
  int64_t span;      // planes: positions of a block
  int64_t stack;     // samples of a block, or rows of a tile: what is summed in the working precision
  int64_t together;  // runs or rows that lie side by side and are written in one go
};

Cut cut(bool rows, int64_t N, int64_t C, int64_t S, int64_t virtual_batch_size);

struct Call {
  Cut cut;
  Type type;
  Activation activation = Activation::none;
  bool by_output = false;    // `extra` is the output, in the residual's place
  bool stream = false;       // outputs are written past the cache
  bool constant = false;     // no gradient goes through the statistics
  bool mask_shared = true;   // mask: (N, S) for all channels alike, or one weight a value, laid out as x
  bool shared = true;        // one row of parameters (1, C) serves all groups
  const void* x = nullptr;
  const void* grad = nullptr;
  const void* extra = nullptr;  // the residual
  const void* mask = nullptr;   // weights in the working precision
  void* y = nullptr;            // the output, or the input's gradient
  void* dresidual = nullptr;

  // (groups or 1, C) in double: the statistics, and either scale and shift or γ and β
  double* mean = nullptr;
  double* rstd = nullptr;
  double* variance = nullptr;
  const double *scale = nullptr, *shift = nullptr;
  const double *a = nullptr, *b = nullptr, *c = nullptr;
  Channels weight, bias, dweight, dbias;
  double eps = 0;

  // Tables of partial results (chunks, groups, C), and their sums (groups, C)
  double *part_count = nullptr, *part_mean = nullptr, *part_low = nullptr, *part_m2 = nullptr;
  double *part_g = nullptr, *part_gx = nullptr;
  double *count = nullptr, *m2 = nullptr, *sum_g = nullptr, *sum_gx = nullptr;

  // The running statistics to update, if there are any
  Channels running_mean, running_var;
  double momentum = 0;
  double limit = 0;  // the largest statistic to take in, 0 for any
  std::atomic<bool> skipped{false};

  alignas(64) std::atomic<int64_t> ticket{0};  // the next piece of work
  int threads = 1;
};

// Partial moments, merged into count, mean and m2.
void moments(Call&);
// y = act((x − mean)·scale + shift + residual) by given statistics.
void normalize(Call&);
// Partial sums of g′ and g′·(x − mean), merged into sum_g and sum_gx.
void backward_reduce(Call&);
// dx = a·g′ + b·(x − mean) + c, and the residual's gradient g′.
void backward_apply(Call&);
// Moments, the update of the running statistics, statistics and output.
void forward(Call&);
// The gradients of the plain and of the frozen case; no `y`: of the parameters alone.
void backward(Call&);
// Statistics from running statistics: rstd from the variance.
void read_population(Call&);

// The number of doubles in the tables of a call.
int64_t moment_table_size(const Cut&);
int64_t sum_table_size(const Cut&);
void set_moment_tables(Call&, double* memory);
void set_sum_tables(Call&, double* memory);

}  // namespace batchnorm
