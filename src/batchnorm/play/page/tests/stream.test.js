import assert from "node:assert/strict";
import { test } from "node:test";
import { evaluate, moments } from "../normalise.js";
import { EPOCH, after, calibrated, train, truth } from "../stream.js";

const settings = { steps: 100, momentum: 0.1, batchSize: 8, single: "none" };

test("a small momentum lags behind, a larger one follows", () => {
  const distance = (momentum) => Math.abs(train({ ...settings, momentum }).statistics.mean[0] - truth(100).mean);
  assert.ok(distance(0.003) > 1.5);
  assert.ok(distance(0.1) < 0.8);
});

test("a last batch of one ends training, or is passed over", () => {
  const failed = train({ ...settings, single: "error" });
  assert.equal(failed.failed, EPOCH);
  assert.equal(failed.history.length, EPOCH - 1);
  const { batches, history } = train({ ...settings, single: "population" });
  assert.equal(batches[EPOCH - 1].length, 1);
  assert.equal(history[EPOCH - 1].runningMean, history[EPOCH - 2].runningMean);
});

test("calibration takes all batches as one, and mends evaluation", () => {
  const { batches, test } = after(100, 8);
  const all = moments(batches.flatMap((x) => [...x]));
  const { mean, variance } = calibrated(batches);
  assert.equal(mean[0], all.mean);
  assert.equal(variance[0], all.unbiased);
  const stale = moments(evaluate(test, train({ ...settings, momentum: 0.01 }).statistics));
  const exact = moments(evaluate(test, { mean, variance }));
  assert.ok(Math.abs(stale.mean) > 0.5);
  assert.ok(Math.abs(exact.mean) < 0.1);
  assert.ok(Math.abs(exact.variance - 1) < 0.15);
});
