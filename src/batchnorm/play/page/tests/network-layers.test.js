// Gradients of every layer against finite differences; batch norm's running statistics; micro-batches as one batch.
import assert from "node:assert/strict";
import { test } from "node:test";
import { ACTIVATIONS, BatchNorm, Linear, crossEntropy, mergeMoments } from "../network/layers.js";
import { channelMoments, random } from "../normalise.js";

const STEP = 1e-6;

function draws(length, seed) {
  const { normal } = random(seed);
  return Float64Array.from({ length }, normal);
}

/** The largest difference between the gradients of a layer and those by central differences of Σ weights · output. */
function gradientError(layer, parts, training = true) {
  const weights = parts.map((_, part) => draws(layer.forward(parts, training).outputs[part].length, 90 + part));
  const loss = () =>
    layer.forward(parts, training).outputs.reduce((sum, y, part) => sum + y.reduce((s, v, i) => s + v * weights[part][i], 0), 0);
  for (const { gradient } of layer.parameters) gradient.fill(0);
  const { saved } = layer.forward(parts, training);
  const found = layer.backward(weights, saved);
  const pairs = [...parts.map((values, part) => [values, found[part]]), ...layer.parameters.map(({ value, gradient }) => [value, gradient])];
  let worst = 0;
  for (const [values, gradient] of pairs) {
    for (let i = 0; i < values.length; i++) {
      const kept = values[i];
      values[i] = kept + STEP;
      const above = loss();
      values[i] = kept - STEP;
      const below = loss();
      values[i] = kept;
      worst = Math.max(worst, Math.abs((above - below) / (2 * STEP) - gradient[i]));
    }
  }
  return worst;
}

function linear() {
  const layer = new Linear(3, 4);
  layer.weight.value.set(draws(12, 1));
  layer.bias.value.set(draws(4, 2));
  return layer;
}

function batchNorm(options) {
  const layer = new BatchNorm(3, options);
  layer.weight.value.set([1.5, -0.7, 2]);
  layer.bias.value.set([0.1, 0.2, -0.3]);
  return layer;
}

for (const [name, layer, training] of [
  ["Linear", linear(), true],
  ["BatchNorm in training", batchNorm(), true],
  ["BatchNorm with a large eps", batchNorm({ eps: 0.5 }), true],
  ["BatchNorm in evaluation", batchNorm(), false],
  ["BatchNorm frozen", Object.assign(batchNorm(), { frozen: true }), true],
  ["ReLU", ACTIVATIONS.relu(), true],
  ["tanh", ACTIVATIONS.tanh(), true],
]) {
  test(`gradients of ${name} are those by finite differences`, () => {
    assert.ok(gradientError(layer, [draws(15, 3)], training) < 1e-7);
  });
  test(`gradients of ${name} over parts of several sizes`, () => {
    assert.ok(gradientError(layer, [draws(6, 4), draws(15, 5), draws(3, 6)], training) < 1e-7);
  });
}

test("the gradient of cross-entropy is that by finite differences", () => {
  const parts = [draws(12, 7), draws(6, 8)];
  const labels = [[0, 2, 1, 1], [2, 0]];
  const { gradients } = crossEntropy(parts, labels, 3);
  parts.forEach((logits, part) =>
    logits.forEach((kept, i) => {
      logits[i] = kept + STEP;
      const above = crossEntropy(parts, labels, 3).loss;
      logits[i] = kept - STEP;
      const below = crossEntropy(parts, labels, 3).loss;
      logits[i] = kept;
      assert.ok(Math.abs((above - below) / (2 * STEP) - gradients[part][i]) < 1e-8);
    }),
  );
});

test("cross-entropy of large outputs is finite", () => {
  const { loss } = crossEntropy([Float64Array.of(1000, -1000)], [[1]], 2);
  assert.equal(loss, 2000);
});

test("parts are normalised as one batch", () => {
  const x = draws(24, 9);
  const whole = batchNorm().forward([x], true).outputs[0];
  const parts = batchNorm().forward([x.subarray(0, 6), x.subarray(6, 9), x.subarray(9)], true).outputs;
  parts.flatMap((part) => [...part]).forEach((value, i) => assert.ok(Math.abs(value - whole[i]) < 1e-12));
});

test("moments far from 0 merge exactly", () => {
  const x = draws(60, 10).map((v) => v + 1e6);
  const merged = mergeMoments(channelMoments(x.subarray(0, 9), 3), channelMoments(x.subarray(9), 3));
  const whole = channelMoments(x, 3);
  for (let c = 0; c < 3; c++) assert.ok(Math.abs(merged.unbiased[c] / whole.unbiased[c] - 1) < 1e-9);
});

test("training moves the running statistics, evaluation and a frozen layer do not", () => {
  const x = draws(15, 11);
  const { mean, unbiased } = channelMoments(x, 3);
  const layer = batchNorm();
  layer.forward([x], true);
  for (let c = 0; c < 3; c++) {
    assert.ok(Math.abs(layer.statistics.mean[c] - 0.1 * mean[c]) < 1e-15);
    assert.ok(Math.abs(layer.statistics.variance[c] - (0.9 + 0.1 * unbiased[c])) < 1e-15);
  }
  const kept = structuredClone(layer.statistics);
  layer.forward([x], false);
  layer.frozen = true;
  layer.forward([x], true);
  assert.deepEqual(layer.statistics, kept);
});

test("a channel with NaN is skipped, or not, as the layer is told", () => {
  const x = draws(15, 12);
  x[4] = NaN; // channel 1
  const [theirs, ours] = [batchNorm(), batchNorm({ nonfinite: "skip" })];
  theirs.forward([x], true);
  ours.forward([x], true);
  assert.deepEqual([...theirs.statistics.mean].map(Number.isFinite), [true, false, true]);
  assert.equal(ours.statistics.mean[1], 0);
  assert.equal(ours.statistics.variance[1], 1);
  assert.equal(ours.statistics.mean[0], theirs.statistics.mean[0]);
  assert.equal(ours.skipped, 1);
});

test("one value per channel is an error in training", () => {
  assert.throws(() => batchNorm().forward([draws(3, 13)], true), /more than 1 value/);
});

test("ReLU keeps NaN, so a network that diverged shows it", () => {
  const [y] = ACTIVATIONS.relu().forward([Float64Array.of(NaN, -1, 2)]).outputs;
  assert.deepEqual([...y], [NaN, 0, 2]);
});
