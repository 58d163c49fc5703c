// Networks in training: learning, vanishing and exploding gradients, divergence, and the same numbers from the same seed.
import assert from "node:assert/strict";
import { test } from "node:test";
import { Comparison, relative } from "../network/comparison.js";
import { DATASETS, dataset } from "../network/data.js";
import { dependences, passes } from "../network/dependence.js";
import { freezing, microBatches, nanBatch, padding, sortedClasses, sortedStatistics } from "../network/faults.js";
import { Batches } from "../network/training.js";

function trained(settings, steps) {
  const comparison = new Comparison(settings);
  for (let step = 0; step < steps; step++) comparison.step();
  return comparison.snapshot().arms;
}

test("at the default settings only the network with batch norm learns, and gradients by layer show why", () => {
  const [plain, norm] = trained({}, 500);
  assert.ok(norm.accuracy > 0.95, `with batch norm ${norm.accuracy}`);
  assert.ok(plain.accuracy < 0.8, `without ${plain.accuracy}`);
  const [start, startNorm] = trained({}, 1);
  assert.ok(relative(start.gradients)[0] < 1e-3);
  assert.ok(relative(startNorm.gradients)[0] > 0.1);
  assert.ok(start.spreads.at(-1) < 1e-3);
  assert.ok(startNorm.spreads.every((spread) => Math.abs(spread - 1) < 0.3));
});

test("large weights explode without batch norm", () => {
  const [plain, norm] = trained({ depth: 20, start: "large", rate: 0.01 }, 300);
  assert.ok(plain.divergedAt !== null || plain.accuracy < 0.9);
  assert.equal(norm.divergedAt, null);
  assert.ok(norm.accuracy > 0.9, `with batch norm ${norm.accuracy}`);
  const [start] = trained({ depth: 20, start: "large", rate: 0.01 }, 1);
  assert.ok(relative(start.gradients)[0] > 1e3);
});

test("a large learning rate diverges without batch norm", () => {
  const [plain, norm] = trained({ depth: 6, start: "he", rate: 0.3 }, 300);
  assert.ok(plain.divergedAt !== null || plain.accuracy < 0.8, `without ${plain.accuracy}`);
  assert.ok(norm.accuracy > 0.9, `with batch norm ${norm.accuracy}`);
});

test("He's first weights and a small rate do without batch norm", () => {
  const [plain, norm] = trained({ start: "he", rate: 0.01 }, 500);
  assert.ok(plain.accuracy > 0.95 && norm.accuracy > 0.95);
});

test("a shallow network at a small rate needs no batch norm", () => {
  const [plain, norm] = trained({ depth: 3, start: "he", rate: 0.03 }, 500);
  assert.ok(plain.accuracy > 0.95 && norm.accuracy > 0.95);
});

test("with batches of two batch norm does harm", () => {
  const [plain, norm] = trained({ depth: 3, start: "he", rate: 0.01, batchSize: 2 }, 600);
  assert.ok(plain.accuracy > norm.accuracy + 0.05, `${plain.accuracy} without, ${norm.accuracy} with`);
});

test("a network that diverged stands still", () => {
  const comparison = new Comparison({ depth: 20, start: "large", rate: 10 });
  for (let step = 0; step < 60; step++) comparison.step();
  const [{ divergedAt }] = comparison.snapshot().arms;
  assert.ok(divergedAt > 0 && divergedAt < 60);
  comparison.step();
  assert.equal(comparison.trainers[0].steps, divergedAt);
});

test("the same seed gives the same numbers, another seed others", () => {
  assert.deepEqual(trained({}, 20), trained({}, 20));
  assert.notDeepEqual(trained({}, 20), trained({ seed: 2 }, 20));
});

test("both networks begin with the same weights and see the same batches", () => {
  const { trainers } = new Comparison({});
  const linear = (trainer) => trainer.network.layers.filter((layer) => layer.inputs).map((layer) => layer.weight.value);
  assert.deepEqual(linear(trainers[0]), linear(trainers[1]));
  assert.deepEqual(trainers[0].batches.next(), trainers[1].batches.next());
});

