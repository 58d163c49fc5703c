// One register's worth of values: loads and stores of the four dtypes, and the activations.
//
// float32, bfloat16 and float16 are computed in float, float64 in double. A vector has as many lanes as the widest
// register of the processor. The last vector of a span may be partial: loads fill it with zeros, stores leave the rest.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define INLINE inline __attribute__((always_inline))

namespace batchnorm {

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#define BATCHNORM_AVX512 1
constexpr int kRegister = 64;
#elif defined(__AVX2__)
constexpr int kRegister = 32;
#else
constexpr int kRegister = 16;
#endif

struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

template <class T>
using real = std::conditional_t<std::is_same_v<T, double>, double, float>;

typedef float Floats __attribute__((vector_size(kRegister)));
typedef double Doubles __attribute__((vector_size(kRegister)));
typedef uint32_t Bits __attribute__((vector_size(kRegister)));
typedef uint16_t Halves __attribute__((vector_size(kRegister / 2)));

template <class R>
using vector = std::conditional_t<std::is_same_v<R, double>, Doubles, Floats>;
template <class R>
constexpr int lanes = kRegister / sizeof(R);
template <class R>
using all_lanes = std::integral_constant<int, lanes<R>>;

template <class R>
INLINE vector<R> broadcast(R value) {
  return vector<R>{} + value;
}

INLINE Floats as_floats(Bits b) { return reinterpret_cast<Floats>(b); }
INLINE Bits as_bits(Floats f) { return reinterpret_cast<Bits>(f); }

// ---- loads and stores of whole vectors

// Vectors at any address. Their type aliases their element's type only: through memcpy, a store would make the compiler
// read every pointer and size again.
typedef float LooseFloats __attribute__((vector_size(kRegister), aligned(sizeof(float))));
typedef double LooseDoubles __attribute__((vector_size(kRegister), aligned(sizeof(double))));
typedef uint16_t LooseHalves __attribute__((vector_size(kRegister / 2), aligned(sizeof(uint16_t))));

template <class H>
INLINE Halves load_halves(const H* p) {
  return *reinterpret_cast<const LooseHalves*>(&p->bits);
}
template <class H>
INLINE void store_halves(H* p, Halves v) {
  *reinterpret_cast<LooseHalves*>(&p->bits) = v;
}

// GCC's __builtin_convertvector widens by halves.
INLINE Bits widen_bits(Halves h) {
#if defined(BATCHNORM_AVX512)
  return reinterpret_cast<Bits>(_mm512_cvtepu16_epi32(reinterpret_cast<__m256i>(h)));
#elif defined(__AVX2__)
  return reinterpret_cast<Bits>(_mm256_cvtepu16_epi32(reinterpret_cast<__m128i>(h)));
#else
  return __builtin_convertvector(h, Bits);
#endif
}
INLINE Floats widen(Halves h, bfloat16) { return as_floats(widen_bits(h) << 16); }

// To nearest, ties to even; subnormal numbers stay.
INLINE Halves narrow_by_integers(Floats f) {
  Bits b = as_bits(f);
  Bits rounded = (b + 0x7fff + ((b >> 16) & 1)) >> 16;
  Bits bits = f == f ? rounded : Bits{} + 0x7fc0;
#if defined(__AVX2__) && !defined(BATCHNORM_AVX512)
  const auto v = (__m256i)bits;  // each below 2¹⁶, so that packing saturates nothing
  return (Halves)_mm256_castsi256_si128(_mm256_permute4x64_epi64(_mm256_packus_epi32(v, v), 0x08));
#else
  return __builtin_convertvector(bits, Halves);
#endif
}

INLINE Halves narrow(Floats f, bfloat16) {
#if defined(BATCHNORM_AVX512) && defined(__AVX512BF16__) && defined(__AVX512DQ__)
  constexpr int kSubnormal = 0x20;
  const auto v = reinterpret_cast<__m512>(f);
  // the instruction is right but for subnormal numbers, which it takes for zero
  if (__builtin_expect(_mm512_fpclass_ps_mask(v, kSubnormal) == 0, 1)) {
    return (Halves)_mm512_cvtneps_pbh(v);
  }
#endif
  return narrow_by_integers(f);
}

#if defined(BATCHNORM_AVX512)
INLINE Floats widen(Halves h, float16) {
  return reinterpret_cast<Floats>(_mm512_cvtph_ps(reinterpret_cast<__m256i>(h)));
}
INLINE Halves narrow(Floats f, float16) {
  return reinterpret_cast<Halves>(_mm512_cvtps_ph(reinterpret_cast<__m512>(f), _MM_FROUND_TO_NEAREST_INT));
}
#elif defined(__AVX2__) && defined(__F16C__)
INLINE Floats widen(Halves h, float16) {
  return reinterpret_cast<Floats>(_mm256_cvtph_ps(reinterpret_cast<__m128i>(h)));
}
INLINE Halves narrow(Floats f, float16) {
  return reinterpret_cast<Halves>(_mm256_cvtps_ph(reinterpret_cast<__m256>(f), _MM_FROUND_TO_NEAREST_INT));
}
#else
INLINE Floats widen(Halves h, float16) {
  // The exponent is shifted into place and scaled by 2^112, which also makes subnormal numbers normal.
  Bits b = widen_bits(h);
  Bits sign = (b & 0x8000) << 16;
  Bits magnitude = (b & 0x7fff) << 13;
  Floats scaled = as_floats(magnitude) * 0x1p112f;
  Bits special = magnitude | 0x7f800000;  // Inf and NaN
  return as_floats(((b & 0x7c00) == 0x7c00 ? special : as_bits(scaled)) | sign);
}
INLINE Halves narrow(Floats f, float16) {
  Bits b = as_bits(f);
  Bits sign = (b >> 16) & 0x8000;
  Bits magnitude = b & 0x7fffffff;
  Floats a = as_floats(magnitude);
  // Adding 2^(e+13) rounds to the 10 bits that a half keeps; below 2^-14 the unit in the last place is constant.
  Bits exponent = magnitude & 0x7f800000;
  Bits base = (exponent < 0x38800000 ? Bits{} + 0x38800000 : exponent) + (13u << 23);
  Floats rounded = (a + as_floats(base)) - as_floats(base);
  Floats scaled = rounded * 0x1p-112f;
  Bits half = as_bits(scaled) >> 13;
  half = rounded < 65520.0f ? half : Bits{} + 0x7c00;
  half = f == f ? half : Bits{} + 0x7e00;
  return __builtin_convertvector(half | sign, Halves);
}
#endif

INLINE Floats load(const float* p, all_lanes<float>) { return *reinterpret_cast<const LooseFloats*>(p); }
INLINE Doubles load(const double* p, all_lanes<double>) { return *reinterpret_cast<const LooseDoubles*>(p); }
template <class H>
INLINE Floats load(const H* p, all_lanes<float>) {
  return widen(load_halves(p), H{});
}
INLINE void store(float* p, Floats v, all_lanes<float>) { *reinterpret_cast<LooseFloats*>(p) = v; }
INLINE void store(double* p, Doubles v, all_lanes<double>) { *reinterpret_cast<LooseDoubles*>(p) = v; }
template <class H>
INLINE void store(H* p, Floats v, all_lanes<float>) {
  store_halves(p, narrow(v, H{}));
}

// ---- loads and stores of the first `n` lanes

#if defined(BATCHNORM_AVX512)
INLINE Floats load(const float* p, int n) {
  return reinterpret_cast<Floats>(_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p));
}
INLINE Doubles load(const double* p, int n) {
  return reinterpret_cast<Doubles>(_mm512_maskz_loadu_pd(static_cast<__mmask8>((1u << n) - 1), p));
}
template <class H>
INLINE Floats load(const H* p, int n) {
  return widen(reinterpret_cast<Halves>(_mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << n) - 1), p)), H{});
}
INLINE void store(float* p, Floats v, int n) {
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), reinterpret_cast<__m512>(v));
}
INLINE void store(double* p, Doubles v, int n) {
  _mm512_mask_storeu_pd(p, static_cast<__mmask8>((1u << n) - 1), reinterpret_cast<__m512d>(v));
}
template <class H>
INLINE void store(H* p, Floats v, int n) {
  auto h = reinterpret_cast<__m256i>(narrow(v, H{}));
  _mm256_mask_storeu_epi16(p, static_cast<__mmask16>((1u << n) - 1), h);
}
#else
// Copies n values in pieces of a power of two: a call of memcpy would cost more than the arithmetic.
template <class T>
INLINE void copy_few(T* to, const T* from, int n) {
  int i = 0;
  auto piece = [&](auto size) {
    if constexpr (size < lanes<real<T>>) {
      if (n & size) std::memcpy(to + i, from + i, size * sizeof(T)), i += size;
    }
  };
  piece(std::integral_constant<int, 8>{});
  piece(std::integral_constant<int, 4>{});
  piece(std::integral_constant<int, 2>{});
  piece(std::integral_constant<int, 1>{});
}
#if defined(__AVX2__)
// The last -1 that a load of kMask + 8 - n sees is in lane n - 1.
alignas(32) constexpr int32_t kMask[16] = {-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0};
INLINE Floats load(const float* p, int n) {
  return (Floats)_mm256_maskload_ps(p, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kMask + 8 - n)));
}
INLINE Doubles load(const double* p, int n) {
  return (Doubles)_mm256_maskload_pd(p, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kMask + 8 - 2 * n)));
}
#else
INLINE Floats load(const float* p, int n) {
  float whole[lanes<float>] = {};
  copy_few(whole, p, n);
  return load(whole, all_lanes<float>{});
}
INLINE Doubles load(const double* p, int n) {
  double whole[lanes<double>] = {};
  copy_few(whole, p, n);
  return load(whole, all_lanes<double>{});
}
#endif
template <class H>
INLINE Floats load(const H* p, int n) {
  H whole[lanes<float>] = {};
  copy_few(whole, p, n);
  return load(whole, all_lanes<float>{});
}
template <class T>
INLINE void store(T* p, vector<real<T>> v, int n) {
  T whole[lanes<real<T>>];
  store(whole, v, all_lanes<real<T>>{});
  copy_few(p, whole, n);
}
#endif

