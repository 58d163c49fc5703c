// Kernels for rows (N·S, C): 2-D input and channels_last, where a channel's values lie C apart.
//
// Loops run along a row, so each column of a slice has its own running sums. Rows are read one after another: four at a
// time would touch the sums less often, but the processor then no longer sees one stretch of memory to fetch ahead.
#pragma once

#include "span.h"

namespace batchnorm::rows {

struct Item {
  int64_t group, chunk, c0, width;
  int64_t first_row, last_row;
};

INLINE Item item(const Cut& cut, int64_t i) {
  const int64_t chunk = i / (cut.groups * cut.pieces), rest = i % (cut.groups * cut.pieces);
  const int64_t group = rest / cut.pieces, c0 = rest % cut.pieces * cut.width;
  const int64_t first = group * cut.per_group * cut.S;
  const int64_t rows = std::min(cut.per_group, cut.N - group * cut.per_group) * cut.S;
  return {group, chunk, c0, std::min(cut.width, cut.C - c0), first + rows * chunk / cut.chunks,
          first + rows * (chunk + 1) / cut.chunks};
}

// A mask has a weight for each row, or for each value.
enum class Mask { none, row, value };

template <class R, Mask kind>
INLINE auto mask_of(const Call& call, int64_t row, int64_t c0) {
  const auto* weights = static_cast<const R*>(call.mask);
  if constexpr (kind == Mask::row) {
    return Same<R>(weights[row]);
  } else if constexpr (kind == Mask::value) {
    return Each<R>{weights + row * call.cut.C + c0};
  } else {
    return Unmasked{};
  }
}

template <class R, class L>
INLINE void add_to(R* sums, int64_t i, vector<R> v, L lanes) {
  store(sums + i, load(sums + i, lanes) + v, lanes);
}

// ---- moments

// A tile's sums about a centre, for each column of a slice.
template <class R>
struct Tile {
  alignas(64) R centre[kSlice];
  alignas(64) R weights[kSlice];
  alignas(64) R off[kSlice];
  alignas(64) R squares[kSlice];
  alignas(64) R state[kSlice];  // 0: the column has no centre yet, 1: it is being found in this tile, 2: it has one
};

// Columns without a centre get the mean of the tile's first values that count.
template <class T, Mask kind>
void find_centres(const Call& call, const Item& item, int64_t r0, int64_t r1, Tile<real<T>>& tile) {
  using R = real<T>;
  using V = vector<R>;
  const auto* x = static_cast<const T*>(call.x);
  std::fill_n(tile.off, item.width, R(0));
  std::fill_n(tile.weights, item.width, R(0));
  const int64_t last = kind == Mask::none ? std::min(r1, r0 + kFirstRows) : r1;
  for (int64_t r = r0; r < last; ++r) {
    const auto mask = mask_of<R, kind>(call, r, item.c0);
    const T* row = x + r * call.cut.C + item.c0;
    each_vector<R>(item.width, [&](int64_t i, auto lanes, int) __attribute__((always_inline)) {
      const V v = load(row + i, lanes);
      V state = load(tile.state + i, lanes), centre = load(tile.centre + i, lanes);
      V use = V{} + R(1);
      if constexpr (kind != Mask::none) use = mask.at(i, lanes) > V{} ? use : V{};
      const V begins = state == V{} ? use : V{};
      centre = begins > V{} ? v : centre;
      state += begins;
      use = state == V{} + R(1) ? use : V{};
      store(tile.centre + i, centre, lanes);
      store(tile.state + i, state, lanes);
      add_to(tile.off, i, use > V{} ? v - centre : V{}, lanes);
      add_to(tile.weights, i, use, lanes);
    });
  }
  for (int64_t j = 0; j < item.width; ++j) {
    if (tile.state[j] == 1) tile.centre[j] += tile.off[j] / tile.weights[j];
  }
}

// Of few columns the sums stay in registers.
template <int N, class T>
INLINE void sums_in_registers(const T* x, int64_t stride, int64_t r0, int64_t r1, Tile<real<T>>& tile) {
  using R = real<T>;
  constexpr all_lanes<R> whole{};
  vector<R> centre[N], off[N] = {}, squares[N] = {};
  for (int k = 0; k < N; ++k) centre[k] = load(tile.centre + k * lanes<R>, whole);
  for (int64_t r = r0; r < r1; ++r) {
    for (int k = 0; k < N; ++k) {
      const vector<R> d = load(x + r * stride + k * lanes<R>, whole) - centre[k];
      off[k] += d;
      squares[k] += d * d;
    }
  }
  for (int k = 0; k < N; ++k) {
    store(tile.off + k * lanes<R>, off[k], whole);
    store(tile.squares + k * lanes<R>, squares[k], whole);
  }
}

template <class T>
void narrow_sums(const T* x, int64_t stride, int64_t r0, int64_t r1, int64_t vectors, Tile<real<T>>& tile) {
  switch (vectors) {
    case 1:
      return sums_in_registers<1>(x, stride, r0, r1, tile);
    case 2:
      return sums_in_registers<2>(x, stride, r0, r1, tile);
    case 3:
      return sums_in_registers<3>(x, stride, r0, r1, tile);
    default:
      return sums_in_registers<4>(x, stride, r0, r1, tile);
  }
}

template <class T, Mask kind>
void tile_sums(const Call& call, const Item& item, int64_t r0, int64_t r1, Tile<real<T>>& tile) {
  using R = real<T>;
  using V = vector<R>;
  const auto* x = static_cast<const T*>(call.x);
  std::fill_n(tile.off, item.width, R(0));
  std::fill_n(tile.squares, item.width, R(0));
  std::fill_n(tile.weights, item.width, kind == Mask::none ? static_cast<R>(r1 - r0) : R(0));
  if (kind == Mask::none && item.width % lanes<R> == 0 && item.width <= 4 * lanes<R>) {
    narrow_sums(x + item.c0, call.cut.C, r0, r1, item.width / lanes<R>, tile);
    return;
  }
  for (int64_t r = r0; r < r1; ++r) {
    const auto mask = mask_of<R, kind>(call, r, item.c0);
    const T* row = x + r * call.cut.C + item.c0;
    each_vector<R>(item.width, [&](int64_t i, auto lanes, int) __attribute__((always_inline)) {
      V d = load(row + i, lanes) - load(tile.centre + i, lanes), weighted = d;
      if constexpr (kind != Mask::none) {
        const V w = mask.at(i, lanes);
        d = w > V{} ? d : V{};
        weighted = w * d;
        add_to(tile.weights, i, w, lanes);
      }
      add_to(tile.off, i, weighted, lanes);
      add_to(tile.squares, i, weighted * d, lanes);
    });
  }
}

// One column of a tile in double, for squares that leave float's range, or values that are Inf or NaN.
template <class T, Mask kind>
__attribute__((noinline)) void column_in_double(
    const Call& call, int64_t c, int64_t r0, int64_t r1, double& weights, double& mean, double& m2) {
  weights = mean = m2 = 0;
  const auto* x = static_cast<const T*>(call.x);
  auto each_value = [&](auto f) {
    for (int64_t r = r0; r < r1; ++r) {
      double w = 1;
      if constexpr (kind != Mask::none) {
        w = static_cast<const real<T>*>(call.mask)[kind == Mask::row ? r : r * call.cut.C + c];
      }
      if (w > 0) f(w, static_cast<double>(load_one(x + r * call.cut.C + c)));
    }
  };
  each_value([&](double w, double v) { weights += w, mean += w * v; });
  mean /= weights;
  each_value([&](double w, double v) { m2 += w * (v - mean) * (v - mean); });
}

// Moments of each column of a slice, grown tile by tile.
struct Columns {
  alignas(64) double count[kSlice];
  alignas(64) double mean[kSlice];
  alignas(64) double low[kSlice];
  alignas(64) double m2[kSlice];
};

template <class T, Mask kind>
void merge_tile(const Call& call, const Item& item, int64_t r0, int64_t r1, const Tile<real<T>>& tile, Columns& to) {
  constexpr all_lanes<double> whole{};
  alignas(64) double n[kSlice], centre[kSlice], shift[kSlice], part[kSlice];
  Doubles finite{};
  for (int64_t j = 0; j < item.width; j += lanes<double>) {
    const Doubles weights = load_doubles(tile.weights + j), off = load_doubles(tile.off + j);
    const Doubles squares = load_doubles(tile.squares + j), zero{};
    const Doubles by = off / (weights > zero ? weights : zero + 1), m2 = squares - by * off;
    store(n + j, weights, whole);
    store(centre + j, load_doubles(tile.centre + j), whole);
    store(shift + j, by, whole);
    store(part + j, m2 < zero ? zero : m2, whole);
    finite += squares - squares;  // NaN where a square is not finite
  }
  if (total(finite) != 0) {  // columns beyond the slice may say so too: they cost time, and no column is theirs
    for (int64_t j = 0; j < item.width; ++j) {
      if (std::isfinite(tile.squares[j])) continue;
      column_in_double<T, kind>(call, item.c0 + j, r0, r1, n[j], centre[j], part[j]);
      shift[j] = 0;
    }
  }
  for (int64_t j = 0; j < item.width; j += lanes<double>) {
    Doubles count = load(to.count + j, whole), mean = load(to.mean + j, whole), low = load(to.low + j, whole);
    Doubles m2 = load(to.m2 + j, whole);
    absorb(count, mean, low, m2, load(n + j, whole), load(centre + j, whole), load(shift + j, whole),
           load(part + j, whole));
    store(to.count + j, count, whole);
    store(to.mean + j, mean, whole);
    store(to.low + j, low, whole);
    store(to.m2 + j, m2, whole);
  }
}

template <class T, Mask kind>
void slice_moments(const Call& call, const Item& item, Columns& columns) {
  using R = real<T>;
  Tile<R> tile;
  std::fill_n(columns.count, item.width, 0.0);
  std::fill_n(columns.mean, item.width, 0.0);
  std::fill_n(columns.low, item.width, 0.0);
  std::fill_n(columns.m2, item.width, 0.0);
  std::fill_n(tile.state, item.width, R(0));
  std::fill_n(tile.centre, item.width, R(0));
  bool known = false;
  for (int64_t r0 = item.first_row; r0 < item.last_row; r0 += call.cut.stack) {
    const int64_t r1 = std::min(r0 + call.cut.stack, item.last_row);
    if (!known) find_centres<T, kind>(call, item, r0, r1, tile);
    tile_sums<T, kind>(call, item, r0, r1, tile);
    merge_tile<T, kind>(call, item, r0, r1, tile, columns);
    for (int64_t j = 0; j < item.width; ++j) tile.centre[j] = static_cast<R>(columns.mean[j]);  // will do from here on
    if (known) continue;
    known = true;
    for (int64_t j = 0; j < item.width; ++j) {
      tile.state[j] = columns.count[j] > 0 ? R(2) : R(0);
      known &= columns.count[j] > 0;
    }
  }
}

// ---- outputs

// Calls f(first row, last row) for rows that lie side by side in memory.
template <class F>
INLINE void each_stretch(const Cut& cut, const Item& item, bool backwards, F f) {
  const int64_t rows = item.last_row - item.first_row, stretches = (rows + cut.together - 1) / cut.together;
  for (int64_t k = 0; k < stretches; ++k) {
    const int64_t r0 = item.first_row + (backwards ? stretches - 1 - k : k) * cut.together;
    f(r0, std::min(r0 + cut.together, item.last_row));
  }
}

template <class R>
struct Slice {
  alignas(64) R hi[kSlice];
  alignas(64) R scale[kSlice];
  alignas(64) R shift[kSlice];
  alignas(64) R slope[kSlice];
  alignas(64) R along[kSlice];
  alignas(64) R constant[kSlice];

