/** Trains in a worker: the page only draws. Messages in: start, rate, play, pause, step. Messages out: snapshots. */
import { Comparison } from "./comparison.js";

const TICK = 16; // ms
const STEPS_PER_TICK = 2; // about 120 steps a second: slow enough to watch
const BETWEEN_SNAPSHOTS = 100; // ms

let comparison = null;
let run = 0; // a snapshot carries the number of its start: the page drops those of an earlier one
let timer = null;
let posted = 0;

const ACTIONS = {
  start({ settings, id }) {
    comparison = new Comparison(settings);
    run = id;
    comparison.step();
    post();
  },
  rate({ rate }) {
    comparison.rate = rate;
  },
  play() {
    timer ??= setInterval(tick, TICK);
  },
  pause() {
    clearInterval(timer);
    timer = null;
    post();
  },
  step({ steps }) {
    train(steps);
    post();
  },
};

function tick() {
  train(STEPS_PER_TICK);
  if (performance.now() - posted > BETWEEN_SNAPSHOTS) post();
}

function train(steps) {
  for (let step = 0; step < steps; step++) comparison.step();
}

function post() {
  postMessage({ run, ...comparison.snapshot() });
  posted = performance.now();
}

addEventListener("message", ({ data }) => ACTIONS[data.type](data));
