/** Networks of the layers, and training by mini-batch gradient descent with momentum. Seeded: same settings, same numbers. */
import { random } from "../normalise.js";
import { permutation, rowsOf } from "./data.js";
import { ACTIVATIONS, BatchNorm, Linear, crossEntropy } from "./layers.js";

/** Layers in a row. A forward pass returns a tape: each layer's outputs, and the values that its backward pass needs. */
export class Network {
  constructor(layers) {
    this.layers = layers;
    this.parameters = layers.flatMap((layer) => layer.parameters);
  }

  /** `parts` are the micro-batches of one batch; an ordinary batch is one part. */
  forward(parts, training) {
    const tape = [];
    let outputs = parts;
    for (const layer of this.layers) {
      let saved;
      ({ outputs, saved } = layer.forward(outputs, training));
      tape.push({ layer, outputs, saved });
    }
    return { outputs, tape };
  }

  /** Adds to the gradients of the parameters, and writes on the tape the gradient at the input of each layer. */
  backward(gradients, tape) {
    for (const entry of [...tape].reverse()) {
      gradients = entry.layer.backward(gradients, entry.saved);
      entry.gradients = gradients;
    }
    return gradients;
  }

  clearGradients() {
    for (const { gradient } of this.parameters) gradient.fill(0);
  }

  /** Outputs in evaluation: batch norms use their running statistics. */
  evaluate(inputs) {
    return this.forward([inputs], false).outputs[0];
  }
}

/** Initial weights: for a layer's number of inputs, a function that draws one weight, and whether biases are drawn too. */
export const STARTS = {
  // torch's nn.Linear: uniform in ±1/√inputs, a variance of 1/(3·inputs), too small for deep networks of ReLU
  torch: ({ uniform }, inputs) => ({ weight: () => (2 * uniform() - 1) / Math.sqrt(inputs), bias: true }),
  // He et al. 2015: a variance of 2/inputs keeps the size of the signal through ReLU
  he: ({ normal }, inputs) => ({ weight: () => normal() * Math.sqrt(2 / inputs), bias: false }),
  // twice that standard deviation: the signal doubles from layer to layer
  large: ({ normal }, inputs) => ({ weight: () => 2 * normal() * Math.sqrt(2 / inputs), bias: false }),
};

/** `depth` hidden layers of `width` units, Linear → BatchNorm (if `norm`) → activation; then Linear to the classes. */
export function build({ features, classes, depth, width, activation, norm, start, seed }) {
  const draws = random(seed);
  const layers = [];
  for (let index = 0; index < depth; index++) {
    layers.push(begun(new Linear(index === 0 ? features : width, width), start, draws));
    if (norm) layers.push(new BatchNorm(width));
    layers.push(ACTIVATIONS[activation]());
  }
  return new Network([...layers, begun(new Linear(width, classes), start, draws)]);
}

function begun(linear, start, draws) {
  const { weight, bias } = STARTS[start](draws, linear.inputs);
  linear.weight.value.forEach((_, i, values) => (values[i] = weight()));
  if (bias) linear.bias.value.forEach((_, i, values) => (values[i] = weight()));
  return linear;
}

/** torch's SGD with momentum: v ← momentum·v + gradient; value ← value − rate·v. */
export class Momentum {
  constructor(parameters, { rate, momentum = 0.9 }) {
    this.parameters = parameters;
    this.velocities = parameters.map(({ value }) => new Float64Array(value.length));
    this.rate = rate;
    this.momentum = momentum;
  }

  step() {
    this.parameters.forEach(({ value, gradient }, index) => {
      const velocity = this.velocities[index];
      for (let i = 0; i < value.length; i++) {
        velocity[i] = this.momentum * velocity[i] + gradient[i];
        value[i] -= this.rate * velocity[i];
      }
    });
  }
}

/** Batches of indices, epoch after epoch: shuffled each time, or always as `order` says; an incomplete last one is dropped. */
export class Batches {
  constructor(samples, size, { seed = 1, order = null } = {}) {
    if (size > samples) throw new RangeError(`a batch of ${size} from ${samples} samples`);
    Object.assign(this, { samples, size, order, uniform: random(seed).uniform, queue: [] });
  }

  next() {
    if (this.queue.length < this.size) this.queue = [...(this.order ?? permutation(this.samples, this.uniform))];
    return this.queue.splice(0, this.size);
  }
}

/** A network in training. Once its loss is not finite it has diverged, and its training stops. */
export class Trainer {
  constructor(data, network, { rate, momentum, batchSize, seed, order }) {
    Object.assign(this, { data, network, steps: 0, loss: NaN, tape: null, divergedAt: null });
    this.optimizer = new Momentum(network.parameters, { rate, momentum });
    this.batches = new Batches(data.train.labels.length, batchSize, { seed, order });
  }

  step() {
    if (this.divergedAt !== null) return this.loss;
    const { features, classes, train } = this.data;
    const indices = this.batches.next();
    const { outputs, tape } = this.network.forward([rowsOf(train.inputs, features, indices)], true);
    const { loss, gradients } = crossEntropy(outputs, [indices.map((i) => train.labels[i])], classes);
    this.steps += 1;
    this.loss = loss;
    if (!Number.isFinite(loss)) {
      this.divergedAt = this.steps;
      return loss;
    }
    this.network.clearGradients();
    this.network.backward(gradients, tape);
    this.optimizer.step();
    this.tape = tape;
    return loss;
  }

  /** The share of right answers in evaluation. */
  accuracy({ inputs, labels } = this.data.test) {
    const predicted = mostLikely(this.network.evaluate(inputs), this.data.classes);
    return predicted.filter((label, row) => label === labels[row]).length / labels.length;
  }
}

/** The class with the largest output, row by row; a row with a NaN has none (−1). */
export function mostLikely(outputs, classes) {
  return Array.from({ length: outputs.length / classes }, (_, row) => {
    const values = outputs.subarray(row * classes, (row + 1) * classes);
    return values.indexOf(values.reduce((a, b) => Math.max(a, b)));
  });
}