test("history is thinned, and stays in order", () => {
  const comparison = new Comparison({ depth: 3, batchSize: 2 });
  for (let step = 0; step < 1500; step++) comparison.step();
  const { steps, losses } = comparison.snapshot().history;
  assert.ok(steps.length < 300 && steps.length === losses[0].length);
  assert.deepEqual(new Set(steps.slice(1).map((step, i) => step - steps[i])), new Set([8]));
  assert.ok(steps.at(-1) > 1480);
});

for (const name of DATASETS) {
  test(`${name}: 400 samples in training, 200 for testing, every class in both`, () => {
    const { features, classes, train, test: held } = dataset(name);
    for (const [{ inputs, labels }, samples] of [[train, 400], [held, 200]]) {
      assert.equal(labels.length, samples);
      assert.equal(inputs.length, samples * features);
      assert.equal(new Set(labels).size, classes);
      assert.ok(inputs.every((v) => Math.abs(v) < 2.5));
    }
    assert.deepEqual(dataset(name), dataset(name));
    assert.notDeepEqual(dataset(name, 2).train.labels, train.labels);
  });
}

test("digits are learned", () => {
  const [, norm] = trained({ data: "digits", depth: 3, rate: 0.1 }, 200);
  assert.ok(norm.accuracy > 0.85, `${norm.accuracy}`);
});

test("an epoch of batches has every sample once; an incomplete last batch is dropped", () => {
  const batches = new Batches(10, 3, { seed: 1 });
  const epoch = [batches.next(), batches.next(), batches.next()].flat();
  assert.equal(new Set(epoch).size, 9);
  assert.equal(batches.next().length, 3);
  assert.throws(() => new Batches(2, 3), /a batch of 3/);
});

test("faults: the wrong numbers are wrong, and the cures cure", () => {
  const nan = nanBatch({ bad: 5 });
  assert.ok(nan.means.theirs.slice(4).every(Number.isNaN) && nan.means.ours.every(Number.isFinite));
  assert.equal(nan.skipped, 1);

  const padded = padding({ shortest: 2 });
  assert.ok(Math.abs(padded.ours.output.mean) < 1e-12 && Math.abs(padded.theirs.output.mean) > 0.2);

  const { sorted, shuffled, exact } = sortedStatistics();
  assert.ok(Math.abs(sorted.at(-1) - exact.mean) > 1 && Math.abs(shuffled.at(-1) - exact.mean) < 0.5);
  const { accuracies } = sortedClasses();
  assert.ok(accuracies.shuffled > 0.9 && accuracies.sorted < accuracies.shuffled - 0.2, JSON.stringify(accuracies));

  assert.ok(accuracies.disturbed < accuracies.shuffled - 0.05, JSON.stringify(accuracies));
  assert.ok(Math.abs(accuracies.calibrated - accuracies.shuffled) < 0.03, JSON.stringify(accuracies));

  const { errors } = microBatches({ size: 4 });
  assert.ok(errors.added > 0.05 && errors.merged < 1e-12, JSON.stringify(errors));
  assert.ok(microBatches({ size: 32 }).errors.added < 1e-12);

  const frozen = freezing({ shift: 3 });
  assert.ok(Math.abs(frozen.ours.output - frozen.before) < 1e-12 && Math.abs(frozen.theirs.output - frozen.before) > 1);
});

test("each column of dependences is one backward pass; columns add up to 0; frozen samples are independent", () => {
  const x = [1, 2.5, -0.3, 4];
  const matrix = dependences(x, { gamma: 1.5 });
  const { dx } = passes(x, [0, 0, 1, 0], { gamma: 1.5 });
  assert.deepEqual(matrix.map((row) => row[2]), [...dx]);
  assert.ok(Math.abs(dx.reduce((a, b) => a + b)) < 1e-12);
  const frozen = dependences(x, { frozen: { mean: 0, variance: 1 }, eps: 0 });
  frozen.forEach((row, i) => row.forEach((v, j) => assert.equal(v, i === j ? 1 : 0)));
});
