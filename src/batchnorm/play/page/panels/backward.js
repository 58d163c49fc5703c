// Panel 5: the gradient of a sample depends on every sample of its batch.
import { code } from "../code.js";
import { button, slider, toggle } from "../controls.js";
import { el, number, short } from "../dom.js";
import { dependences, passes } from "../network/dependence.js";
import { moments, random } from "../normalise.js";

export const id = "backward";

const MOST = 8;
const FROZEN = { mean: 0, variance: 1 };

const state = { samples: 6, spread: 1, gamma: 1, frozen: false, seed: 5, sample: 0, output: 2 };

export const words = {
  en: {
    title: "The backward pass",
    see: "Without batch norm, a sample's gradient comes from its own output alone. With batch norm every sample takes part in the mean and the variance, so every sample's gradient depends on every output of the batch. Click a cell: the loss looks at the output of that column only, and the formula gives the gradient of the sample in that row.",
    keys: "By keyboard: Tab to the table with batch norm, then the arrow keys.",
    withNorm: "With batch norm: ∂y of the column / ∂x of the row",
    frozenNorm: "With frozen statistics: ∂y of the column / ∂x of the row",
    without: "Without batch norm, y = γ·x + β",
    cell: "gradient of sample {i} from output {j}: {v}",
    samples: "Samples in the batch",
    spread: "Spread of the batch",
    gamma: "γ",
    frozen: "Frozen: running statistics (mean 0, variance 1)",
    again: "Other numbers",
    formula: "The formula with your numbers",
    step1: "dy is 1 at output {j} and 0 elsewhere, so mean(dy) = 1/{n} = ",
    step2: "mean(dy · x̂) = x̂{k} / {n} = {h} / {n} = ",
    step3: "dx{i} = γ/√(σ² + ε) · (dy{i} − mean(dy) − x̂{i} · mean(dy · x̂))",
    frozenStep: "The running statistics do not depend on the batch, so dx{i} = γ/√(running variance + ε) · dy{i}",
    sum: "Sum of the column",
    product: "Sum of dx · x̂ over the column",
    scale: "γ / √(σ² + ε)",
    sumVerdict: "The column adds up to 0, and so does dx · x̂ (but for ε): moving the whole batch, or stretching it, changes no output, so no gradient points that way. A wide batch divides its gradients by its σ, here {s}.",
    frozenVerdict: "With frozen or running statistics the samples are independent again: all cells off the diagonal are 0. Evaluation works in the same way.",
    pair: "With two samples nearly nothing is left: x̂ is −1 and 1 whatever the values are, so the gradients vanish.",
    code: "The chosen column in Python",
    docsPath: "explained/#the-backward-pass",
    docsTitle: "Batch norm explained: the backward pass",
  },
  ko: {
    title: "역전파",
    see: "배치 정규화가 없으면 샘플의 기울기는 자기 출력에서만 옵니다. 배치 정규화를 쓰면 모든 샘플이 평균과 분산에 참여하므로, 각 샘플의 기울기가 배치 안의 모든 출력에 의존합니다. 칸을 눌러 보세요. 손실이 그 열의 출력만 본다고 할 때, 그 행에 있는 샘플의 기울기를 수식으로 보여 줍니다.",
    keys: "키보드: Tab으로 배치 정규화 표에 들어간 다음 화살표 키로 움직입니다.",
    withNorm: "배치 정규화 있음: ∂y(열) / ∂x(행)",
    frozenNorm: "통계량을 동결했을 때: ∂y(열) / ∂x(행)",
    without: "배치 정규화 없음, y = γ·x + β",
    cell: "출력 {j}에서 오는 샘플 {i}의 기울기: {v}",
    samples: "배치의 샘플 수",
    spread: "배치의 퍼짐",
    gamma: "γ",
    frozen: "동결: 이동 통계량 사용 (평균 0, 분산 1)",
    again: "다른 숫자로",
    formula: "내 숫자로 따라가는 수식",
    step1: "dy는 출력 {j}에서만 1이고 나머지는 0이므로 mean(dy) = 1/{n} = ",
    step2: "mean(dy · x̂) = x̂{k} / {n} = {h} / {n} = ",
    step3: "dx{i} = γ/√(σ² + ε) · (dy{i} − mean(dy) − x̂{i} · mean(dy · x̂))",
    frozenStep: "이동 통계량은 배치에 의존하지 않으므로 dx{i} = γ/√(이동 분산 + ε) · dy{i}",
    sum: "열의 합",
    product: "열에서 dx · x̂의 합",
    scale: "γ / √(σ² + ε)",
    sumVerdict: "열의 합은 0이고, dx · x̂의 합도 (ε의 영향을 빼면) 0입니다. 배치 전체를 옮기거나 늘려도 출력이 바뀌지 않으므로 그 방향의 기울기는 없습니다. 넓게 퍼진 배치의 기울기는 σ(여기서는 {s})로 나뉘어 작아집니다.",
    frozenVerdict: "통계량을 동결하거나 이동 통계량을 쓰면 샘플들이 다시 서로 독립입니다. 대각선 밖의 칸은 모두 0입니다. 평가 모드도 마찬가지입니다.",
    pair: "샘플이 두 개면 거의 아무것도 남지 않습니다. 값이 무엇이든 x̂가 −1과 1이 되어 기울기가 사라집니다.",
    code: "고른 열을 파이썬으로",
    docsPath: "explained.ko/",
    docsTitle: "배치 정규화 이해하기",
  },
};

