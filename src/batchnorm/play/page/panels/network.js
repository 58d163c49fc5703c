// Panel 2: the same network, trained live with and without batch norm. The training runs in a worker.
import { still } from "../animation.js";
import { lineChart } from "../charts.js";
import { code } from "../code.js";
import { button, select, slider } from "../controls.js";
import { el, number, short } from "../dom.js";
import { ARMS, DEFAULTS, relative } from "../network/comparison.js";
import { DATASETS, dataset } from "../network/data.js";
import { ACTIVATIONS } from "../network/layers.js";
import { STARTS } from "../network/training.js";
import source from "../network/worker.js?worker";
import { drawAnswers, drawField, drawStrip } from "./network.pictures.js";
import { words } from "./network.words.js";

export const id = "network";
export { words };

const RATES = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10];
const BATCH_SIZES = [2, 4, 8, 16, 32, 64];
const HIGHEST_LOSS = 10; // in the chart
const COLORS = { plain: "--blue", norm: "--orange" };

export const PRESETS = {
  deep: {},
  exploding: { depth: 20, start: "large", rate: 0.01 },
  fast: { depth: 6, start: "he", rate: 0.3 },
  he: { start: "he", rate: 0.01 },
  shallow: { depth: 3, start: "he", rate: 0.03 },
  tiny: { depth: 3, start: "he", rate: 0.01, batchSize: 2 },
};

const state = { preset: "deep", settings: { ...DEFAULTS }, playing: true };

/** The lines of Python that make the network with batch norm, its first weights, and its optimizer. */
export function lines({ depth, width, activation, start, rate }, { features, classes }) {
  const initial = {
    torch: "",
    he: `
for layer in model:
    if isinstance(layer, nn.Linear):
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(layer.bias)`,
  };
  initial.large = `${initial.he}\n        layer.weight.data.mul_(2)`;
  return `import torch
from torch import nn
import batchnorm as bn

layers, inputs = [], ${features}
for _ in range(${depth}):
    layers += [nn.Linear(inputs, ${width}), bn.BatchNorm1d(${width}), nn.${{ relu: "ReLU", tanh: "Tanh" }[activation]}()]
    inputs = ${width}
model = nn.Sequential(*layers, nn.Linear(inputs, ${classes}))${initial[start]}
optimizer = torch.optim.SGD(model.parameters(), lr=${rate}, momentum=0.9)`;
}

export function mount(root, { t, docs }) {
  const controls = el("div", { class: "controls" });
  const setting = el("div", { class: "controls" });
  const verdict = el("p", { class: "verdict" });
  const arms = ARMS.map((arm) => armView(arm, t));
  const beside = el("div", { class: "beside" });
  const below = el("div", { class: "columns" });
  root.append(
    el("p", { class: "see" }, t("see")),
    controls,
    el("div", { class: "arms" }, ...arms.map(({ element }) => element), beside),
    verdict,
    setting,
    below,
  );

  const series = ARMS.map((arm) => ({ label: t(arm), color: COLORS[arm], dash: arm === "plain" ? [6, 4] : undefined }));
  const dotted = series.map((line) => ({ ...line, points: true }));
  const gradients = lineChart(beside, { label: t("gradientChart"), series: dotted, xLabel: t("layerAxis"), log: true, whole: true, height: 170 });
  const losses = lineChart(beside, { label: t("lossChart"), series, xLabel: t("stepAxis"), log: true, whole: true, height: 170 });
  const spreads = lineChart(below, { label: t("spreadChart"), series: dotted, xLabel: t("layerAxis"), log: true, whole: true });
  below.append(el("p", { class: "note" }, t("honest")));

  const play = button(controls, { label: "", primary: true, onclick: () => run(!state.playing) });
  button(controls, { label: t("step"), onclick: step });
  button(controls, { label: t("reset"), onclick: start });
  const choices = (table, names) => names.map((name) => [name, table[name]]);
  const preset = select(controls, {
    label: t("preset"),
    options: choices(t("presets"), [...Object.keys(PRESETS), "own"]),
    value: state.preset,
    onchange: choosePreset,
  });
  const inputs = {
    data: select(setting, { label: t("data"), options: choices(t("datasets"), DATASETS), onchange: change("data") }),
    start: select(setting, { label: t("start"), options: choices(t("starts"), Object.keys(STARTS)), onchange: change("start") }),
    activation: select(setting, { label: t("activation"), options: choices(t("activations"), Object.keys(ACTIVATIONS)), onchange: change("activation") }),
    depth: slider(setting, { label: t("depth"), min: 3, max: 20, step: 1, value: state.settings.depth, oninput: change("depth") }),
    rate: slider(setting, { label: t("rate"), values: RATES, value: state.settings.rate, format: (v) => short(v), oninput: changeRate }),
    batchSize: slider(setting, { label: t("batchSize"), values: BATCH_SIZES, value: state.settings.batchSize, oninput: change("batchSize") }),
  };
  const python = code(root, { lines: "", caption: t("code"), copy: t("copy"), copied: t("copied") });
  root.append(docs("study/", "Study your network"));

  const address = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
  const worker = new Worker(address);
  let data;
  let runs = 0;
  let visible = false;
  let shown = null;
  let frame = 0;
  worker.onmessage = ({ data: snapshot }) => {
    if (snapshot.run !== runs) return;
    shown = snapshot;
    if (!frame) frame = requestAnimationFrame(draw);
  };

  const observer = new IntersectionObserver(([entry]) => {
    visible = entry.isIntersecting;
    tellWorker();
  });
  observer.observe(root);

  function tellWorker() {
    worker.postMessage({ type: state.playing && visible ? "play" : "pause" });
  }

  function run(playing) {
    state.playing = playing;
    play.set(t(playing ? "pause" : "play"));
    tellWorker();
  }

  function start() {
    const { settings } = state;
    data = dataset(settings.data, settings.seed);
    for (const [name, input] of Object.entries(inputs)) input.set(settings[name]);
    preset.set(state.preset);
    python.set(lines(settings, data));
    runs += 1;
    worker.postMessage({ type: "start", settings, id: runs });
  }

  function step() {
    run(false);
    worker.postMessage({ type: "step", steps: 10 });
  }

  function choosePreset(name) {
    state.preset = name;
    if (name !== "own") state.settings = { ...DEFAULTS, ...PRESETS[name] };
    start();
  }

  function change(name) {
    return (value) => {
      state.preset = "own";
      state.settings[name] = value;
      start();
    };
  }

  // The rate changes while the training goes on.
  function changeRate(rate) {
    state.preset = "own";
    state.settings.rate = rate;
    preset.set("own");
    python.set(lines(state.settings, data));
    worker.postMessage({ type: "rate", rate });
  }

  function draw() {
    frame = 0;
    const { steps, history } = shown;
    arms.forEach((view, arm) => view.draw(shown.arms[arm], data, steps));
    const text = { n: steps, a: short(shown.arms[0].loss), b: short(shown.arms[1].loss) };
    const cut = history.losses.map((values) => values.map((loss) => loss && Math.min(loss, HIGHEST_LOSS)));
    losses.set(history.steps, cut, t("describeLoss", text));
    byLayer(gradients, shown.arms.map((arm) => relative(arm.gradients)));
    byLayer(spreads, shown.arms.map((arm) => arm.spreads ?? []));
    const [tone, sentence] = judge(shown, state.settings, 1 / data.classes, t);
    verdict.className = `verdict ${tone}`;
    verdict.textContent = sentence;
    root.dataset.steps = steps;
  }

  function byLayer(chart, lists) {
    const layers = Array.from({ length: state.settings.depth }, (_, i) => i + 1);
    const shownLists = lists.map((list) => layers.map((_, i) => list[i] ?? null));
    const [a, b] = lists.map(([first]) => (first === undefined ? "–" : short(first)));
    chart.set(layers, shownLists, t("describeLayers", { a, b }));
  }

  if (still()) state.playing = false;
  start();
  run(state.playing);
  return {
    destroy() {
      observer.disconnect();
      cancelAnimationFrame(frame);
      worker.terminate();
      URL.revokeObjectURL(address);
      for (const chart of [gradients, losses, spreads]) chart.destroy();
    },
  };
}