// A vector's worth of doubles from floats or doubles.
typedef float DoublesAsFloats __attribute__((vector_size(kRegister / 2), aligned(sizeof(float))));
INLINE Doubles load_doubles(const float* p) {
  return __builtin_convertvector(*reinterpret_cast<const DoublesAsFloats*>(p), Doubles);
}
INLINE Doubles load_doubles(const double* p) { return load(p, all_lanes<double>{}); }

// `v` with zeros from lane `n` on.
template <class R>
INLINE vector<R> first_lanes(vector<R> v, all_lanes<R>) {
  return v;
}
INLINE Floats first_lanes(Floats v, int n) {
  Bits index;
  for (int i = 0; i < lanes<float>; ++i) index[i] = i;
  return index < static_cast<uint32_t>(n) ? v : Floats{};
}
INLINE Doubles first_lanes(Doubles v, int n) {
  Doubles index;
  for (int i = 0; i < lanes<double>; ++i) index[i] = i;
  return index < static_cast<double>(n) ? v : Doubles{};
}

// The sum of all lanes in double, by halves: always in the same order.
INLINE double total(Doubles v) {
  constexpr int n = lanes<double>;
  double part[n];
  for (int i = 0; i < n; ++i) part[i] = v[i];
  for (int width = n / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) part[i] += part[i + width];
  }
  return part[0];
}
INLINE double total(Floats v) {
  typedef float HalfFloats __attribute__((vector_size(kRegister / 2)));
  HalfFloats half[2];
  std::memcpy(half, &v, sizeof v);
  return total(__builtin_convertvector(half[0], Doubles) + __builtin_convertvector(half[1], Doubles));
}

