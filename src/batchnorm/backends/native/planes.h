// Kernels for planes (N, C, S): a channel is N runs of S values.
//
// A band of neighbouring channels is read as it lies in memory, so that what is read in one go is longer than one short
// run: the jump to another page costs as much as reading most of it. A block of a channel is a piece of one long run, or
// the whole runs of several samples.
#pragma once

#include "span.h"

namespace batchnorm::planes {

struct Item {
  int64_t group, chunk, c0, width;
  int64_t first_block, last_block;
};

INLINE Item item(const Cut& cut, int64_t i) {
  const int64_t chunk = i / (cut.groups * cut.pieces), rest = i % (cut.groups * cut.pieces);
  const int64_t group = rest / cut.pieces, c0 = rest % cut.pieces * cut.width;
  const int64_t samples = std::min(cut.per_group, cut.N - group * cut.per_group);
  const int64_t blocks = (samples + cut.stack - 1) / cut.stack * cut.split;
  return {group, chunk, c0, std::min(cut.width, cut.C - c0), blocks * chunk / cut.chunks,
          blocks * (chunk + 1) / cut.chunks};
}

// Blocks of the same samples: those of a stack, or the pieces [s0, s1) of one long run.
struct Stack {
  int64_t n0, n1, piece0, piece1;
};

// Calls f(stack) in order for the blocks of an item; `backwards`, from the last: what was read last is still in cache.
template <class F>
INLINE void each_stack(const Cut& cut, const Item& item, bool backwards, F f) {
  const int64_t end = std::min((item.group + 1) * cut.per_group, cut.N);
  const int64_t first = item.first_block / cut.split, last = (item.last_block + cut.split - 1) / cut.split;
  for (int64_t k = 0; k < last - first; ++k) {
    const int64_t row = backwards ? last - 1 - k : first + k;
    const int64_t n0 = item.group * cut.per_group + row * cut.stack;
    f(Stack{n0, std::min(n0 + cut.stack, end), std::max(item.first_block - row * cut.split, int64_t{0}),
            std::min(item.last_block - row * cut.split, cut.split)});
  }
}

INLINE int64_t start_of(const Cut& cut, int64_t piece) { return std::min(piece * cut.span, cut.S); }

// The weights of a run's positions from `s` on.
template <class R, bool Masked>
INLINE auto mask_of(const Call& call, int64_t n, int64_t c, int64_t s) {
  if constexpr (Masked) {
    const int64_t run = call.mask_shared ? n : n * call.cut.C + c;
    return Each<R>{static_cast<const R*>(call.mask) + run * call.cut.S + s};
  } else {
    return Unmasked{};
  }
}

// ---- moments

// Sums over a block: of weights, deviations from a centre, and their squares.
template <class R>
struct Sums {
  vector<R> weights, off, squares;
};

template <class T, class M>
INLINE void add_moments(const T* x, int64_t n, real<T> centre, const M& mask, Sums<real<T>>& sums) {
  using R = real<T>;
  using V = vector<R>;
  const V middle = broadcast(centre);
  sum_vectors<R>(n, sums.off, sums.squares, [&](int64_t i, auto lanes, V& off, V& squares)
                                                __attribute__((always_inline)) {
    V d = first_lanes(load(x + i, lanes) - middle, lanes);
    if constexpr (masked<M>) {
      const V w = mask.at(i, lanes);
      d = w > V{} ? d : V{};
      sums.weights += w;
      off += w * d;
      squares += w * (d * d);
    } else {
      off += d;
      squares += d * d;
    }
  });
}

// A value about as large as the channel's mean: the mean of the first values that count, or false where none does.
template <class T, bool Masked>
bool first_centre(const Call& call, const Stack& stack, int64_t c, int64_t s0, int64_t s1, real<T>& centre) {
  using R = real<T>;
  const auto* x = static_cast<const T*>(call.x);
  Sums<R> sums{};
  R first = 0;
  int64_t seen = 0;  // runs may be short, and one value alone be far from the mean
  for (int64_t n = stack.n0; n < stack.n1 && seen < kFirstValues; ++n) {
    const T* run = x + (n * call.cut.C + c) * call.cut.S + s0;
    const auto mask = mask_of<R, Masked>(call, n, c, s0);
    int64_t k = 0;
    if constexpr (Masked) {
      while (k < s1 - s0 && !(mask.values[k] > 0)) ++k;
    }
    if (k == s1 - s0) continue;
    if (seen == 0) first = load_one(run + k);
    const int64_t count = std::min<int64_t>(s1 - s0, k + kFirstValues - seen);
    add_moments(run, count, first, mask, sums);
    seen += count;
  }
  if (seen == 0) return false;
  const double weights = Masked ? total(sums.weights) : static_cast<double>(seen);
  centre = first + static_cast<R>(total(sums.off) / weights);
  return true;
}

// A block in double, for squares that leave float's range, or values that are Inf or NaN.
template <class T, bool Masked>
__attribute__((noinline)) void absorb_in_double(
    const Call& call, const Stack& stack, int64_t c, int64_t s0, int64_t s1, Merged& merged) {
  double weights = 0, sum = 0, m2 = 0;
  const auto* x = static_cast<const T*>(call.x);
  auto each_value = [&](auto f) {
    for (int64_t n = stack.n0; n < stack.n1; ++n) {
      const T* run = x + (n * call.cut.C + c) * call.cut.S;
      const auto mask = mask_of<real<T>, Masked>(call, n, c, 0);
      for (int64_t s = s0; s < s1; ++s) {
        double w = 1;
        if constexpr (Masked) w = mask.values[s];
        if (w > 0) f(w, static_cast<double>(load_one(run + s)));
      }
    }
  };
  each_value([&](double w, double v) { weights += w, sum += w * v; });
  const double mean = sum / weights;
  each_value([&](double w, double v) { m2 += w * (v - mean) * (v - mean); });
  merged.absorb(weights, mean, 0, m2);
}

// Moments of each channel of a band over the item's blocks.
template <class T, bool Masked>
void band_moments(const Call& call, const Item& item, Merged* merged) {
  using R = real<T>;
  const Cut& cut = call.cut;
  const auto* x = static_cast<const T*>(call.x);
  for (int64_t j = 0; j < item.width; ++j) merged[j] = Merged{};
  Sums<R> sums[kBand];
  R centre[kBand];
  auto begin = [&](const Stack& stack, int64_t j, int64_t s0, int64_t s1) {
    sums[j] = Sums<R>{};
    centre[j] = static_cast<R>(merged[j].mean);  // of the blocks before: far from this block's, it is merged as well
    return merged[j].count > 0 || first_centre<T, Masked>(call, stack, item.c0 + j, s0, s1, centre[j]);
  };
  auto end = [&](const Stack& stack, int64_t j, int64_t s0, int64_t s1) {
    const double n = Masked ? total(sums[j].weights) : static_cast<double>((stack.n1 - stack.n0) * (s1 - s0));
    const double off = total(sums[j].off), squares = total(sums[j].squares);
    if (!std::isfinite(squares)) {
      absorb_in_double<T, Masked>(call, stack, item.c0 + j, s0, s1, merged[j]);
    } else if (n > 0) {
      const double shift = off / n;
      merged[j].absorb(n, centre[j], shift, std::max(squares - shift * off, 0.0));
    }
  };
  auto add = [&](int64_t n, int64_t j, int64_t s0, int64_t s1) {
    const int64_t c = item.c0 + j;
    const auto mask = mask_of<R, Masked>(call, n, c, s0);
    add_moments(x + (n * cut.C + c) * cut.S + s0, s1 - s0, centre[j], mask, sums[j]);
  };
  each_stack(cut, item, false, [&](const Stack& stack) {
    if (cut.stack == 1) {  // a long run to its end, before the next channel's: memory is read in one stretch
      for (int64_t j = 0; j < item.width; ++j) {
        for (int64_t piece = stack.piece0; piece < stack.piece1; ++piece) {
          const int64_t s0 = start_of(cut, piece), s1 = start_of(cut, piece + 1);
          if (!begin(stack, j, s0, s1)) continue;
          add(stack.n0, j, s0, s1);
          end(stack, j, s0, s1);
        }
      }
    } else {
      bool any[kBand];
      for (int64_t j = 0; j < item.width; ++j) any[j] = begin(stack, j, 0, cut.S);
      for (int64_t n = stack.n0; n < stack.n1; ++n)
        for (int64_t j = 0; j < item.width; ++j) add(n, j, 0, cut.S);
      for (int64_t j = 0; j < item.width; ++j)
        if (any[j]) end(stack, j, 0, cut.S);
    }
  });
}

// ---- outputs

// Calls f(n, first channel of the band, channels, s0, length) for stretches that lie side by side in memory.
template <class F>
INLINE void each_stretch(const Cut& cut, const Item& item, bool backwards, F f) {
  each_stack(cut, item, backwards, [&](const Stack& stack) {
    for (int64_t n = stack.n0; n < stack.n1; ++n) {
      for (int64_t j = 0; j < item.width; j += cut.together) {
        const int64_t channels = std::min(cut.together, item.width - j);
        for (int64_t piece = stack.piece0; piece < stack.piece1; ++piece) {
          const int64_t s0 = start_of(cut, piece);
          f(n, j, channels, s0, start_of(cut, piece + 1) - s0);
        }
      }
    }
  });
}

template <class R>
struct Band {
  R hi[kBand], scale[kBand], shift[kBand];
  R slope[kBand], along[kBand], constant[kBand];

