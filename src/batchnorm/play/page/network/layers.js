/**
 * The layers of a small network, in float64, without a DOM.
 *
 * A layer takes a batch as a list of parts, each a Float64Array of rows: one part for an ordinary batch, several for a
 * big batch in micro-batches. Rows are independent in every layer but BatchNorm, which merges the moments of all parts.
 *
 *   forward(parts, training) → { outputs, saved }      backward(gradients, saved) → the gradients of the inputs
 *
 * Gradients of parameters add up until they are cleared, as in torch.
 */
import { EPS, channelMoments, running, update } from "../normalise.js";

/** A value that is trained, and its gradient. */
class Parameter {
  constructor(length, fill = 0) {
    this.value = new Float64Array(length).fill(fill);
    this.gradient = new Float64Array(length);
  }
}

/** y = x Wᵀ + b, with W of shape (outputs, inputs) as in torch. */
export class Linear {
  constructor(inputs, outputs) {
    this.inputs = inputs;
    this.outputs = outputs;
    this.weight = new Parameter(inputs * outputs);
    this.bias = new Parameter(outputs);
    this.parameters = [this.weight, this.bias];
  }

  forward(parts) {
    return { outputs: parts.map((x) => this.#rows(x)), saved: parts };
  }

  #rows(x) {
    const { inputs, outputs } = this;
    const weight = this.weight.value;
    const bias = this.bias.value;
    const rows = x.length / inputs;
    const y = new Float64Array(rows * outputs);
    for (let row = 0; row < rows; row++) {
      const from = row * inputs;
      for (let out = 0; out < outputs; out++) {
        const line = out * inputs;
        let sum = bias[out];
        for (let k = 0; k < inputs; k++) sum += x[from + k] * weight[line + k];
        y[row * outputs + out] = sum;
      }
    }
    return y;
  }

  backward(gradients, saved) {
    return gradients.map((dy, part) => this.#rowsBackward(dy, saved[part]));
  }

  #rowsBackward(dy, x) {
    const { inputs, outputs } = this;
    const { value: weight, gradient: dWeight } = this.weight;
    const dBias = this.bias.gradient;
    const dx = new Float64Array(x.length);
    for (let row = 0; row < dy.length / outputs; row++) {
      const from = row * inputs;
      for (let out = 0; out < outputs; out++) {
        const line = out * inputs;
        const d = dy[row * outputs + out];
        dBias[out] += d;
        for (let k = 0; k < inputs; k++) {
          dWeight[line + k] += d * x[from + k];
          dx[from + k] += d * weight[line + k];
        }
      }
    }
    return dx;
  }
}

/** A value and its channel, for every value of (rows, channels). */
function byChannel(x, channels, apply) {
  const y = new Float64Array(x.length);
  for (let start = 0; start < x.length; start += channels) {
    for (let c = 0; c < channels; c++) y[start + c] = apply(x[start + c], c);
  }
  return y;
}

/** The moments of two sets of values together (Chan, Golub and LeVeque 1979), per channel. */
export function mergeMoments(a, b) {
  const count = a.count + b.count;
  const mean = a.mean.map((m, c) => m + ((b.mean[c] - m) * b.count) / count);
  const between = a.mean.map((m, c) => ((b.mean[c] - m) ** 2 * a.count * b.count) / count);
  const m2 = between.map((m, c) => m + a.variance[c] * a.count + b.variance[c] * b.count);
  return { count, mean, variance: m2.map((m) => m / count), unbiased: m2.map((m) => m / (count - 1)) };
}

/**
 * Batch normalization (Ioffe and Szegedy 2015, algorithm 1): y = γ x̂ + β with x̂ = (x − μ) / √(σ² + eps), per channel.
 *
 * In training μ and σ² are those of the batch, and the running statistics are updated. In evaluation, or if frozen, μ
 * and σ² are the running statistics. `nonfinite`: "propagate" as torch, or "skip" as batchnorm's layers: a channel with
 * NaN or Inf in the batch keeps its running statistics.
 */
export class BatchNorm {
  constructor(channels, { eps = EPS, momentum = 0.1, nonfinite = "propagate" } = {}) {
    Object.assign(this, { channels, eps, momentum, nonfinite, frozen: false, skipped: 0 });
    this.weight = new Parameter(channels, 1);
    this.bias = new Parameter(channels);
    this.parameters = [this.weight, this.bias];
    this.statistics = running(channels);
  }