/** One network: its answers, its numbers, and the inputs of its activations. */
function armView(arm, t) {
  const picture = el("canvas", { class: "field", role: "img", "aria-label": t(arm) });
  const strip = el("canvas", { class: "strip", role: "img", "aria-label": t("strip", { arm: t(arm) }) });
  const accuracy = el("b", {});
  const loss = el("span", {});
  const element = el(
    "div",
    { class: "arm", "data-arm": arm },
    el("h3", { style: `color: var(${COLORS[arm]})` }, t(arm)),
    picture,
    el("p", { class: "score" }, accuracy, " ", loss),
    el("p", { class: "note" }, t("stripLabel")),
    el("div", { class: "strips" }, el("span", {}, t("first")), el("span", {}, t("last")), strip),
  );
  function draw(found, data, steps) {
    const share = percent(found.accuracy);
    accuracy.textContent = found.divergedAt ? t("stopped", { n: found.divergedAt }) : t("accuracy", { a: share });
    loss.textContent = `${t("steps", { n: found.divergedAt ?? steps })}, ${t("trainLoss", { l: short(found.loss, 2) })}`;
    picture.setAttribute("aria-label", t(found.field ? "field" : "answers", { arm: t(arm), a: share }));
    if (found.field) drawField(picture, found.field, data);
    else drawAnswers(picture, found.answers, data);
    if (found.histograms) drawStrip(strip, found.histograms, COLORS[arm]);
  }
  return { element, draw };
}

const percent = (share) => number(100 * share, 0);

/** The tone and the sentence of the verdict on the networks so far. */
export function judge({ steps, arms: [plain, norm] }, settings, chance, t) {
  const values = { n: steps, a: percent(plain.accuracy), b: percent(norm.accuracy), s: settings.batchSize };
  if (plain.divergedAt && norm.divergedAt) return ["bad", t("bothDiverged")];
  if (norm.divergedAt) return ["bad", t("normDiverged", { n: norm.divergedAt })];
  if (plain.divergedAt) return ["good", `${t("diverged", { n: plain.divergedAt })} ${t("reached", values)}`];
  if (steps < 100) return ["", t("early")];
  if (Math.max(plain.accuracy, norm.accuracy) < 1.3 * chance) return ["bad", t("neither", values)];
  const gap = norm.accuracy - plain.accuracy;
  if (gap > 0.05) return ["good", `${t("better", values)} ${reason(plain.gradients, t)}`];
  if (gap < -0.05) return ["bad", t(settings.batchSize <= 4 ? "worseTiny" : "worse", values)];
  return ["warn", t(Math.min(plain.accuracy, norm.accuracy) > 0.9 ? "both" : "similar", values)];
}

function reason(gradients, t) {
  if (gradients.every((gradient) => gradient === 0)) return t("dead");
  const [ratio] = relative(gradients);
  if (ratio < 0.1) return t("vanishing", { g: short(ratio, 2) });
  return ratio > 10 ? t("explodes", { g: short(ratio, 2) }) : "";
}
