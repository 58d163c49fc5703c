// What planes and rows share: the loop over values that lie side by side, and a channel's arithmetic.
//
// Values are summed in their working precision (float, or double for float64) over a block of about a thousand, then
// merged in double by Chan's formula, in an order that depends on the shape alone. A channel's mean is two doubles while
// it is merged. Loops compute with x − hi, where hi is the mean in the working precision; the rest of the mean goes into
// the constants, in double.
#pragma once

#include <algorithm>
#include <cmath>

#include "kernels.h"

namespace batchnorm {

constexpr int64_t kBand = 64;     // channels of a band at most
constexpr int64_t kSlice = 1024;  // columns of a slice at most: their running sums stay in L1
constexpr int kFirstValues = 256;  // values to guess a mean from: within σ/16 of it if they are independent
constexpr int kFirstRows = 8;      // the same for each column of rows: within σ/3
constexpr int64_t kBuffer = 2 * kSlice + 64;  // two rows, or the runs of a stretch, begun anywhere in a cache line

// ---- pieces of work

// Each thread draws pieces of work until none is left, so it does not matter how many threads there are.
template <class F>
INLINE void each_item(Call& call, F work) {
  for (;;) {
    const int64_t i = call.ticket.fetch_add(1, std::memory_order_relaxed);
    if (i >= call.cut.items) break;
    work(i);
  }
#if defined(__x86_64__)
  if (call.stream) _mm_sfence();  // what was written past the cache is there before the other threads go on
#endif
}

// Calls `f` with a value of the tensor's type.
template <class F>
INLINE void with_type(Type type, F f) {
  switch (type) {
    case Type::float32:
      return f(float{});
    case Type::float64:
      return f(double{});
    case Type::bfloat16:
      return f(bfloat16{});
    case Type::float16:
      return f(float16{});
    case Type::absent:
      return;
  }
}

// ---- spans: the loop over values that lie side by side

// Calls f(i, lanes, k) for each vector of a span: k from 0 to 3 tells neighbours apart, which may be summed apart.
template <class R, class F>
INLINE void each_vector(int64_t n, F f) {
  constexpr int L = lanes<R>;
  constexpr all_lanes<R> whole{};
  int64_t i = 0;
  for (; i + 4 * L <= n; i += 4 * L) {
    f(i, whole, 0);
    f(i + L, whole, 1);
    f(i + 2 * L, whole, 2);
    f(i + 3 * L, whole, 3);
  }
  for (; i + L <= n; i += L) f(i, whole, 0);
  if (i < n) f(i, static_cast<int>(n - i), 1);
}

// The same where f writes each value by itself: the last vector overlaps the one before, so that it need not be partial.
template <class R, class F>
INLINE void each_output(int64_t n, F f) {
  constexpr int L = lanes<R>;
  constexpr all_lanes<R> whole{};
  if (n < L) {
    f(0, static_cast<int>(n));
    return;
  }
  int64_t i = 0;
  for (; i + 2 * L <= n; i += 2 * L) {
    f(i, whole);
    f(i + L, whole);
  }
  if (i + L <= n) f(i, whole);
  if (n % L != 0) f(n - L, whole);
}

// Sums over a span: spans of several vectors are summed in four parts, which do not wait for one another.
template <class R, class F>
INLINE void sum_vectors(int64_t n, vector<R>& first, vector<R>& second, F f) {
  constexpr int L = lanes<R>;
  constexpr all_lanes<R> whole{};
  int64_t i = 0;
  if (n >= 4 * L) {
    vector<R> a[4] = {}, b[4] = {};
    for (; i + 4 * L <= n; i += 4 * L) {
      f(i, whole, a[0], b[0]);
      f(i + L, whole, a[1], b[1]);
      f(i + 2 * L, whole, a[2], b[2]);
      f(i + 3 * L, whole, a[3], b[3]);
    }
    first += (a[0] + a[1]) + (a[2] + a[3]);
    second += (b[0] + b[1]) + (b[2] + b[3]);
  }
  for (; i + L <= n; i += L) f(i, whole, first, second);
  if (i < n) f(i, static_cast<int>(n - i), first, second);
}

// A value per channel: the same for a whole run of a plane, or one for each column of a row.
template <class R>
struct Same {
  vector<R> value;
  explicit Same(R v) : value(broadcast(v)) {}
  template <class L>
  INLINE vector<R> at(int64_t, L) const {
    return value;
  }
};
template <class R>
struct Each {
  const R* values;
  template <class L>
  INLINE vector<R> at(int64_t i, L n) const {
    return load(values + i, n);
  }
};
// No mask: all values count.
struct Unmasked {};
template <class M>
constexpr bool masked = !std::is_same_v<M, Unmasked>;

// What a channel is normalised by: (x − hi)·scale + shift.
template <class P>
struct Normalizer {
  P hi, scale, shift;
};
// The input's gradient: slope·g′ + along·(x − hi) + constant.
template <class P>
struct Gradient {
  P slope, along, constant;
};

// Loops of their own for no activation and for ReLU: of the dtypes that networks train in, to keep the build short.
template <class T, class M>
constexpr bool special = !masked<M> && (std::is_same_v<T, float> || std::is_same_v<T, bfloat16>);

// Calls f(activation, z) with what the loop over a span can be compiled for: no activation, ReLU, or any looked up for
// each vector. `z` says where the preactivation comes from in a backward pass.
enum class Z { unused, output, computed };

template <bool several, class F>
INLINE void with_activation(const Call& call, F f) {
  if constexpr (several) {
    if (call.activation == Activation::none) {
      return f(Known<Activation::none>{}, std::integral_constant<Z, Z::unused>{});
    }
    if (call.activation == Activation::relu && call.by_output) {
      return f(Known<Activation::relu>{}, std::integral_constant<Z, Z::output>{});
    }
    if (call.activation == Activation::relu) {
      return f(Known<Activation::relu>{}, std::integral_constant<Z, Z::computed>{});
    }
  }
  if (call.by_output) return f(LookedUp{call.activation}, std::integral_constant<Z, Z::output>{});
  return f(LookedUp{call.activation}, std::integral_constant<Z, Z::computed>{});
}

template <class T, class P, class M>
INLINE void normalize_span(
    const Call& call, const T* x, const T* extra, T* y, int64_t n, const Normalizer<P>& by, const M& mask) {
  using R = real<T>;
  auto loop = [&](auto activation) __attribute__((always_inline)) {
    each_output<R>(n, [&](int64_t i, auto lanes) __attribute__((always_inline)) {
      vector<R> z = (load(x + i, lanes) - by.hi.at(i, lanes)) * by.scale.at(i, lanes) + by.shift.at(i, lanes);
      if (extra) z += load(extra + i, lanes);
      z = activate(activation, z);
      if constexpr (masked<M>) z = mask.at(i, lanes) > vector<R>{} ? z : vector<R>{};
      store(y + i, z, lanes);
    });
  };
  if constexpr (special<T, M>) {
    if (call.activation == Activation::none) return loop(Known<Activation::none>{});
    if (call.activation == Activation::relu) return loop(Known<Activation::relu>{});
  }
  loop(LookedUp{call.activation});
}

// x − hi and g′, the gradient before the activation; both zero where masked.
template <class T, class P, class M, class L, class A, Z z_from>
INLINE void slope(
    A activation, std::integral_constant<Z, z_from>, const T* x, const T* grad, const T* extra, int64_t i, L lanes,
    const Normalizer<P>& by, const M& mask, vector<real<T>>& d, vector<real<T>>& g) {
  using V = vector<real<T>>;
  d = load(x + i, lanes) - by.hi.at(i, lanes);
  g = load(grad + i, lanes);
  if constexpr (z_from == Z::output) g = backprop(activation, g, load(extra + i, lanes));
  if constexpr (z_from == Z::computed) {
    V z = d * by.scale.at(i, lanes) + by.shift.at(i, lanes);
    if (extra) z += load(extra + i, lanes);
    g = backprop(activation, g, z);
  }
  if constexpr (masked<M>) {
    const V w = mask.at(i, lanes);
    d = w > V{} ? d : V{};
    g = w > V{} ? g : V{};
  }
}

template <class T, class P, class M>
INLINE void apply_span(
    const Call& call, const T* x, const T* grad, const T* extra, T* dx, T* dresidual, int64_t n,
    const Normalizer<P>& by, const Gradient<P>& to, const M& mask) {
  using R = real<T>;
  with_activation<special<T, M>>(call, [&](auto activation, auto z) __attribute__((always_inline)) {
    each_output<R>(n, [&](int64_t i, auto lanes) __attribute__((always_inline)) {
      vector<R> d, g;
      slope(activation, z, x, grad, extra, i, lanes, by, mask, d, g);
      if (dresidual) store(dresidual + i, g, lanes);
      vector<R> through = to.along.at(i, lanes) * d + to.constant.at(i, lanes);
      if constexpr (masked<M>) through *= mask.at(i, lanes);
      store(dx + i, to.slope.at(i, lanes) * g + through, lanes);
    });
  });
}

template <class T>
INLINE const T* at(const void* tensor, int64_t i) {
  return tensor ? static_cast<const T*>(tensor) + i : nullptr;
}

// ---- writing past the cache

// A buffer that lies in its cache lines as the output does, and goes there in one go; or the output itself.
template <class T>
struct Out {
  T* target = nullptr;
  T* at = nullptr;

