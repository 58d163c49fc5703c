// Batches that one channel of a network sees while the layers before it learn, and the running statistics of batch norm. No DOM.
import { channelMoments, forward, moments, random, running, update } from "./normalise.js";

export const STEPS = 200;
export const EPOCH = 20; // steps; an epoch may end with a batch of one
const TEST = 2000;

/** Mean and standard deviation of the layer's input after so many steps: they change while the network learns. */
export function truth(step) {
  const learned = 1 - Math.exp(-step / 60);
  return { mean: 4 * learned, deviation: 1 + 1.5 * learned };
}

function batch(generator, step, size) {
  const { mean, deviation } = truth(step);
  return Float64Array.from({ length: size }, () => mean + deviation * generator.normal());
}

/**
 * Trains for so many steps. `single` is what a last batch of one does: "none" (there is none), "error" (training ends
 * there, as in torch) or "population" (it is normalised by the running statistics and leaves them as they are).
 * Returns every batch, the running statistics after each step, and the step that failed, or null.
 */
export function train({ steps, momentum, batchSize, single, seed = 5 }) {
  const generator = random(seed);
  const statistics = running(1);
  const batches = [];
  const history = [];
  for (let step = 1; step <= steps; step++) {
    const last = single !== "none" && step % EPOCH === 0;
    const x = batch(generator, step, last ? 1 : batchSize);
    if (last && single === "error") return { batches, history, statistics, failed: step };
    batches.push(x);
    const found = moments(x);
    if (!last) update(statistics, channelMoments(x, 1), momentum);
    history.push({ step, mean: found.mean, deviation: Math.sqrt(found.variance), runningMean: statistics.mean[0], runningDeviation: Math.sqrt(statistics.variance[0]) });
  }
  return { batches, history, statistics, failed: null };
}

/** Values that the layer sees once training has stopped at `step`: for calibration in batches, and for a test. */
export function after(step, batchSize, seed = 6) {
  const generator = random(seed);
  const batches = Array.from({ length: 1024 / batchSize }, () => batch(generator, step, batchSize));
  return { batches, test: batch(generator, step, TEST) };
}

/** Exact statistics of all the batches as one, with the unbiased variance, as bn.calibrate writes them. */
export function calibrated(batches) {
  const { mean, unbiased } = channelMoments(Float64Array.from(batches.flatMap((x) => [...x])), 1);
  return { mean, variance: unbiased };
}

/** The test values as training would normalise them: as one batch. */
export function asOneBatch(test) {
  return forward(test, 1).output;
}