  void read_normalizer(const Call& call, const Item& item) {
    batchnorm::read_normalizer(call, item.group, item.c0, item.width, hi, scale, shift);
  }
  void read_gradient(const Call& call, const Item& item) {
    batchnorm::read_gradient(call, item.group, item.c0, item.width, slope, along, constant);
  }
  INLINE Normalizer<Same<R>> normalizer(int64_t j) const {
    return {Same<R>(hi[j]), Same<R>(scale[j]), Same<R>(shift[j])};
  }
  INLINE Gradient<Same<R>> gradient(int64_t j) const {
    return {Same<R>(slope[j]), Same<R>(along[j]), Same<R>(constant[j])};
  }
};

template <class T, bool Masked>
void band_output(const Call& call, const Item& item, bool backwards, const Band<real<T>>& band) {
  using R = real<T>;
  const Cut& cut = call.cut;
  alignas(64) T buffer[kBuffer];
  each_stretch(cut, item, backwards, [&](int64_t n, int64_t j0, int64_t channels, int64_t s0, int64_t length) {
    const int64_t first = (n * cut.C + item.c0 + j0) * cut.S + s0;
    const Out<T> y(call.y, first, call.stream, buffer);
    for (int64_t j = 0; j < channels; ++j) {
      const int64_t i = first + j * cut.S;
      const auto mask = mask_of<R, Masked>(call, n, item.c0 + j0 + j, s0);
      normalize_span<T>(call, at<T>(call.x, i), at<T>(call.extra, i), y.at + j * length, length,
                        band.normalizer(j0 + j), mask);
    }
    y.flush(channels * length);
  });
}

template <class T, class M>
INLINE void add_slopes(
    const Call& call, const T* x, const T* grad, const T* extra, int64_t n, const Normalizer<Same<real<T>>>& by,
    const M& mask, vector<real<T>>& sum_g, vector<real<T>>& sum_gx) {
  using R = real<T>;
  using V = vector<R>;
  with_activation<special<T, M>>(call, [&](auto activation, auto z) __attribute__((always_inline)) {
    sum_vectors<R>(n, sum_g, sum_gx, [&](int64_t i, auto lanes, V& by_g, V& by_gx) __attribute__((always_inline)) {
      V d, g;
      slope(activation, z, x, grad, extra, i, lanes, by, mask, d, g);
      g = first_lanes(g, lanes);  // lanes beyond hold 0 times a derivative
      by_g += g;
      by_gx += g * d;
    });
  });
}

// Σ g′ and Σ g′·(x − hi) of each channel of a band.
template <class T, bool Masked>
void band_sums(const Call& call, const Item& item, const Band<real<T>>& band, double* sum_g, double* sum_gx) {
  using R = real<T>;
  const Cut& cut = call.cut;
  vector<R> part_g[kBand], part_gx[kBand];
  std::fill_n(sum_g, item.width, 0.0);
  std::fill_n(sum_gx, item.width, 0.0);
  auto add = [&](int64_t n, int64_t j, int64_t s0, int64_t s1) {
    const int64_t c = item.c0 + j, i = (n * cut.C + c) * cut.S + s0;
    add_slopes<T>(call, at<T>(call.x, i), at<T>(call.grad, i), at<T>(call.extra, i), s1 - s0, band.normalizer(j),
                  mask_of<R, Masked>(call, n, c, s0), part_g[j], part_gx[j]);
  };
  auto end = [&](int64_t j) {
    sum_g[j] += total(part_g[j]);
    sum_gx[j] += total(part_gx[j]);
  };
  each_stack(cut, item, false, [&](const Stack& stack) {
    if (cut.stack == 1) {
      for (int64_t j = 0; j < item.width; ++j) {
        for (int64_t piece = stack.piece0; piece < stack.piece1; ++piece) {
          part_g[j] = part_gx[j] = vector<R>{};
          add(stack.n0, j, start_of(cut, piece), start_of(cut, piece + 1));
          end(j);
        }
      }
    } else {
      for (int64_t j = 0; j < item.width; ++j) part_g[j] = part_gx[j] = vector<R>{};
      for (int64_t n = stack.n0; n < stack.n1; ++n)
        for (int64_t j = 0; j < item.width; ++j) add(n, j, 0, cut.S);
      for (int64_t j = 0; j < item.width; ++j) end(j);
    }
  });
}

template <class T, bool Masked>
void band_gradient(const Call& call, const Item& item, bool backwards, const Band<real<T>>& band) {
  using R = real<T>;
  const Cut& cut = call.cut;
  alignas(64) T buffer[kBuffer], second[kBuffer];
  each_stretch(cut, item, backwards, [&](int64_t n, int64_t j0, int64_t channels, int64_t s0, int64_t length) {
    const int64_t first = (n * cut.C + item.c0 + j0) * cut.S + s0;
    const Out<T> dx(call.y, first, call.stream, buffer), dresidual(call.dresidual, first, call.stream, second);
    for (int64_t j = 0; j < channels; ++j) {
      const int64_t i = first + j * cut.S;
      const auto mask = mask_of<R, Masked>(call, n, item.c0 + j0 + j, s0);
      apply_span<T>(call, at<T>(call.x, i), at<T>(call.grad, i), at<T>(call.extra, i), dx.at + j * length,
                    dresidual.at ? dresidual.at + j * length : nullptr, length, band.normalizer(j0 + j),
                    band.gradient(j0 + j), mask);
    }
    dx.flush(channels * length);
    if (dresidual.at) dresidual.flush(channels * length);
  });
}

// ---- kernels: one item after another

template <class T, bool Masked>
struct Kernels {
  using R = real<T>;