  void read_normalizer(const Call& call, const Item& item) {
    batchnorm::read_normalizer(call, item.group, item.c0, item.width, hi, scale, shift);
  }
  void read_gradient(const Call& call, const Item& item) {
    batchnorm::read_gradient(call, item.group, item.c0, item.width, slope, along, constant);
  }
  INLINE Normalizer<Each<R>> normalizer() const { return {{hi}, {scale}, {shift}}; }
  INLINE Gradient<Each<R>> gradient() const { return {{slope}, {along}, {constant}}; }
};

template <class T, Mask kind>
void slice_output(const Call& call, const Item& item, bool backwards, const Slice<real<T>>& slice) {
  const Cut& cut = call.cut;
  alignas(64) T buffer[kBuffer];
  each_stretch(cut, item, backwards, [&](int64_t r0, int64_t r1) {
    const int64_t first = r0 * cut.C + item.c0;
    const Out<T> y(call.y, first, call.stream, buffer);
    for (int64_t r = r0; r < r1; ++r) {
      const int64_t i = r * cut.C + item.c0;
      normalize_span<T>(call, at<T>(call.x, i), at<T>(call.extra, i), y.at + (i - first), item.width,
                        slice.normalizer(), mask_of<real<T>, kind>(call, r, item.c0));
    }
    y.flush((r1 - r0) * item.width);
  });
}

// Σ g′ and Σ g′·(x − hi) of each column of a slice.
template <class T, Mask kind>
void slice_sums(const Call& call, const Item& item, const Slice<real<T>>& slice, double* sum_g, double* sum_gx) {
  using R = real<T>;
  alignas(64) R tile_g[kSlice];
  alignas(64) R tile_gx[kSlice];
  std::fill_n(sum_g, item.width, 0.0);
  std::fill_n(sum_gx, item.width, 0.0);
  for (int64_t r0 = item.first_row; r0 < item.last_row; r0 += call.cut.stack) {
    const int64_t r1 = std::min(r0 + call.cut.stack, item.last_row);
    std::fill_n(tile_g, item.width, R(0));
    std::fill_n(tile_gx, item.width, R(0));
    using M = decltype(mask_of<R, kind>(call, 0, 0));
    with_activation<special<T, M>>(call, [&](auto activation, auto z) __attribute__((always_inline)) {
      for (int64_t r = r0; r < r1; ++r) {
        const int64_t first = r * call.cut.C + item.c0;
        const T *x = at<T>(call.x, first), *grad = at<T>(call.grad, first), *extra = at<T>(call.extra, first);
        const auto mask = mask_of<R, kind>(call, r, item.c0);
        each_vector<R>(item.width, [&](int64_t i, auto lanes, int) __attribute__((always_inline)) {
          vector<R> d, g;
          slope(activation, z, x, grad, extra, i, lanes, slice.normalizer(), mask, d, g);
          add_to(tile_g, i, g, lanes);
          add_to(tile_gx, i, g * d, lanes);
        });
      }
    });
    for (int64_t j = 0; j < item.width; ++j) {
      sum_g[j] += tile_g[j];
      sum_gx[j] += tile_gx[j];
    }
  }
}

template <class T, Mask kind>
void slice_gradient(const Call& call, const Item& item, bool backwards, const Slice<real<T>>& slice) {
  const Cut& cut = call.cut;
  alignas(64) T buffer[kBuffer], second[kBuffer];
  each_stretch(cut, item, backwards, [&](int64_t r0, int64_t r1) {
    const int64_t first = r0 * cut.C + item.c0;
    const Out<T> dx(call.y, first, call.stream, buffer), dresidual(call.dresidual, first, call.stream, second);
    for (int64_t r = r0; r < r1; ++r) {
      const int64_t i = r * cut.C + item.c0;
      apply_span<T>(call, at<T>(call.x, i), at<T>(call.grad, i), at<T>(call.extra, i), dx.at + (i - first),
                    dresidual.at ? dresidual.at + (i - first) : nullptr, item.width, slice.normalizer(),
                    slice.gradient(), mask_of<real<T>, kind>(call, r, item.c0));
    }
    dx.flush((r1 - r0) * item.width);
    if (dresidual.at) dresidual.flush((r1 - r0) * item.width);
  });
}

// ---- kernels: one item after another. The second pass begins with the last item, where the first left off.

template <class T, Mask kind>
struct Kernels {
  using R = real<T>;