template <class T>
INLINE real<T> load_one(const T* p) {
  if constexpr (std::is_same_v<T, float> || std::is_same_v<T, double>) {
    return *p;
  } else {
    return load(p, 1)[0];
  }
}

template <class T>
INLINE void store_one(T* p, double value) {
  if constexpr (std::is_same_v<T, float> || std::is_same_v<T, double>) {
    *p = static_cast<T>(value);
  } else {
    store(p, broadcast(static_cast<float>(value)), 1);
  }
}

// ---- activations: act(z), and g·act′(z). Kinks go as torch's do, and NaN stays NaN.

enum class Activation : int { none, relu, relu6, leaky_relu, silu, gelu, hardswish };

constexpr double kSlope = 0.01;  // torch's default for leaky_relu

template <class F>
INLINE Doubles each_lane(Doubles v, F f) {
  for (int i = 0; i < lanes<double>; ++i) v[i] = f(v[i]);
  return v;
}

INLINE Doubles exp(Doubles z) {
  return each_lane(z, [](double v) { return std::exp(v); });
}

// eᶻ within 2 ulp on [-87, 88], held at the ends beyond.
INLINE Floats exp(Floats z) {
  z = z < -87.0f ? broadcast(-87.0f) : z;
  z = z > 88.0f ? broadcast(88.0f) : z;
  constexpr float kRound = 12582912.0f;  // 1.5·2²³: adding it leaves the nearest integer in the low bits
  Floats shifted = z * 1.4426950408889634f + kRound;
  Floats n = shifted - kRound;
  // ln 2 in two parts, the first exact in few enough bits that its product with n is exact
  Floats r = z - n * 0.693359375f;
  r = r + n * 2.1219444005469057e-4f;
  // Taylor to r⁷: with |r| ≤ ln2/2 the rest is below 6e-9
  Floats p = r * (1.0f / 5040) + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r * r + r + 1.0f;
  return p * as_floats((as_bits(shifted) << 23) + (127u << 23));
}