  INLINE Out(void* output, int64_t first, bool stream, T* buffer) {
    if (output == nullptr) return;
    target = static_cast<T*>(output) + first;
    const auto phase = reinterpret_cast<uintptr_t>(target) % 64 / sizeof(T);
    at = stream ? buffer + phase : target;
  }

  INLINE void flush(int64_t n) const {
#if defined(__x86_64__)
    if (at == target) return;
    auto* to = reinterpret_cast<char*>(target);
    auto* from = reinterpret_cast<const char*>(at);
    int64_t bytes = n * static_cast<int64_t>(sizeof(T));
    const int64_t head = std::min<int64_t>((64 - reinterpret_cast<uintptr_t>(to) % 64) % 64, bytes);
    std::memcpy(to, from, head);
    int64_t i = head;
    for (; i + 64 <= bytes; i += 64) {
#if defined(BATCHNORM_AVX512)
      _mm512_stream_si512(reinterpret_cast<__m512i*>(to + i), _mm512_load_si512(from + i));
#elif defined(__AVX2__)
      for (int half = 0; half < 64; half += 32) {
        auto v = _mm256_load_si256(reinterpret_cast<const __m256i*>(from + i + half));
        _mm256_stream_si256(reinterpret_cast<__m256i*>(to + i + half), v);
      }
#else
      for (int part = 0; part < 64; part += 16) {
        auto v = _mm_load_si128(reinterpret_cast<const __m128i*>(from + i + part));
        _mm_stream_si128(reinterpret_cast<__m128i*>(to + i + part), v);
      }
#endif
    }
    std::memcpy(to + i, from + i, bytes - i);
#else
    if (at != target) std::memcpy(target, at, n * sizeof(T));
#endif
  }
};

// ---- the arithmetic of channels, in double

template <class R>
constexpr double kLargest = std::is_same_v<R, double> ? 1.7976931348623157e308 : 3.4028234663852886e38;

// Moments grow by a part: Chan's formula, the only merge, for a double or a vector of them. The mean is mean + low; the
// part's is centre + shift.
template <class D>
INLINE void absorb(D& count, D& mean, D& low, D& m2, D n, D centre, D shift, D part_m2) {
  const D zero{};
  const D whole = count + n, share = whole > zero ? n / whole : zero;
  mean = count > zero ? mean : centre;  // so that the first difference is exact
  const D delta = (centre - mean) + (shift - low);
  const D step = n > zero ? delta * share : zero;
  const D sum = mean + step, part = sum - mean;
  const D rounded_off = (mean - (sum - part)) + (step - part);
  low += sum - sum == zero ? rounded_off : zero;  // unless the sum is Inf or NaN
  mean = sum;
  m2 += n > zero ? part_m2 + delta * delta * count * share : zero;
  count = whole;
}

struct Merged {
  double count = 0, mean = 0, low = 0, m2 = 0;
  INLINE void absorb(double n, double centre, double shift, double part_m2) {
    batchnorm::absorb(count, mean, low, m2, n, centre, shift, part_m2);
  }
};

// Reads or writes `width` channels from `c0` on; absent ones read as `absent`, and are not written.
INLINE void read_channels(const Channels& from, int64_t c0, int64_t width, double absent, double* to) {
  if (from.type == Type::absent) std::fill_n(to, width, absent);
  with_type(from.type, [&](auto t) __attribute__((always_inline)) {
    const auto* data = static_cast<const decltype(t)*>(from.data) + c0;
    for (int64_t j = 0; j < width; ++j) to[j] = load_one(data + j);
  });
}
INLINE void write_channels(const Channels& to, int64_t c0, int64_t width, const double* from) {
  with_type(to.type, [&](auto t) __attribute__((always_inline)) {
    auto* data = static_cast<decltype(t)*>(to.data) + c0;
    for (int64_t j = 0; j < width; ++j) store_one(data + j, from[j]);
  });
}

// The functions below are compiled once, in kernels.cpp: the same code gives the same bits everywhere.

// Statistics from the batch's moments, and the update of the running statistics by them.
void finish_channels(Call&, int64_t c0, int64_t width, const double* count, const double* mean, const double* m2);

// What `width` channels of a group are normalised by: (x − hi)·scale + shift.
template <class R>
void read_normalizer(const Call&, int64_t group, int64_t c0, int64_t width, R* hi, R* scale, R* shift);

// The coefficients of the input's gradient, as given, or from the sums over all values.
template <class R>
void read_gradient(const Call&, int64_t group, int64_t c0, int64_t width, R* slope, R* along, R* constant);

// Σ g′·(x − mean) from Σ g′·(x − hi), in place.
template <class R>
void finish_sums(const Call&, int64_t group, int64_t c0, int64_t width, const double* sum_g, double* sum_gx);

// dγ and dβ from the sums.
void write_affine_gradients(const Call&, int64_t c0, int64_t width);

}  // namespace batchnorm
