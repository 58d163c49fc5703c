// Panel 3: training normalises by the batch, evaluation by the running statistics. When they differ, calibrate.
import { animation, still } from "../animation.js";
import { histogram, lineChart } from "../charts.js";
import { code } from "../code.js";
import { button, select, slider } from "../controls.js";
import { el, number } from "../dom.js";
import { evaluate, moments } from "../normalise.js";
import { STEPS, after, asOneBatch, calibrated, train, truth } from "../stream.js";

export const id = "evaluation";

const MOMENTA = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1];
const SIZES = [2, 4, 8, 16, 32, 64];
const NEAR = 0.1; // of the mean from 0, and of the standard deviation from 1

const state = { steps: 100, momentum: 0.01, batchSize: 16, single: "none", calibrated: false };

export const words = {
  en: {
    title: "Train against eval",
    see: "In training, a batch is normalised by its own mean and standard deviation. In evaluation, there may be no batch, so the layer uses running statistics: averages that were collected during training. While the network learns, its values move, and the averages may lag behind. Then the same data comes out differently in the two modes.",
    momentum: "momentum",
    batchSize: "batch size",
    steps: "training steps",
    single: "last batch of an epoch",
    none: "full",
    error: "one sample: error, as in torch",
    population: "one sample: single=\"population\"",
    play: "Train",
    pause: "Pause",
    step: "Train 10 steps",
    calibrate: "Calibrate",
    restore: "Undo calibration",
    means: "Mean of the layer's input, step by step",
    deviations: "Standard deviation of the layer's input, step by step",
    batch: "of the batch",
    running: "running",
    network: "all data",
    outputs: "The same test data in both modes",
    trainMode: "training mode",
    evalMode: "evaluation mode",
    value: "output",
    stepAxis: "step",
    runningMean: "running mean",
    runningDeviation: "running std. dev.",
    testMean: "mean of the test data",
    testDeviation: "std. dev. of the test data",
    evalMean: "output mean in eval",
    evalDeviation: "output std. dev. in eval",
    describe: "After step {step}: running {r}, all data {m}.",
    describeOutputs: "Training mode: mean 0, standard deviation 1. Evaluation mode: mean {m}, standard deviation {s}.",
    stale: "Evaluation mode is off: its outputs have mean {m} and standard deviation {s} instead of 0 and 1. The layers behind never saw such values in training.",
    fine: "Both modes agree: in evaluation the outputs have mean {m} and standard deviation {s}.",
    fixed: "Calibrated: the running statistics are now those of {n} batches of the network as it is, taken together. In evaluation the outputs have mean {m} and standard deviation {s}.",
    failed: "Training stopped at step {step}: “Expected more than 1 value per channel when training”. One value has no variance. Leave the last batch out (drop_last=True), or use single=\"population\".",
    python: "training_batches, batches and test are your data",
    docsPath: "tools/#calibrate",
    docsTitle: "Tools: Calibrate",
  },
  ko: {
    title: "학습 모드와 평가 모드",
    see: "학습할 때는 배치를 그 배치의 평균과 표준편차로 정규화합니다. 평가할 때는 배치가 없을 수도 있으므로, 학습하는 동안 모아 둔 이동 평균 통계량을 씁니다. 신경망이 학습하면서 값이 계속 변하면 이동 평균은 뒤처질 수 있습니다. 그러면 같은 데이터라도 두 모드에서 출력이 달라집니다.",
    momentum: "모멘텀",
    batchSize: "배치 크기",
    steps: "학습 스텝 수",
    single: "에폭의 마지막 배치",
    none: "꽉 찬 배치",
    error: "샘플 1개: 오류(torch와 같음)",
    population: "샘플 1개: single=\"population\"",
    play: "학습",
    pause: "멈춤",
    step: "10스텝 학습",
    calibrate: "보정(calibrate)",
    restore: "보정 취소",
    means: "스텝에 따른 층 입력의 평균",
    deviations: "스텝에 따른 층 입력의 표준편차",
    batch: "배치",
    running: "이동 평균",
    network: "전체 데이터",
    outputs: "같은 테스트 데이터, 두 가지 모드",
    trainMode: "학습 모드",
    evalMode: "평가 모드",
    value: "출력",
    stepAxis: "스텝",
    runningMean: "이동 평균",
    runningDeviation: "이동 표준편차",
    testMean: "테스트 데이터의 평균",
    testDeviation: "테스트 데이터의 표준편차",
    evalMean: "평가 모드 출력의 평균",
    evalDeviation: "평가 모드 출력의 표준편차",
    describe: "{step}스텝 후: 이동 평균 {r}, 전체 데이터 {m}.",
    describeOutputs: "학습 모드: 평균 0, 표준편차 1. 평가 모드: 평균 {m}, 표준편차 {s}.",
    stale: "평가 모드가 어긋났습니다. 출력의 평균과 표준편차가 0과 1이 아니라 {m}, {s}입니다. 뒤의 층들은 학습하는 동안 이런 값을 본 적이 없습니다.",
    fine: "두 모드가 일치합니다. 평가 모드에서 출력의 평균은 {m}, 표준편차는 {s}입니다.",
    fixed: "보정했습니다. 이제 이동 평균 통계량은 현재 신경망에서 얻은 배치 {n}개를 합친 통계량입니다. 평가 모드에서 출력의 평균은 {m}, 표준편차는 {s}입니다.",
    failed: "{step}스텝에서 학습이 멈췄습니다: “Expected more than 1 value per channel when training”. 값이 하나뿐이면 분산을 구할 수 없습니다. 마지막 배치를 빼거나(drop_last=True) single=\"population\"을 쓰세요.",
    python: "training_batches, batches, test는 내 데이터",
    docsPath: "tools/#calibrate",
    docsTitle: "Tools: Calibrate",
  },
};

