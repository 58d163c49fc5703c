// Charts by uPlot: colours from CSS variables, sizes from the page, a text for screen readers.
import uPlot from "uplot";
import { el, short } from "./dom.js";

const dark = matchMedia("(prefers-color-scheme: dark)");

/**
 * Lines over one x axis. `series`: [{ label, color: "--blue", dash, width, points }], colours by CSS variable.
 * `log` makes the y axis logarithmic, without values that are not above 0; `whole` has ticks of x at whole numbers only;
 * `yRange` and `xRange` fix an axis: [low, high], where null means "by the data", and y is log₁₀ of a value with `log`.
 * Returns { set(x, ys, text), destroy() }; `text` describes the picture to a screen reader.
 */
export function lineChart(parent, { label, series, xLabel = "", yLabel = "", xRange, yRange, log = false, whole = false, height = 220 }) {
  const lines = series.map(({ label, color, dash, width = 2, points = false }) => ({
    label,
    width,
    dash,
    stroke: () => css(color),
    points: { show: points, size: 5, fill: () => css(color) },
  }));
  return chart(parent, { label, keys: series, lines, xLabel, yLabel, xRange, yRange, log, whole, height });
}

/**
 * Histograms of several lists of numbers over the same bins. `range` is [low, high]; values outside fall in no bin.
 * Returns { set(lists, text, range), destroy() }.
 */
export function histogram(parent, { label, series, range, bins = 30, xLabel = "", yLabel = "", height = 200 }) {
  const bars = uPlot.paths.bars({ size: [0.94, Infinity] });
  const lines = series.map(({ label, color }) => ({
    label,
    width: 1,
    paths: bars,
    stroke: () => css(color),
    fill: () => css(color) + "88",
    points: { show: false },
  }));
  let limits = range;
  const drawn = chart(parent, { label, keys: series, lines, xLabel, yLabel, xRange: () => limits, yRange: [0, null], height });
  return {
    ...drawn,
    set(lists, text, next = range) {
      limits = next;
      const { centres, shares } = binned(lists, next, bins);
      drawn.set(centres, shares, text);
    },
  };
}

/** Shares of each list's values by bin. */
export function binned(lists, [low, high], bins) {
  const width = (high - low) / bins;
  const centres = Array.from({ length: bins }, (_, i) => low + (i + 0.5) * width);
  const shares = lists.map((list) => {
    const counts = new Array(bins).fill(0);
    for (const value of list) {
      const bin = value === high ? bins - 1 : Math.floor((value - low) / width);
      if (bin >= 0 && bin < bins) counts[bin] += 1 / list.length;
    }
    return counts;
  });
  return { centres, shares };
}

function chart(parent, { label, keys, lines, xLabel, yLabel, xRange, yRange, log, whole, height }) {
  const host = el("div", { class: "plot" });
  const description = el("p", { class: "hidden" });
  const key = el("ul", { class: "key", "aria-hidden": "true" });
  key.append(...keys.map(({ label, color, dash }) => el("li", {}, el("i", { style: `--color: var(${color})`, class: dash ? "dashed" : "" }), label)));
  const picture = el("div", { role: "img", "aria-label": label }, host);
  const element = el("figure", { class: "chart" }, el("figcaption", {}, label), key, picture, description);
  parent.append(element);

  const axis = (name, size) => ({
    label: name || undefined,
    labelSize: name ? 20 : 0,
    labelFont: "12px system-ui, sans-serif",
    font: "12px system-ui, sans-serif",
    stroke: () => css("--soft"),
    grid: { stroke: () => css("--line"), width: 1 },
    ticks: { show: false },
    size,
  });
  const plot = new uPlot(
    {
      width: host.clientWidth || 320,
      height,
      legend: { show: false },
      cursor: { show: false },
      padding: [8, 12, 0, 0],
      scales: { x: { time: false, range: limited(xRange) }, y: { range: limited(yRange) } },
      axes: [whole ? { ...axis(xLabel, 28), incrs: WHOLE } : axis(xLabel, 28), log ? { ...axis(yLabel, wide), incrs: WHOLE, values: (_, ticks) => ticks.map(power) } : axis(yLabel, wide)],
      series: [{}, ...lines],
    },
    [[], ...lines.map(() => [])],
    host,
  );

  const resize = new ResizeObserver(() => {
    if (host.clientWidth > 0 && host.clientWidth !== plot.width) plot.setSize({ width: host.clientWidth, height });
  });
  resize.observe(host);
  const repaint = () => plot.redraw(false);
  dark.addEventListener("change", repaint);
  return {
    element,
    set(x, ys, text = "") {
      plot.setData([x, ...(log ? ys.map(logarithms) : ys)]);
      if (description.textContent !== text) description.textContent = text;
    },
    destroy() {
      resize.disconnect();
      dark.removeEventListener("change", repaint);
      plot.destroy();
      element.remove();
    },
  };
}

// A logarithmic chart draws log₁₀ on a plain axis: uPlot's own has no ticks beyond 10¹⁷.
function logarithms(values) {
  return values.map((value) => (value > 0 && Number.isFinite(value) ? Math.log10(value) : null));
}

function power(exponent) {
  if (Math.abs(exponent) < 4) return short(10 ** exponent);
  return `10${[...String(exponent)].map((sign) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[sign] ?? "⁻").join("")}`;
}

// Ticks at whole numbers only: layers, batches, steps, powers of ten.
const WHOLE = [1, 2, 5].flatMap((n) => [n, 10 * n, 100 * n, 1000 * n, 10000 * n]).sort((a, b) => a - b);

// uPlot asks for a range with the data's limits, which are null where there is no data.
function limited(range) {
  if (!range) return undefined;
  return (_, low, high) => {
    const [from, to] = typeof range === "function" ? range() : range;
    const top = to ?? (high > 0 ? high * 1.08 : 1);
    return [from ?? low ?? 0, top];
  };
}

// Wide enough for the longest number on the axis.
function wide(_, ticks) {
  return Math.max(52, ...(ticks ?? []).map((tick) => 14 + 7 * String(tick ?? "").length));
}

function css(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}