  forward(parts, training) {
    const byBatch = training && !this.frozen;
    const batch = byBatch ? parts.map((x) => channelMoments(x, this.channels)).reduce(mergeMoments) : null;
    if (batch && batch.count < 2) throw new RangeError("expected more than 1 value per channel when training");
    const { mean, variance } = batch ?? this.statistics;
    const scale = variance.map((v) => 1 / Math.sqrt(v + this.eps));
    if (batch) this.#remember(batch);

    const normalised = parts.map((x) => byChannel(x, this.channels, (v, c) => (v - mean[c]) * scale[c]));
    const [gamma, beta] = [this.weight.value, this.bias.value];
    const outputs = normalised.map((x) => byChannel(x, this.channels, (v, c) => gamma[c] * v + beta[c]));
    return { outputs, saved: { normalised, scale, count: batch?.count } };
  }

  #remember(batch) {
    const before = { mean: this.statistics.mean.slice(), variance: this.statistics.variance.slice() };
    update(this.statistics, batch, this.momentum);
    if (this.nonfinite !== "skip") return;
    const unfit = [...batch.mean.keys()].filter((c) => !Number.isFinite(batch.mean[c] + batch.unbiased[c]));
    for (const c of unfit) {
      this.statistics.mean[c] = before.mean[c];
      this.statistics.variance[c] = before.variance[c];
    }
    this.skipped += unfit.length > 0 ? 1 : 0;
  }

  /** dx = γ/√(σ² + eps) · (dy − mean(dy) − x̂·mean(dy·x̂)); by the running statistics, γ/√(σ² + eps) · dy. */
  backward(gradients, { normalised, scale, count }) {
    const { channels } = this;
    const sumOfDy = new Float64Array(channels);
    const sumOfProducts = new Float64Array(channels);
    gradients.forEach((dy, part) => {
      for (let i = 0; i < dy.length; i++) {
        sumOfDy[i % channels] += dy[i];
        sumOfProducts[i % channels] += dy[i] * normalised[part][i];
      }
    });
    for (let c = 0; c < channels; c++) {
      this.bias.gradient[c] += sumOfDy[c];
      this.weight.gradient[c] += sumOfProducts[c];
    }
    const gamma = this.weight.value;
    return gradients.map((dy, part) =>
      dy.map((d, i) => {
        const c = i % channels;
        const shared = count ? (sumOfDy[c] + normalised[part][i] * sumOfProducts[c]) / count : 0;
        return gamma[c] * scale[c] * (d - shared);
      }),
    );
  }
}

/** An activation, by its function and its derivative; the derivative is given the output. */
class Activation {
  parameters = [];

  constructor(apply, slope) {
    Object.assign(this, { apply, slope });
  }

  forward(parts) {
    const outputs = parts.map((x) => x.map(this.apply));
    return { outputs, saved: outputs };
  }

  backward(gradients, saved) {
    return gradients.map((dy, part) => dy.map((d, i) => d * this.slope(saved[part][i])));
  }
}

export const ACTIVATIONS = {
  relu: () => new Activation((x) => (x > 0 ? x : x === x ? 0 : x), (y) => (y > 0 ? 1 : 0)), // NaN stays NaN
  tanh: () => new Activation(Math.tanh, (y) => 1 - y * y),
};

/** Mean cross-entropy of softmax over all rows of all parts, and its gradient. */
export function crossEntropy(parts, labels, classes) {
  const total = labels.reduce((sum, part) => sum + part.length, 0);
  let loss = 0;
  const gradients = parts.map((logits, part) => {
    const gradient = softmax(logits, classes);
    labels[part].forEach((label, row) => {
      loss -= logOfSoftmax(logits, classes, row, label) / total;
      gradient[row * classes + label] -= 1;
    });
    return gradient.map((g) => g / total);
  });
  return { loss, gradients };
}

function logOfSoftmax(logits, classes, row, label) {
  const values = logits.subarray(row * classes, (row + 1) * classes);
  const top = values.reduce((a, b) => Math.max(a, b));
  return values[label] - top - Math.log(values.reduce((sum, v) => sum + Math.exp(v - top), 0));
}

/** The probabilities of the classes, row by row. */
export function softmax(logits, classes) {
  const probabilities = new Float64Array(logits.length);
  for (let start = 0; start < logits.length; start += classes) {
    const values = logits.subarray(start, start + classes);
    const top = values.reduce((a, b) => Math.max(a, b));
    const exponentials = values.map((v) => Math.exp(v - top));
    const sum = exponentials.reduce((a, b) => a + b);
    exponentials.forEach((e, k) => (probabilities[start + k] = e / sum));
  }
  return probabilities;
}