/** The lines of Python that do what the panel does. */
export function lines({ momentum, single }, comment) {
  const option = single === "population" ? ', single="population"' : "";
  return `# ${comment}
import batchnorm as bn

layer = bn.BatchNorm(1, momentum=${momentum}${option})
for batch in training_batches:
    layer(batch)
layer.eval()
stale = layer(test)
bn.calibrate(layer, batches)
exact = layer(test)
print(stale.mean().item(), exact.mean().item())`;
}

/** The values that the panel shows for its settings: the run, both modes' outputs of the test data, and their moments. */
export function result({ steps, momentum, batchSize, single, calibrated: isCalibrated }) {
  const run = train({ steps, momentum, batchSize, single });
  const { batches, test } = after(run.history.length, batchSize);
  const statistics = isCalibrated ? calibrated(batches) : run.statistics;
  const training = asOneBatch(test);
  const evaluation = evaluate(test, statistics);
  return { run, batches, test, statistics, training, evaluation, found: moments(evaluation) };
}

export function mount(root, { t, docs }) {
  const controls = el("div", { class: "controls" });
  const verdict = el("p", { class: "verdict", role: "status" });
  const numbers = el("dl", { class: "numbers" });
  const left = el("div", {});
  const right = el("div", {});
  root.append(el("p", { class: "see" }, t("see")), controls, verdict, numbers, el("div", { class: "columns" }, left, right));

  const steps = slider(controls, { label: t("steps"), min: 1, max: STEPS, step: 1, value: state.steps, oninput: (v) => change({ steps: v }) });
  slider(controls, { label: t("momentum"), values: MOMENTA, value: state.momentum, oninput: (v) => change({ momentum: v }) });
  slider(controls, { label: t("batchSize"), values: SIZES, value: state.batchSize, oninput: (v) => change({ batchSize: v }) });
  select(controls, {
    label: t("single"),
    options: ["none", "error", "population"].map((name) => [name, t(name)]),
    value: state.single,
    onchange: (v) => change({ single: v }),
  });
  const play = button(controls, { label: still() ? t("step") : t("play"), onclick: toggle });
  const calibrate = button(controls, { label: t("calibrate"), primary: true, onclick: () => change({ calibrated: !state.calibrated }) });

  const history = (label) =>
    lineChart(left, {
      label,
      series: [
        { label: t("batch"), color: "--grey", width: 1 },
        { label: t("network"), color: "--blue", dash: [6, 4] },
        { label: t("running"), color: "--orange", width: 3 },
      ],
      xLabel: t("stepAxis"),
      xRange: [0, STEPS],
      height: 170,
    });
  const means = history(t("means"));
  const deviations = history(t("deviations"));
  const outputs = histogram(right, {
    label: t("outputs"),
    series: [{ label: t("trainMode"), color: "--blue" }, { label: t("evalMode"), color: "--orange" }],
    range: [-6, 8],
    bins: 42,
    xLabel: t("value"),
    height: 250,
  });
  const python = code(right, { lines: "", caption: t("code"), copy: t("copy"), copied: t("copied") });
  root.append(docs(t("docsPath"), t("docsTitle")));

  let trained = state.steps; // a fraction while it plays
  const frames = animation(
    root,
    (elapsed) => {
      trained = Math.min(STEPS, trained + elapsed / 25);
      change({ steps: Math.max(1, Math.floor(trained)) });
      steps.set(state.steps);
      return trained < STEPS;
    },
    (running) => play.set(still() ? t("step") : t(running ? "pause" : "play")),
  );

  function toggle() {
    if (frames.running) return frames.stop();
    trained = state.steps === STEPS ? 0 : state.steps;
    if (!still()) return frames.start();
    change({ steps: Math.min(STEPS, trained + 10) });
    steps.set(state.steps);
  }

  function change(next) {
    // Any other setting needs a new training, with its own running statistics.
    Object.assign(state, { calibrated: false }, next);
    if (!frames.running) trained = state.steps;
    draw();
  }

  function draw() {
    const { run, batches, test, statistics, training, evaluation, found } = result(state);
    const { history } = run;
    const x = history.map(({ step }) => step);
    const last = history[history.length - 1];
    const real = x.map(truth);
    const text = (r, m) => t("describe", { step: last.step, r: number(r), m: number(m) });
    means.set(x, [history.map((h) => h.mean), real.map((h) => h.mean), history.map((h) => h.runningMean)], text(last.runningMean, truth(last.step).mean));
    deviations.set(
      x,
      [history.map((h) => h.deviation), real.map((h) => h.deviation), history.map((h) => h.runningDeviation)],
      text(last.runningDeviation, truth(last.step).deviation),
    );
    const shown = { m: number(found.mean), s: number(Math.sqrt(found.variance)), n: batches.length };
    outputs.set([training, evaluation], t("describeOutputs", shown));
    const data = moments(test);
    const facts = [
      ["runningMean", statistics.mean[0]],
      ["testMean", data.mean],
      ["runningDeviation", Math.sqrt(statistics.variance[0])],
      ["testDeviation", Math.sqrt(data.variance)],
      ["evalMean", found.mean],
      ["evalDeviation", Math.sqrt(found.variance)],
    ];
    numbers.replaceChildren(...facts.map(([name, value]) => el("div", {}, el("dt", {}, t(name)), el("dd", { "data-value": name }, number(value, 3)))));
    judge(run.failed, found, shown);
    calibrate.set(t(state.calibrated ? "restore" : "calibrate"));
    python.set(lines(state, t("python")));
  }

  function judge(failed, { mean, variance }, shown) {
    const near = Math.abs(mean) < NEAR && Math.abs(Math.sqrt(variance) - 1) < NEAR;
    let [tone, text] = near ? ["good", t("fine", shown)] : ["warn", t("stale", shown)];
    if (failed !== null) [tone, text] = ["bad", t("failed", { step: failed })];
    else if (state.calibrated) [tone, text] = ["good", t("fixed", shown)];
    verdict.className = `verdict ${tone}`;
    verdict.setAttribute("aria-live", frames.running ? "off" : "polite"); // not read aloud frame by frame
    if (verdict.textContent !== text) verdict.textContent = text;
  }

  draw();
  return {
    destroy() {
      frames.destroy();
      for (const chart of [means, deviations, outputs]) chart.destroy();
    },
  };
}
