// Charts by uPlot: colours from CSS variables, sizes from the page, a text for those who cannot see them.
import uPlot from "uplot";
import { el, short } from "./dom.js";

const dark = matchMedia("(prefers-color-scheme: dark)");

/**
 * Lines over one x axis. `series`: [{ label, color: "--blue", dash, width, points }], colours by CSS variable.
 * `log` makes the y axis logarithmic; `yRange` and `xRange` fix an axis: [low, high], where null means "by the data".
 * Returns { set(x, ys, text), destroy() }; `text` describes the picture to a screen reader.
 */
export function lineChart(parent, { label, series, xLabel = "", yLabel = "", xRange, yRange, log = false, height = 220 }) {
  const lines = series.map(({ label, color, dash, width = 2, points = false }) => ({
    label,
    width,
    dash,
    stroke: () => css(color),
    points: { show: points, size: 5, fill: () => css(color) },
  }));
  return chart(parent, { label, keys: series, lines, xLabel, yLabel, xRange, yRange, log, height });
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

function chart(parent, { label, keys, lines, xLabel, yLabel, xRange, yRange, log, height }) {
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
      scales: { x: { time: false, range: limited(xRange) }, y: { distr: log ? 3 : 1, range: limited(yRange) } },
      axes: [axis(xLabel, 28), log ? decades(axis(yLabel, 52)) : axis(yLabel, 52)],
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
      plot.setData([x, ...ys]);
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

// A logarithmic axis has a line a power of ten; uPlot would draw nine, and write 0 for what is below 0.001.
function decades(axis) {
  return {
    ...axis,
    values: (_, ticks) => ticks.map((tick) => (tick === null ? "" : short(tick))),
    grid: { ...axis.grid, filter: (_, ticks) => ticks.map((tick) => (Number.isInteger(Number(Math.log10(tick).toFixed(9))) ? tick : null)) },
  };
}

// uPlot asks for a range with the data's limits, which are null where there is no data.
function limited(range) {
  if (!range) return undefined;
  return (_, low, high) => {
    const [from, to] = typeof range === "function" ? range() : range;
    const top = to ?? (high > 0 ? high * 1.08 : 1);
    return [from ?? low ?? 0, top];
  };
}

function css(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}
