// Panel 1: a batch of one channel. Points are dragged; the formula is followed step by step.
import { code } from "../code.js";
import { histogram } from "../charts.js";
import { button, slider } from "../controls.js";
import { el, number, short, svg } from "../dom.js";
import { moments, normalise } from "../normalise.js";

export const id = "batch";

const LOW = -10;
const HIGH = 10;
const START = [1.2, 2, 2.6, 3.1, 4.4, 5.2, 6.3, 8.8];
const MOST = 12;
const MARGIN = 26; // of the axis, in pixels
const EPSILONS = [1e-12, 1e-8, 1e-5, 1e-3, 0.01, 0.1, 1];

const state = { points: [...START], chosen: 6, gamma: 1, beta: 0, eps: 1e-5 };

export const words = {
  en: {
    title: "A batch",
    see: "Drag the blue points. The orange points below are the same batch after batch norm. With γ = 1 and β = 0 their mean is 0 and their standard deviation is 1, wherever you put the blue ones. As long as γ is positive, the lines between them never cross: the order is kept.",
    keys: "By keyboard: Tab to a point, then the arrow keys (with Shift, or Page Up and Page Down, in steps of 1).",
    line: "The batch before and after batch norm on one axis",
    point: "Point {i} of {n}",
    value: "{x}, normalised {y}",
    before: "before: x",
    after: "after: y",
    meanBand: "Dashed: mean. Band: mean ± standard deviation",
    add: "Add a point",
    remove: "Remove the chosen point",
    constant: "A constant batch",
    reset: "Reset",
    gamma: "γ (scale)",
    beta: "β (shift)",
    eps: "ε (added to σ²)",
    steps: "The formula with your numbers",
    step1: "Mean",
    step2: "Variance",
    step3: "Standard deviation",
    step4: "Normalise; here point {i}",
    step5: "Scale and shift",
    table: "Every point",
    sample: "point",
    share: "distance to the next point, as a share of the whole range",
    histogram: "Share of points by value, before and after",
    values: "value",
    describe: "Before: mean {m}, standard deviation {s}. After: mean {my}, standard deviation {sy}.",
    kept: "Order kept, relative distances kept: each share is the same before and after.",
    mirrored: "γ is negative, so the order is reversed. Relative distances are kept.",
    collapsed: "γ is 0, so every value becomes β, and nothing is left of the batch.",
    constantVerdict: "All values are equal, so σ is 0. Each x − m is 0, and 0 divided by √ε = {e} is 0: every output is β. Without ε it would be 0 / 0, which is not a number.",
    flattened: "ε is not small beside the variance here, so the standard deviation of (x − m)/√(σ² + ε) is {s}, less than 1.",
    code: "Your batch in Python",
    docsPath: "explained/#the-forward-pass",
    docsTitle: "Batch norm explained: the forward pass",
  },
  ko: {
    title: "배치 하나",
    see: "파란 점을 끌어 보세요. 아래의 주황색 점은 같은 배치에 배치 정규화를 적용한 결과입니다. γ = 1, β = 0이면 파란 점을 어디에 두어도 주황색 점의 평균은 0, 표준편차는 1입니다. γ가 양수이면 두 점을 잇는 선이 서로 엇갈리지 않습니다. 즉 순서가 유지됩니다.",
    keys: "키보드: Tab으로 점을 고르고 화살표 키로 움직입니다(Shift와 함께 누르거나 Page Up, Page Down을 쓰면 1씩).",
    line: "하나의 축에 나타낸 배치 정규화 전과 후의 배치",
    point: "점 {i} (전체 {n}개)",
    value: "{x}, 정규화하면 {y}",
    before: "전: x",
    after: "후: y",
    meanBand: "점선: 평균, 띠: 평균 ± 표준편차",
    add: "점 추가",
    remove: "고른 점 삭제",
    constant: "모두 같은 값으로",
    reset: "처음으로",
    gamma: "γ (크기)",
    beta: "β (이동)",
    eps: "ε (σ²에 더하는 값)",
    steps: "내 숫자로 따라가는 수식",
    step1: "평균",
    step2: "분산",
    step3: "표준편차",
    step4: "정규화 (점 {i}의 경우)",
    step5: "크기 조절과 이동",
    table: "모든 점",
    sample: "점",
    share: "다음 점까지의 거리가 전체 범위에서 차지하는 비율",
    histogram: "값에 따른 점의 비율, 전과 후",
    values: "값",
    describe: "전: 평균 {m}, 표준편차 {s}. 후: 평균 {my}, 표준편차 {sy}.",
    kept: "순서와 상대적인 거리가 그대로입니다. 각 비율이 전과 후에 같습니다.",
    mirrored: "γ가 음수라서 순서가 뒤집혔습니다. 상대적인 거리는 그대로입니다.",
    collapsed: "γ가 0이면 모든 값이 β가 되어, 배치의 정보가 하나도 남지 않습니다.",
    constantVerdict: "모든 값이 같아서 σ는 0입니다. 모든 x − m이 0이고, 0을 √ε = {e}(으)로 나누면 0이므로 출력은 모두 β입니다. ε이 없다면 0 / 0이 되어 값을 정할 수 없습니다(NaN).",
    flattened: "여기서는 ε이 분산에 비해 작지 않아서, (x − m)/√(σ² + ε)의 표준편차가 1보다 작은 {s}입니다.",
    code: "내 배치를 파이썬으로",
    docsPath: "explained.ko/",
    docsTitle: "배치 정규화 이해하기",
  },
};

