// Batch normalization in float64, with torch's conventions. No DOM.
// A batch of shape (N, C) is a flat array, row after row: value of sample n and channel c at n * C + c.

export const EPS = 1e-5;

/** Mean and biased variance of one list of numbers, in two passes; `unbiased` divides by n − 1 (NaN for one value). */
export function moments(x) {
  const count = x.length;
  let sum = 0;
  for (const value of x) sum += value;
  const mean = sum / count;
  let m2 = 0;
  for (const value of x) m2 += (value - mean) ** 2;
  return { count, mean, variance: m2 / count, unbiased: count > 1 ? m2 / (count - 1) : NaN };
}

/** Every step of the formula for one list of numbers. */
export function normalise(x, { eps = EPS, gamma = 1, beta = 0 } = {}) {
  const { mean, variance } = moments(x);
  const deviation = Math.sqrt(variance + eps);
  const centred = Array.from(x, (value) => value - mean);
  const normalised = centred.map((value) => value / deviation);
  return { mean, variance, deviation, centred, normalised, output: normalised.map((value) => gamma * value + beta) };
}

/** Moments of each channel of a batch. `unbiased` is the variance that torch's running statistics take. */
export function channelMoments(x, channels) {
  const count = x.length / channels;
  const mean = new Float64Array(channels);
  const m2 = new Float64Array(channels);
  for (let i = 0; i < x.length; i++) mean[i % channels] += x[i];
  for (let c = 0; c < channels; c++) mean[c] /= count;
  for (let i = 0; i < x.length; i++) m2[i % channels] += (x[i] - mean[i % channels]) ** 2;
  return { count, mean, variance: m2.map((value) => value / count), unbiased: m2.map((value) => value / (count - 1)) };
}

/** Training: normalises a batch by its own moments. Returns what `backward` needs as well. */
export function forward(x, channels, { gamma = ones(channels), beta = zeros(channels), eps = EPS } = {}) {
  const { count, mean, variance, unbiased } = channelMoments(x, channels);
  const scale = variance.map((value) => 1 / Math.sqrt(value + eps));
  const normalised = new Float64Array(x.length);
  const output = new Float64Array(x.length);
  for (let i = 0; i < x.length; i++) {
    const c = i % channels;
    normalised[i] = (x[i] - mean[c]) * scale[c];
    output[i] = gamma[c] * normalised[i] + beta[c];
  }
  return { output, normalised, scale, gamma, channels, count, mean, variance, unbiased };
}

/** Gradients of a loss from its gradient `dy` at the output: dx = γ/σ · (dy − mean(dy) − x̂ · mean(dy · x̂)). */
export function backward(dy, { normalised, scale, gamma, channels, count }) {
  const dbeta = new Float64Array(channels);
  const dgamma = new Float64Array(channels);
  for (let i = 0; i < dy.length; i++) {
    dbeta[i % channels] += dy[i];
    dgamma[i % channels] += dy[i] * normalised[i];
  }
  const dx = new Float64Array(dy.length);
  for (let i = 0; i < dy.length; i++) {
    const c = i % channels;
    dx[i] = gamma[c] * scale[c] * (dy[i] - (dbeta[c] + normalised[i] * dgamma[c]) / count);
  }
  return { dx, dgamma, dbeta };
}

/** Running statistics as torch begins with them: mean 0, variance 1. */
export function running(channels) {
  return { mean: zeros(channels), variance: ones(channels) };
}

/** After a batch: (1 − momentum) · running + momentum · batch, with the batch's unbiased variance. */
export function update(statistics, batch, momentum) {
  for (let c = 0; c < statistics.mean.length; c++) {
    statistics.mean[c] += momentum * (batch.mean[c] - statistics.mean[c]);
    statistics.variance[c] += momentum * (batch.unbiased[c] - statistics.variance[c]);
  }
}

/** Evaluation: normalises by the running statistics. */
export function evaluate(x, { mean, variance }, { gamma = ones(mean.length), beta = zeros(mean.length), eps = EPS } = {}) {
  const channels = mean.length;
  return Float64Array.from(x, (value, i) => {
    const c = i % channels;
    return (gamma[c] * (value - mean[c])) / Math.sqrt(variance[c] + eps) + beta[c];
  });
}

/** Seeded random numbers (mulberry32): uniform in [0, 1), and from a normal distribution by Box and Muller. */
export function random(seed) {
  let state = seed >>> 0;
  const uniform = () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
  const normal = () => Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform());
  return { uniform, normal };
}

function zeros(n) {
  return new Float64Array(n);
}

function ones(n) {
  return new Float64Array(n).fill(1);
}