  static void moments(Call& call) {
    each_item(call, [&](int64_t i) {
      const Item item = planes::item(call.cut, i);
      Merged merged[kBand];
      band_moments<T, Masked>(call, item, merged);
      const int64_t row = (item.chunk * call.cut.groups + item.group) * call.cut.C + item.c0;
      for (int64_t j = 0; j < item.width; ++j) {
        call.part_count[row + j] = merged[j].count;
        call.part_mean[row + j] = merged[j].mean;
        call.part_low[row + j] = merged[j].low;
        call.part_m2[row + j] = merged[j].m2;
      }
    });
  }

  static void normalize(Call& call) {
    each_item(call, [&](int64_t i) {
      const Item item = planes::item(call.cut, i);
      Band<R> band;
      band.read_normalizer(call, item);
      band_output<T, Masked>(call, item, false, band);
    });
  }

  static void reduce(Call& call) {
    each_item(call, [&](int64_t i) {
      const Item item = planes::item(call.cut, i);
      Band<R> band;
      band.read_normalizer(call, item);
      const int64_t row = (item.chunk * call.cut.groups + item.group) * call.cut.C + item.c0;
      band_sums<T, Masked>(call, item, band, call.part_g + row, call.part_gx + row);
      finish_sums<R>(call, item.group, item.c0, item.width, call.part_g + row, call.part_gx + row);
    });
  }