/** The lines of Python that give the outputs shown. */
export function lines({ points, gamma, beta, eps }) {
  const rows = points.map((x) => `[${x.toFixed(1)}]`).join(", ");
  const affine = [["weight", gamma, 1], ["bias", beta, 0]]
    .filter(([, value, start]) => value !== start)
    .map(([name, value]) => `torch.nn.init.constant_(layer.${name}, ${value})\n`)
    .join("");
  return `import torch
import batchnorm as bn

x = torch.tensor([${rows}])
layer = bn.BatchNorm(1, eps=${eps})
${affine}y = layer(x)`;
}

/** Gaps between neighbours as shares of the range, in the order of the points sorted by x; null where all are equal. */
export function shares(sorted) {
  const range = sorted[sorted.length - 1] - sorted[0];
  if (range === 0) return null;
  return sorted.slice(1).map((value, i) => (value - sorted[i]) / range);
}

export function mount(root, { t, docs }) {
  const line = svg("svg", { class: "line", role: "group", "aria-label": t("line") });
  const controls = el("div", { class: "controls" });
  const buttons = el("div", { class: "controls" });
  const verdict = el("p", { class: "verdict", role: "status" });
  const steps = el("ol", { class: "steps" });
  const table = el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": t("table") });
  const left = el("div", {}, el("h3", {}, t("steps")), steps);
  const right = el("div", {});
  root.append(
    el("p", { class: "see" }, t("see")),
    line,
    el("p", { class: "note" }, `${t("meanBand")}. ${t("keys")}`),
    controls,
    buttons,
    verdict,
    el("div", { class: "columns" }, left, right),
    table,
  );

  button(buttons, { label: t("add"), onclick: add });
  button(buttons, { label: t("remove"), onclick: remove });
  button(buttons, { label: t("constant"), onclick: () => change({ points: state.points.map(() => 3) }) });
  button(buttons, { label: t("reset"), onclick: reset });
  const gamma = slider(controls, { label: t("gamma"), min: -2.5, max: 2.5, step: 0.1, value: state.gamma, format: (v) => number(v, 1), oninput: (v) => change({ gamma: v }) });
  const beta = slider(controls, { label: t("beta"), min: -2, max: 2, step: 0.1, value: state.beta, format: (v) => number(v, 1), oninput: (v) => change({ beta: v }) });
  const eps = slider(controls, { label: t("eps"), values: EPSILONS, value: state.eps, format: (v) => short(v), oninput: (v) => change({ eps: v }) });
  const chart = histogram(right, {
    label: t("histogram"),
    series: [{ label: t("before"), color: "--blue" }, { label: t("after"), color: "--orange" }],
    range: [LOW, HIGH],
    bins: 40,
    xLabel: t("values"),
  });
  const python = code(root, { lines: lines(state), caption: t("code"), copy: t("copy"), copied: t("copied") });
  root.append(docs(t("docsPath"), t("docsTitle")));

  // Each point keeps its element while it is dragged: a new one would lose the pointer and the focus.
  let handles = [];
  let outputs = [];
  const back = svg("g");
  const front = svg("g");
  line.append(back, front);

  // One unit of the drawing is one pixel, so that points are as large on a phone as on a desktop.
  const measure = () => Math.round(line.getBoundingClientRect().width);
  let width = measure();
  const resize = new ResizeObserver(() => {
    const now = measure();
    if (now === width || now === 0) return;
    width = now;
    draw();
  });
  resize.observe(line);

  function place(x) {
    return MARGIN + ((x - LOW) / (HIGH - LOW)) * (width - 2 * MARGIN);
  }

  function band(mean, deviation, y) {
    const from = Math.max(place(mean - deviation), 0);
    const to = Math.min(place(mean + deviation), width);
    return [
      svg("rect", { class: "band", x: from, y: y - 20, width: Math.max(to - from, 1), height: 40, rx: 6 }),
      svg("line", { class: "mean", x1: place(mean), x2: place(mean), y1: y - 24, y2: y + 24 }),
    ];
  }

  function axis() {
    return [
      ...[50, 160].map((y) => svg("line", { class: "axis", x1: place(LOW), x2: place(HIGH), y1: y, y2: y })),
      ...[-10, -5, 0, 5, 10].map((x) => svg("text", { x: place(x), y: 110, "text-anchor": "middle" }, number(x, 0))),
    ];
  }

  function build() {
    handles = state.points.map((_, i) => handle(i));
    outputs = state.points.map(() => svg("circle", { class: "after", cy: 160, r: 7 }));
    front.replaceChildren(...outputs, ...handles);
    draw();
  }

  function handle(i) {
    const element = svg(
      "g",
      { class: "handle", role: "slider", tabindex: "0", "aria-label": t("point", { i: i + 1, n: state.points.length }),
        "aria-valuemin": LOW, "aria-valuemax": HIGH, onkeydown: (event) => press(event, i), onfocus: () => choose(i),
        onpointerdown: grab, onpointermove: drag },
      svg("circle", { class: "reach", r: 18 }),
      svg("circle", { class: "before", r: 10 }),
    );
    function grab(event) {
      event.preventDefault();
      element.setPointerCapture(event.pointerId);
      element.focus({ preventScroll: true });
    }
    function drag(event) {
      if (!element.hasPointerCapture(event.pointerId)) return;
      const { left } = line.getBoundingClientRect();
      move(i, LOW + ((event.clientX - left - MARGIN) / (width - 2 * MARGIN)) * (HIGH - LOW));
    }
    return element;
  }

  function press(event, i) {
    const far = event.shiftKey ? 1 : 0.1;
    const moves = { ArrowRight: far, ArrowUp: far, ArrowLeft: -far, ArrowDown: -far, PageUp: 1, PageDown: -1, Home: -Infinity, End: Infinity };
    if (!(event.key in moves)) return;
    event.preventDefault();
    move(i, state.points[i] + moves[event.key]);
  }

  function move(i, x) {
    const points = [...state.points];
    points[i] = Number(Math.min(HIGH, Math.max(LOW, x)).toFixed(1));
    change({ points, chosen: i });
  }

  function choose(i) {
    if (i !== state.chosen) change({ chosen: i });
  }

  function change(next) {
    Object.assign(state, next);
    draw();
  }

  function add() {
    if (state.points.length === MOST) return;
    const sorted = [...state.points].sort((a, b) => a - b);
    const gaps = sorted.slice(1).map((x, i) => x - sorted[i]);
    const widest = gaps.indexOf(Math.max(...gaps));
    state.points.push(Number(((sorted[widest] + sorted[widest + 1]) / 2).toFixed(1)));
    state.chosen = state.points.length - 1;
    build();
  }

  function remove() {
    if (state.points.length === 2) return;
    state.points.splice(state.chosen, 1);
    state.chosen = Math.min(state.chosen, state.points.length - 1);
    build();
  }

  function reset() {
    Object.assign(state, { points: [...START], chosen: 6, gamma: 1, beta: 0, eps: 1e-5 });
    gamma.set(1);
    beta.set(0);
    eps.set(1e-5);
    build();
  }

  function draw() {
    const { points, chosen } = state;
    const found = normalise(points, state);
    const after = moments(found.output);
    const spread = Math.sqrt(after.variance);
    line.setAttribute("viewBox", `0 0 ${width} 210`);
    const sigma = Math.sqrt(found.variance);
    back.replaceChildren(
      ...band(found.mean, sigma, 50),
      ...band(after.mean, spread, 160),
      svg("text", { x: 8, y: 20 }, t("before")),
      svg("text", { x: 8, y: 204 }, t("after")),
      ...points.map((x, i) => svg("line", { class: "link", x1: place(x), y1: 50, x2: place(found.output[i]), y2: 160 })),
      ...axis(),
    );
    points.forEach((x, i) => {
      handles[i].setAttribute("transform", `translate(${place(x)} 50)`);
      handles[i].setAttribute("aria-valuenow", x);
      handles[i].setAttribute("aria-valuetext", t("value", { x: number(x, 1), y: number(found.output[i]) }));
      handles[i].classList.toggle("chosen", i === chosen);
      outputs[i].setAttribute("cx", place(found.output[i]));
    });
    const numbers = { m: number(found.mean), s: number(sigma), my: number(after.mean), sy: number(spread) };
    chart.set([points, found.output], t("describe", numbers));
    steps.replaceChildren(...formula(found));
    table.replaceChildren(everyPoint(found));
    judge(found, sigma);
    python.set(lines(state));
  }

  function formula({ mean, variance, deviation, centred, normalised, output }) {
    const { points, chosen, gamma, beta, eps } = state;
    const n = points.length;
    const i = chosen + 1;
    return [
      el("li", {}, `${t("step1")}: m = (${sum(points.map((x) => number(x, 1)))}) / ${n} = `, el("b", {}, number(mean, 4))),
      el("li", {}, `${t("step2")}: σ² = (${sum(centred.map((d) => `${bracketed(d)}²`))}) / ${n} = `, el("b", {}, number(variance, 4))),
      el("li", {}, `${t("step3")}: √(σ² + ε) = √(${number(variance, 4)} + ${short(eps)}) = `, el("b", {}, short(deviation, 5))),
      el("li", {}, `${t("step4", { i })}: (x − m) / √(σ² + ε) = (${number(points[chosen], 1)} − ${bracketed(mean)}) / ${short(deviation, 5)} = `, el("b", {}, number(normalised[chosen], 4))),
      el("li", {}, `${t("step5")}: y = γ · ${bracketed(normalised[chosen], 4)} + β = ${number(gamma, 1)} · ${bracketed(normalised[chosen], 4)} + ${bracketed(beta, 1)} = `, el("b", {}, number(output[chosen], 4))),
    ];
  }

  function everyPoint({ centred, normalised, output }) {
    const order = state.points.map((_, i) => i).sort((a, b) => state.points[a] - state.points[b]);
    const before = shares(order.map((i) => state.points[i]));
    const after = shares(order.map((i) => output[i]));
    const row = (name, values) => el("tr", {}, el("th", { scope: "row" }, name), ...values.map((value) => el("td", {}, value)));
    const gap = (name, found) => row(name, [...(found ?? order.slice(1).map(() => NaN)).map((part) => (Number.isNaN(part) ? "–" : `${number(part * 100, 1)} %`)), ""]);
    return el(
      "table",
      { class: "points" },
      el("caption", {}, t("table")),
      row(t("sample"), order.map((i) => i + 1)),
      row("x", order.map((i) => number(state.points[i], 1))),
      row("x − m", order.map((i) => number(centred[i], 3))),
      row("(x − m) / √(σ² + ε)", order.map((i) => number(normalised[i], 3))),
      row("y", order.map((i) => number(output[i], 3))),
      el("tr", {}, el("th", { scope: "rowgroup", colspan: order.length + 1 }, t("share"))),
      gap(t("before"), before),
      gap(t("after"), after),
    );
  }

  function judge({ normalised, deviation }, sigma) {
    const spread = sigma / deviation;
    let [tone, text] = ["good", t("kept")];
    if (state.points.every((x) => x === state.points[0])) [tone, text] = ["warn", t("constantVerdict", { e: short(Math.sqrt(state.eps)) })];
    else if (state.gamma === 0) [tone, text] = ["warn", t("collapsed")];
    else if (spread < 0.99) [tone, text] = ["warn", t("flattened", { s: number(spread, 3) })];
    else if (state.gamma < 0) [tone, text] = ["warn", t("mirrored")];
    verdict.className = `verdict ${tone}`;
    if (verdict.textContent !== text) verdict.textContent = text; // a status is read aloud: only when it changes
  }

  build();
  return {
    destroy() {
      resize.disconnect();
      chart.destroy();
    },
  };
}

function bracketed(x, decimals = 2) {
  const text = number(x, decimals);
  return text.startsWith("−") ? `(${text})` : text;
}

function sum(terms) {
  const shown = terms.length > 8 ? [...terms.slice(0, 3), "…", ...terms.slice(-2)] : terms;
  return shown.join(" + ").replace(/\+ −/g, "− ");
}