template <class V>
INLINE V sigmoid(V z) {
  return 1 / (1 + exp(-z));
}

// Φ(z) and φ(z) of the standard normal distribution.
INLINE void normal(Doubles z, Doubles& cumulative, Doubles& density) {
  cumulative = each_lane(z, [](double v) { return 0.5 * std::erfc(-v * 0.7071067811865476); });
  density = each_lane(z, [](double v) { return std::exp(-0.5 * v * v) * 0.3989422804014327; });
}
INLINE void normal(Floats z, Floats& cumulative, Floats& density) {
  Floats u = z < 0.0f ? -z : z;
  Floats e = exp(-0.5f * z * z);
  // Φ(−u)·exp(u²/2) = t·P(t), t = 1/(1 + 0.26·u): least squares reweighted towards equal relative error over u in
  // [0, 14] against scipy's erfcx; the largest error is 2.5e-8.
  Floats t = 1.0f / (1.0f + 0.26f * u);
  Floats p = t * 0.0305052053f - 0.152830308f;
  p = p * t + 0.251494201f;
  p = p * t - 0.150952116f;
  p = p * t + 0.160949908f;
  p = p * t + 0.0510268607f;
  p = p * t + 0.103030451f;
  p = p * t + 0.103016725f;
  p = p * t + 0.103759061f;
  Floats tail = p * t * e;
  cumulative = z < 0.0f ? tail : 1.0f - tail;
  density = e * 0.3989422804014327f;
}

template <class V>
INLINE V activate(Activation activation, V z) {
  using R = std::remove_reference_t<decltype(z[0])>;
  const V zero{};
  switch (activation) {
    case Activation::none:
      return z;
    case Activation::relu:
      return z < zero ? zero : z;
    case Activation::relu6: {
      const V six = zero + R(6);
      return z < zero ? zero : (z > six ? six : z);
    }
    case Activation::leaky_relu:
      return z > zero ? z : z * R(kSlope);
    case Activation::silu:
      return z * sigmoid(z);
    case Activation::gelu: {
      V cumulative, density;
      normal(z, cumulative, density);
      return z * cumulative;
    }
    case Activation::hardswish: {
      const V one = zero + R(1);
      V sixth = (z + R(3)) * R(1.0 / 6);
      V held = sixth > one ? one : sixth;
      return z * (sixth < zero ? zero : held);
    }
  }
  return z;
}

// The activation of a loop: known to the compiler, or looked up for each vector.
template <Activation known>
struct Known {};
struct LookedUp {
  Activation activation;
};
template <class V, Activation known>
INLINE V activate(Known<known>, V z) {
  return activate(known, z);
}
template <class V>
INLINE V activate(LookedUp a, V z) {
  return activate(a.activation, z);
}

// For relu, relu6 and leaky_relu, z may be the output as well: the derivative is the same.
template <class V>
INLINE V backprop(Activation activation, V g, V z) {
  using R = std::remove_reference_t<decltype(z[0])>;
  const V zero{};
  switch (activation) {
    case Activation::none:
      return g;
    case Activation::relu:
      return z <= zero ? zero : g;
    case Activation::relu6:
      return z <= zero ? zero : (z >= zero + R(6) ? zero : g);
    case Activation::leaky_relu:
      return z > zero ? g : g * R(kSlope);
    case Activation::silu: {
      V s = sigmoid(z);
      return g * (s * (1 + z * (1 - s)));
    }
    case Activation::gelu: {
      V cumulative, density;
      normal(z, cumulative, density);
      return g * (cumulative + z * density);
    }
    case Activation::hardswish: {
      V middle = g * (z * R(1.0 / 3) + R(0.5));
      return z < zero - R(3) ? zero : (z > zero + R(3) ? g : middle);
    }
  }
  return g;
}

template <class V, Activation known>
INLINE V backprop(Known<known>, V g, V z) {
  return backprop(known, g, z);
}
template <class V>
INLINE V backprop(LookedUp a, V g, V z) {
  return backprop(a.activation, g, z);
}

}  // namespace batchnorm