/** The batch of the current settings, to two decimals. */
export function batch({ samples, spread, seed }) {
  const { normal } = random(seed);
  return Array.from({ length: samples }, () => Number((1 + spread * normal()).toFixed(2)));
}

/** The lines of Python that print the chosen column. */
export function lines(x, { gamma, frozen, output }) {
  return `import torch
import batchnorm as bn

x = torch.tensor([${x.map((v) => `[${v}]`).join(", ")}], requires_grad=True)
layer = bn.BatchNorm1d(1)
layer.weight.data.fill_(${gamma})
${frozen ? "bn.freeze(layer)\n" : ""}layer(x)[${output}].backward()  # the loss is output ${output + 1} alone
print(x.grad)`;
}

export function mount(root, { t, docs }) {
  const controls = el("div", { class: "controls" });
  const norm = el("div", { class: "scroll" });
  const plain = el("div", { class: "scroll" });
  const verdict = el("p", { class: "verdict", role: "status" });
  const steps = el("ol", { class: "steps" });
  const sums = el("dl", { class: "numbers" });
  root.append(
    el("p", { class: "see" }, t("see")),
    controls,
    el("div", { class: "columns" }, norm, plain),
    el("p", { class: "note" }, t("keys")),
    verdict,
    el("h3", {}, t("formula")),
    steps,
    sums,
  );
  slider(controls, { label: t("samples"), min: 2, max: MOST, step: 1, value: state.samples, oninput: (samples) => change({ samples }) });
  slider(controls, { label: t("spread"), min: 0.1, max: 3, step: 0.1, value: state.spread, format: (v) => number(v, 1), oninput: (spread) => change({ spread }) });
  slider(controls, { label: t("gamma"), min: -2, max: 2, step: 0.1, value: state.gamma, format: (v) => number(v, 1), oninput: (gamma) => change({ gamma }) });
  toggle(controls, { label: t("frozen"), value: state.frozen, onchange: (frozen) => change({ frozen }) });
  button(controls, { label: t("again"), onclick: () => change({ seed: state.seed + 1 }) });
  const python = code(root, { lines: "", caption: t("code"), copy: t("copy"), copied: t("copied") });
  root.append(docs(t("docsPath"), t("docsTitle")));

  function change(next) {
    Object.assign(state, next);
    state.sample = Math.min(state.sample, state.samples - 1);
    state.output = Math.min(state.output, state.samples - 1);
    draw();
  }

  function draw() {
    const x = batch(state);
    const options = { gamma: state.gamma, frozen: state.frozen ? FROZEN : null };
    const found = dependences(x, options);
    const own = x.map((_, i) => x.map((_, j) => (i === j ? state.gamma : 0)));
    const most = Math.max(...[...found, ...own].flat().map(Math.abs));
    norm.replaceChildren(matrix(t(state.frozen ? "frozenNorm" : "withNorm"), x, found, most, true));
    plain.replaceChildren(matrix(t("without"), x, own, most, false));
    const dy = x.map((_, j) => (j === state.output ? 1 : 0));
    const result = passes(x, dy, options);
    steps.replaceChildren(...(state.frozen ? frozenSteps(result) : formula(x, dy, result)));
    totals(result);
    judge(x);
    python.set(lines(x, state));
  }

  function matrix(caption, x, values, most, clickable) {
    const head = el("tr", {}, el("td", {}), ...x.map((_, j) => el("th", { scope: "col" }, `y${low(j)}`)));
    const rows = values.map((row, i) =>
      el("tr", {}, el("th", { scope: "row" }, `x${low(i)} = ${number(x[i])}`), ...row.map((v, j) => cell(v, i, j, most, clickable))),
    );
    const table = el("table", { class: "matrix" }, el("caption", {}, caption), el("thead", {}, head), el("tbody", {}, ...rows));
    if (clickable) table.addEventListener("keydown", press);
    return table;
  }

  function cell(value, i, j, most, clickable) {
    const chosen = i === state.sample && j === state.output;
    const shade = `--share: ${most > 0 ? Math.round((70 * Math.abs(value)) / most) : 0}%; --tone: var(${value < 0 ? "--blue" : "--orange"})`;
    const inColumn = j === state.output ? "column" : "";
    if (!clickable) return el("td", { style: shade, class: inColumn }, number(value));
    const label = t("cell", { i: i + 1, j: j + 1, v: number(value) });
    const face = el(
      "button",
      { type: "button", "aria-label": label, "aria-pressed": String(chosen), tabindex: chosen ? "0" : "-1", onclick: () => choose(i, j) },
      number(value),
    );
    return el("td", { style: shade, class: inColumn }, face);
  }

  function press(event) {
    const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    if (!(event.key in moves)) return;
    event.preventDefault();
    const within = (v) => Math.min(Math.max(v, 0), state.samples - 1);
    choose(within(state.sample + moves[event.key][0]), within(state.output + moves[event.key][1]));
  }

  function choose(sample, output) {
    change({ sample, output });
    norm.querySelector("[aria-pressed=true]").focus({ preventScroll: true });
  }

  function formula(x, dy, { dx, normalised, scale }) {
    const { gamma, sample: i, output: j } = state;
    const n = x.length;
    const mean = 1 / n;
    const product = normalised[j] / n;
    const names = { i: low(i), j: j + 1, k: low(j), n, h: number(normalised[j], 4) };
    const shown = `= ${number(gamma * scale, 4)} · (${dy[i]} − ${number(mean, 4)} − ${bracketed(normalised[i])} · ${bracketed(product)}) = `;
    return [
      el("li", {}, t("step1", names), el("b", {}, number(mean, 4))),
      el("li", {}, t("step2", names), el("b", {}, number(product, 4))),
      el("li", {}, t("step3", names), " ", shown, el("b", {}, number(dx[i], 4))),
    ];
  }

  function frozenSteps({ dx, scale }) {
    const { gamma, sample: i, output: j } = state;
    const text = ` = ${number(gamma * scale, 4)} · ${i === j ? 1 : 0} = `;
    return [el("li", {}, t("frozenStep", { i: low(i) }), text, el("b", {}, number(dx[i], 4)))];
  }

  function totals({ dx, normalised, scale }) {
    const add = (values) => values.reduce((a, b) => a + b, 0);
    const entry = (name, value) => el("div", {}, el("dt", {}, name), el("dd", {}, value));
    sums.replaceChildren(
      entry(t("sum"), number(add(dx), 4)),
      entry(t("product"), number(add(dx.map((d, i) => d * normalised[i])), 4)),
      entry(t("scale"), number(state.gamma * scale, 4)),
    );
  }

  function judge(x) {
    let [tone, text] = ["", t("sumVerdict", { s: short(Math.sqrt(moments(x).variance)) })];
    if (state.frozen) [tone, text] = ["good", t("frozenVerdict")];
    else if (x.length === 2) [tone, text] = ["warn", t("pair")];
    verdict.className = `verdict ${tone}`;
    if (verdict.textContent !== text) verdict.textContent = text;
  }

  draw();
  return { destroy() {} };
}

/** The number of a sample as a subscript. */
const low = (index) => "₁₂₃₄₅₆₇₈"[index];

function bracketed(x) {
  const text = number(x, 4);
  return text.startsWith("−") ? `(${text})` : text;
}