  static void moments(Call& call) {
    each_item(call, [&](int64_t i) {
      const Item item = rows::item(call.cut, i);
      Columns columns;
      slice_moments<T, kind>(call, item, columns);
      const int64_t row = (item.chunk * call.cut.groups + item.group) * call.cut.C + item.c0;
      std::copy_n(columns.count, item.width, call.part_count + row);
      std::copy_n(columns.mean, item.width, call.part_mean + row);
      std::copy_n(columns.low, item.width, call.part_low + row);
      std::copy_n(columns.m2, item.width, call.part_m2 + row);
    });
  }

  static void normalize(Call& call) {
    each_item(call, [&](int64_t i) {
      const Item item = rows::item(call.cut, call.cut.items - 1 - i);
      Slice<R> slice;
      slice.read_normalizer(call, item);
      slice_output<T, kind>(call, item, false, slice);
    });
  }

  static void reduce(Call& call) {
    each_item(call, [&](int64_t i) {
      const Item item = rows::item(call.cut, i);
      Slice<R> slice;
      slice.read_normalizer(call, item);
      const int64_t row = (item.chunk * call.cut.groups + item.group) * call.cut.C + item.c0;
      slice_sums<T, kind>(call, item, slice, call.part_g + row, call.part_gx + row);
      finish_sums<R>(call, item.group, item.c0, item.width, call.part_g + row, call.part_gx + row);
    });
  }

