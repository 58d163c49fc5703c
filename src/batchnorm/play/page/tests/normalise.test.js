import assert from "node:assert/strict";
import { test } from "node:test";
import { backward, channelMoments, evaluate, forward, moments, normalise, random, running, update } from "../normalise.js";

const near = (a, b, tolerance = 1e-12) => assert.ok(Math.abs(a - b) <= tolerance, `${a} is not ${b}`);

test("moments by hand, and no cancellation far from 0", () => {
  assert.deepEqual(moments([2, 4, 4, 4, 5, 5, 7, 9]), { count: 8, mean: 5, variance: 4, unbiased: 32 / 7 });
  assert.equal(moments([1e9, 1e9 + 1, 1e9 + 2]).variance, 2 / 3);
  assert.ok(Number.isNaN(moments([3]).unbiased));
});

test("normalised values have mean 0 and deviation 1, then γ and β", () => {
  const { normalised, output } = normalise([1, 2, 3, 10], { eps: 0, gamma: -2, beta: 5 });
  near(moments(normalised).mean, 0);
  near(moments(normalised).variance, 1);
  near(moments(output).mean, 5);
  near(moments(output).variance, 4);
});

test("a constant batch becomes β, with no division by 0", () => {
  assert.deepEqual(normalise([3, 3, 3], { beta: 0.5 }).output, [0.5, 0.5, 0.5]);
});

test("channels are separate", () => {
  const x = Float64Array.from([1, 10, 2, 20, 6, 60]);
  const { output } = forward(x, 2, { gamma: [1, 3], beta: [0, 1], eps: 0 });
  const first = normalise([1, 2, 6], { eps: 0 }).output;
  const second = normalise([10, 20, 60], { eps: 0, gamma: 3, beta: 1 }).output;
  for (let n = 0; n < 3; n++) {
    near(output[2 * n], first[n]);
    near(output[2 * n + 1], second[n]);
  }
});

test("the gradient is that of finite differences", () => {
  const generator = random(1);
  const make = (n) => Float64Array.from({ length: n }, generator.normal);
  const [x, dy, gamma, beta] = [make(15), make(15), make(3), make(3)];
  const loss = (x, gamma, beta) => forward(x, 3, { gamma, beta }).output.reduce((sum, y, i) => sum + y * dy[i], 0);
  const found = backward(dy, forward(x, 3, { gamma, beta }));
  const h = 1e-6;
  const slope = (values, i, at) => {
    const [up, down] = [values.slice(), values.slice()];
    up[i] += h;
    down[i] -= h;
    return (at(up) - at(down)) / (2 * h);
  };
  for (let i = 0; i < 15; i++) near(found.dx[i], slope(x, i, (v) => loss(v, gamma, beta)), 1e-7);
  for (let c = 0; c < 3; c++) {
    near(found.dgamma[c], slope(gamma, c, (v) => loss(x, v, beta)), 1e-7);
    near(found.dbeta[c], slope(beta, c, (v) => loss(x, gamma, v)), 1e-7);
  }
});

test("running statistics: torch's start, momentum and unbiased variance; evaluation uses them", () => {
  const statistics = running(1);
  update(statistics, channelMoments(Float64Array.from([1, 3]), 1), 0.1);
  near(statistics.mean[0], 0.2);
  near(statistics.variance[0], 0.9 * 1 + 0.1 * 2);
  near(evaluate([1], statistics, { eps: 0 })[0], (1 - 0.2) / Math.sqrt(1.1));
});

test("random numbers are the same for the same seed, and normal", () => {
  const draw = (seed) => Array.from({ length: 4000 }, random(seed).normal);
  assert.deepEqual(draw(3), draw(3));
  assert.notDeepEqual(draw(3), draw(4));
  near(moments(draw(3)).mean, 0, 0.05);
  near(moments(draw(3)).variance, 1, 0.08);
});
