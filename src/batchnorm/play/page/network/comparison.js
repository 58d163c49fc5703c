/** The same network with and without batch norm, trained side by side on the same batches, and the values that the page shows. */
import { DATASETS, dataset } from "./data.js";
import { softmax } from "./layers.js";
import { Trainer, build, mostLikely } from "./training.js";

export const ARMS = ["plain", "norm"];
export const BINS = 41;
export const RANGE = 4; // histograms span ±4; values beyond count in the outer bins
export const FIELD = 32; // the decision boundary is drawn from so many rows and columns
export const EXTENT = 1.8; // the plane shown is ±1.8 each way
const SMOOTHING = 0.9;
const HISTORY = 300;

export const DEFAULTS = {
  data: "moons",
  depth: 12,
  width: 16,
  activation: "relu",
  start: "torch",
  rate: 0.1,
  batchSize: 32,
  seed: 1,
};

export class Comparison {
  constructor(settings = {}) {
    this.settings = { ...DEFAULTS, ...settings };
    const { data, batchSize, rate, seed } = this.settings;
    if (!DATASETS.includes(data)) throw new RangeError(`no data set ${data}`);
    this.data = dataset(data, seed);
    this.trainers = ARMS.map((arm) => {
      const { features, classes } = this.data;
      const network = build({ ...this.settings, features, classes, norm: arm === "norm" });
      return new Trainer(this.data, network, { rate, batchSize, seed });
    });
    this.steps = 0;
    this.smoothed = ARMS.map(() => NaN);
    this.history = { stride: 1, steps: [], losses: ARMS.map(() => []) };
  }

  set rate(rate) {
    for (const { optimizer } of this.trainers) optimizer.rate = rate;
  }

  step() {
    this.steps += 1;
    this.trainers.forEach((trainer, arm) => {
      const loss = trainer.step();
      const before = this.smoothed[arm];
      this.smoothed[arm] = this.steps === 1 ? loss : SMOOTHING * before + (1 - SMOOTHING) * loss;
    });
    this.#record();
  }

  // Every stride-th step is kept; when these are too many, every second one is dropped.
  #record() {
    const { history } = this;
    if (this.steps % history.stride !== 0) return;
    history.steps.push(this.steps);
    history.losses.forEach((losses, arm) => losses.push(Number.isFinite(this.smoothed[arm]) ? this.smoothed[arm] : null));
    if (history.steps.length < HISTORY) return;
    const odd = (_, index) => index % 2 === 1;
    history.stride *= 2;
    history.steps = history.steps.filter(odd);
    history.losses = history.losses.map((losses) => losses.filter(odd));
  }

  /** All that a picture needs, as plain values that a worker can post. */
  snapshot() {
    const { features, classes } = this.data;
    return {
      steps: this.steps,
      history: { steps: [...this.history.steps], losses: this.history.losses.map((losses) => [...losses]) },
      arms: this.trainers.map((trainer, arm) => ({
        loss: this.smoothed[arm],
        accuracy: trainer.accuracy(),
        divergedAt: trainer.divergedAt,
        ...(trainer.tape ? byLayer(trainer.tape) : {}),
        ...(features === 2 ? { field: field(trainer.network, classes) } : { answers: answers(trainer) }),
      })),
    };
  }
}

/** For each hidden layer, at the input of its activation, over the last batch: the gradient, the spread, a histogram. */
export function byLayer(tape) {
  const hidden = tape.flatMap(({ gradients, layer }, index) =>
    layer.parameters.length === 0 ? [{ gradient: gradients[0], values: tape[index - 1].outputs[0], layer: tape[index - 1].layer }] : [],
  );
  return {
    gradients: hidden.map(({ gradient }) => rootMeanSquare(gradient)),
    spreads: hidden.map(({ values, layer }) => spread(values, layer.channels ?? layer.outputs)),
    histograms: hidden.map(({ values }) => histogram(values)),
  };
}

export function rootMeanSquare(values) {
  return Math.sqrt(values.reduce((sum, v) => sum + v * v, 0) / values.length);
}

/** Standard deviation of each unit over the batch; the root mean square of these over the units. */
export function spread(values, units) {
  const rows = values.length / units;
  const means = new Float64Array(units);
  values.forEach((v, i) => (means[i % units] += v / rows));
  return rootMeanSquare(values.map((v, i) => v - means[i % units]));
}

function histogram(values) {
  const shares = new Float32Array(BINS);
  for (const value of values) {
    const bin = Math.floor(((value + RANGE) / (2 * RANGE)) * BINS);
    shares[Math.min(Math.max(bin, 0), BINS - 1)] += 1 / values.length;
  }
  return shares;
}

/** The answer and its probability at each point of a square grid, row by row from the top left. */
function field(network, classes) {
  const points = new Float64Array(2 * FIELD * FIELD);
  for (let i = 0; i < FIELD * FIELD; i++) {
    points[2 * i] = EXTENT * (((i % FIELD) + 0.5) / FIELD) * 2 - EXTENT;
    points[2 * i + 1] = EXTENT - EXTENT * ((Math.floor(i / FIELD) + 0.5) / FIELD) * 2;
  }
  const outputs = network.evaluate(points);
  const probabilities = softmax(outputs, classes);
  const labels = mostLikely(outputs, classes);
  return { labels, sure: labels.map((label, row) => (label < 0 ? 0 : probabilities[row * classes + label])) };
}

const SHOWN = 24;

function answers({ network, data }) {
  const inputs = data.test.inputs.subarray(0, SHOWN * data.features);
  return mostLikely(network.evaluate(inputs), data.classes);
}

/** Gradients as multiples of the last hidden layer's. */
export function relative(gradients = []) {
  return gradients.map((g) => g / gradients[gradients.length - 1]);
}
