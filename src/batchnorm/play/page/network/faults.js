/** Five faults and their cures, computed as the layers compute them. Each result holds the data, for tests to compute again. */
import { channelMoments, moments, random } from "../normalise.js";
import { dataset, rowsOf } from "./data.js";
import { BatchNorm, crossEntropy } from "./layers.js";
import { Trainer, build } from "./training.js";

/** Batches of three channels; the batch number `bad` has a NaN in channel 1. */
export function nanBatch({ bad = 20, batches = 40, seed = 3 } = {}) {
  const { normal } = random(seed);
  const theirs = new BatchNorm(3);
  const ours = new BatchNorm(3, { nonfinite: "skip" });
  const inputs = [];
  const means = { theirs: [], ours: [] };
  for (let batch = 1; batch <= batches; batch++) {
    const x = Float64Array.from({ length: 16 * 3 }, (_, i) => normal() + 1 + (i % 3));
    if (batch === bad) x[3 * 5 + 1] = NaN;
    inputs.push(x);
    theirs.forward([x], true);
    ours.forward([x], true);
    means.theirs.push(theirs.statistics.mean[1]);
    means.ours.push(ours.statistics.mean[1]);
  }
  const sample = Float64Array.of(1, 2, 3);
  const evaluate = (layer) => layer.forward([sample], false).outputs[0];
  return { inputs, means, skipped: ours.skipped, sample, outputs: { theirs: evaluate(theirs), ours: evaluate(ours) } };
}

const LONGEST = 12;

/** Sequences (N, 1, 12) filled up with zeros; they have from `shortest` to 12 values. */
export function padding({ shortest = 3, seed = 3 } = {}) {
  const { uniform, normal } = random(seed);
  const lengths = Array.from({ length: 8 }, (_, row) => (row === 0 ? LONGEST : shortest + Math.floor(uniform() * (LONGEST + 1 - shortest))));
  const x = lengths.flatMap((length) => Array.from({ length: LONGEST }, (_, k) => [normal(), k < length]).map(([v, real]) => (real ? 3 + v : 0)));
  const real = x.map((_, i) => i % LONGEST < lengths[Math.floor(i / LONGEST)]);
  const values = x.filter((_, i) => real[i]);
  const by = (chosen) => {
    const { mean, variance } = moments(chosen);
    return { mean, variance, y: x.map((v) => (v - mean) / Math.sqrt(variance + 1e-5)) };
  };
  const theirs = by(x);
  const ours = by(values);
  ours.y = ours.y.map((v, i) => (real[i] ? v : 0));
  const ofReal = ({ y }) => moments(y.filter((_, i) => real[i]));
  return { x, lengths, real, theirs: { ...theirs, output: ofReal(theirs) }, ours: { ...ours, output: ofReal(ours) } };
}

/**
 * Accuracies of a small network: trained for some epochs on batches of one class each; trained on shuffled batches;
 * the second one after a pass over sorted batches in training mode, which changes only its running statistics; and that
 * one after calibration.
 */
export function sortedClasses({ epochs = 10, batchSize = 16, seed = 3 } = {}) {
  const data = dataset("clusters", seed);
  const { labels, inputs } = data.train;
  const sorted = [...labels.keys()].sort((a, b) => labels[a] - labels[b] || a - b);
  const trained = (order) => {
    const settings = { features: 2, classes: data.classes, depth: 1, width: 16, activation: "relu", start: "torch", norm: true, seed };
    const trainer = new Trainer(data, build(settings), { rate: 0.05, batchSize, seed, order });
    const steps = epochs * Math.floor(labels.length / batchSize);
    for (let step = 0; step < steps; step++) trainer.step();
    return trainer;
  };
  const [inOrder, trainer] = [trained(sorted), trained(null)];
  const accuracies = { sorted: inOrder.accuracy(), shuffled: trainer.accuracy() };
  const { network } = trainer;
  for (let start = 0; start < sorted.length; start += batchSize) {
    network.forward([rowsOf(inputs, 2, sorted.slice(start, start + batchSize))], true); // nothing is learned
  }
  accuracies.disturbed = trainer.accuracy();
  calibrate(network, inputs);
  accuracies.calibrated = trainer.accuracy();
  return { accuracies };
}