  static void apply(Call& call) {
    each_item(call, [&](int64_t i) {
      const Item item = rows::item(call.cut, call.cut.items - 1 - i);
      Slice<R> slice;
      slice.read_normalizer(call, item);
      slice.read_gradient(call, item);
      slice_gradient<T, kind>(call, item, false, slice);
    });
  }

  static void forward(Call& call) {
    each_item(call, [&](int64_t i) {
      const Item item = rows::item(call.cut, i);
      Columns columns;
      slice_moments<T, kind>(call, item, columns);
      for (int64_t j = 0; j < item.width; ++j) columns.mean[j] += columns.low[j];
      finish_channels(call, item.c0, item.width, columns.count, columns.mean, columns.m2);
      Slice<R> slice;
      slice.read_normalizer(call, item);
      slice_output<T, kind>(call, item, true, slice);
    });
  }

  static void backward(Call& call) {
    each_item(call, [&](int64_t i) {
      const Item item = rows::item(call.cut, i);
      Slice<R> slice;
      slice.read_normalizer(call, item);
      slice_sums<T, kind>(call, item, slice, call.sum_g + item.c0, call.sum_gx + item.c0);
      finish_sums<R>(call, 0, item.c0, item.width, call.sum_g + item.c0, call.sum_gx + item.c0);
      write_affine_gradients(call, item.c0, item.width);
      if (call.y == nullptr) return;
      slice.read_gradient(call, item);
      slice_gradient<T, kind>(call, item, true, slice);
    });
  }
};

}  // namespace batchnorm::rows