  static void apply(Call& call) {
    each_item(call, [&](int64_t i) {
      const Item item = planes::item(call.cut, i);
      Band<R> band;
      band.read_normalizer(call, item);
      band.read_gradient(call, item);
      band_gradient<T, Masked>(call, item, false, band);
    });
  }

  // A band's moments, then its output while the band is still in cache.
  static void forward(Call& call) {
    each_item(call, [&](int64_t i) {
      const Item item = planes::item(call.cut, i);
      Merged merged[kBand];
      band_moments<T, Masked>(call, item, merged);
      double count[kBand], mean[kBand], m2[kBand];
      for (int64_t j = 0; j < item.width; ++j) {
        count[j] = merged[j].count;
        mean[j] = merged[j].mean + merged[j].low;
        m2[j] = merged[j].m2;
      }
      finish_channels(call, item.c0, item.width, count, mean, m2);
      Band<R> band;
      band.read_normalizer(call, item);
      band_output<T, Masked>(call, item, true, band);
    });
  }

  // A band's sums, then its gradient while input and gradient are still in cache.
  static void backward(Call& call) {
    each_item(call, [&](int64_t i) {
      const Item item = planes::item(call.cut, i);
      Band<R> band;
      band.read_normalizer(call, item);
      band_sums<T, Masked>(call, item, band, call.sum_g + item.c0, call.sum_gx + item.c0);
      finish_sums<R>(call, 0, item.c0, item.width, call.sum_g + item.c0, call.sum_gx + item.c0);
      write_affine_gradients(call, item.c0, item.width);
      if (call.y == nullptr) return;
      band.read_gradient(call, item);
      band_gradient<T, Masked>(call, item, true, band);
    });
  }
};

}  // namespace batchnorm::planes