/** Running statistics of a stream of batches of one channel: sorted by class, shuffled, and exact. */
export function sortedStatistics({ batchSize = 16, seed = 3 } = {}) {
  const { uniform, normal } = random(seed);
  const x = Float64Array.from({ length: 640 }, (_, i) => normal() + (i < 320 ? -2 : 2));
  const shuffled = x.slice();
  for (let last = x.length - 1; last > 0; last--) {
    const other = Math.floor(uniform() * (last + 1));
    [shuffled[last], shuffled[other]] = [shuffled[other], shuffled[last]];
  }
  const means = (values) => {
    const layer = new BatchNorm(1);
    return Array.from({ length: values.length / batchSize }, (_, batch) => {
      layer.forward([values.subarray(batch * batchSize, (batch + 1) * batchSize)], true);
      return layer.statistics.mean[0];
    });
  };
  const { mean, variance, unbiased } = moments(x);
  return { x, sorted: means(x), shuffled: means(shuffled), exact: { mean, variance, unbiased } };
}

/** Exact statistics of the first batch norm of a network whose layers before it have none, from all `inputs`. */
function calibrate(network, inputs) {
  let values = [inputs];
  for (const layer of network.layers) {
    if (layer instanceof BatchNorm) {
      const { mean, unbiased } = channelMoments(values[0], layer.channels);
      layer.statistics = { mean, variance: unbiased };
      return;
    }
    values = layer.forward(values, false).outputs;
  }
}

/** The gradient of 32 samples: at once, added up over micro-batches, and by micro-batches that merge their moments. */
export function microBatches({ size = 4, seed = 3 } = {}) {
  const data = dataset("moons", seed);
  const inputs = rowsOf(data.train.inputs, 2, [...Array(32).keys()]);
  const labels = Array.from(data.train.labels.subarray(0, 32));
  const layers = () => build({ features: 2, classes: 2, depth: 3, width: 8, activation: "tanh", norm: true, start: "he", seed });
  const parts = [];
  for (let start = 0; start < 32; start += size) {
    parts.push({ x: inputs.subarray(start * 2, (start + size) * 2), labels: labels.slice(start, start + size) });
  }
  const whole = gradientOf(layers(), [[{ x: inputs, labels }]]);
  const added = gradientOf(layers(), parts.map((part) => [part]));
  const merged = gradientOf(layers(), [parts]);
  return {
    inputs,
    labels,
    network: layers(),
    whole,
    added,
    merged,
    errors: { added: relativeError(added, whole), merged: relativeError(merged, whole) },
  };
}

/** Each batch is a list of parts; losses are averaged over batches, as gradient accumulation does. */
function gradientOf(network, batches) {
  for (const parts of batches) {
    const { outputs, tape } = network.forward(parts.map(({ x }) => x), true);
    const { gradients } = crossEntropy(outputs, parts.map(({ labels }) => labels), 2);
    network.backward(gradients.map((part) => part.map((g) => g / batches.length)), tape);
  }
  return network.parameters.flatMap(({ gradient }) => [...gradient]);
}

function relativeError(found, expected) {
  const norm = (values) => Math.sqrt(values.reduce((sum, v) => sum + v * v, 0));
  return norm(found.map((v, i) => v - expected[i])) / norm(expected);
}

/** A layer that has learned from data around 0 is trained on, in small batches of data around `shift`. */
export function freezing({ shift = 3, batches = 30, seed = 3 } = {}) {
  const { normal } = random(seed);
  const first = Float64Array.from({ length: 512 }, normal);
  const later = Array.from({ length: batches }, () => Float64Array.from({ length: 4 }, () => shift + normal()));
  const learned = () => {
    const layer = new BatchNorm(1);
    const { mean, unbiased } = channelMoments(first, 1);
    layer.statistics = { mean, variance: unbiased };
    return layer;
  };
  const sample = Float64Array.of(1);
  const trainedOn = (frozen) => {
    const layer = learned();
    layer.frozen = frozen;
    const means = later.map((x) => (layer.forward([x], true), layer.statistics.mean[0]));
    return { means, output: layer.forward([sample], false).outputs[0][0] };
  };
  return { first, later, before: learned().forward([sample], false).outputs[0][0], theirs: trainedOn(false), ours: trainedOn(true) };
}
