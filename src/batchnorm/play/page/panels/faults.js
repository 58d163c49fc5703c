// Panel 4: five faults of batch norm in practice. Numbers with and without the cure are computed live.
import { lineChart } from "../charts.js";
import { code } from "../code.js";
import { button, slider } from "../controls.js";
import { el, number, short, svg } from "../dom.js";
import { freezing, microBatches, nanBatch, padding, sortedClasses, sortedStatistics } from "../network/faults.js";
import { words } from "./faults.words.js";

export const id = "faults";
export { words };

const [WRONG, CURED, RIGHT] = ["--blue", "--orange", "--grey"];
const percent = (share) => `${number(100 * share, 0)} %`;
const list = (values) => `(${Array.from(values, (v) => number(v)).join(", ")})`;
const upTo = (length) => Array.from({ length }, (_, i) => i + 1);
const finite = (values) => values.map((v) => (Number.isFinite(v) ? v : null));

/**
 * A fault: its slider, and for the slider's value a picture, rows of numbers [name, without cure, with cure, right], a
 * verdict and the lines of Python. A picture is a chart's { label, xLabel, lines: [[label, colour, values, dash]] }, or
 * an element.
 */
export const FAULTS = {
  nan: {
    slider: { min: 1, max: 40, step: 1, value: 20 },
    docs: ["statistics/#non-finite-batches", "Non-finite batches"],
    show(bad, t) {
      const { means, outputs, skipped } = nanBatch({ bad });
      const last = means.ours.length - 1;
      return {
        picture: {
          label: t("nanChart"),
          xLabel: t("batchAxis"),
          lines: [[t("theirs"), WRONG, means.theirs], [t("ours"), CURED, means.ours, [6, 5]]],
        },
        rows: [
          [t("nanMean"), number(means.theirs[last], 4), number(means.ours[last], 4), t("none")],
          [t("nanOutput"), list(outputs.theirs), list(outputs.ours), t("none")],
          [t("nanSkipped"), t("none"), skipped, 1],
        ],
        verdict: ["bad", t("nanVerdict", { bad, n: skipped })],
      };
    },
    lines: (bad, t) => `layer = bn.BatchNorm1d(3)  # ${t("nanCode")}
for batch in batches:
    layer(batch)
print(layer.running_mean, layer.skipped_batches)`,
  },
  padding: {
    slider: { min: 1, max: 12, step: 1, value: 3 },
    docs: ["statistics/#padding-and-missing-values", "Padding and missing values"],
    show(shortest, t) {
      const { x, lengths, real, theirs, ours } = padding({ shortest });
      const share = 1 - real.filter(Boolean).length / x.length;
      const row = (name, key, right, digits = 4) => [name, number(key(theirs), digits), number(key(ours), digits), right];
      const [mean, sigma] = [number(ours.mean, 4), number(Math.sqrt(ours.variance), 4)];
      return {
        picture: cells(lengths, t("paddingPicture")),
        rows: [
          row(t("paddingMean"), (found) => found.mean, mean),
          row(t("paddingSigma"), (found) => Math.sqrt(found.variance), sigma),
          row(t("paddingOutMean"), (found) => found.output.mean, number(0, 4)),
          row(t("paddingOutSigma"), (found) => Math.sqrt(found.output.variance), number(1, 4)),
        ],
        verdict:
          share > 0
            ? ["bad", t("paddingVerdict", { p: number(100 * share, 0), right: number(ours.mean), wrong: number(theirs.mean) })]
            : ["warn", t("paddingNone")],
      };
    },
    lines: (shortest, t) => `layer = bn.BatchNorm1d(1)
y = layer(x, lengths=lengths)  # ${t("paddingCode")}
print(layer.running_mean)      # ${t("paddingCodeMean")}`,
  },
  sorted: {
    slider: { min: 1, max: 20, step: 1, value: 10 },
    docs: ["tools/", "Tools: calibrate"],
    show(epochs, t) {
      const { sorted, shuffled, exact } = sortedStatistics();
      const { accuracies } = sortedClasses({ epochs });
      const last = sorted.length - 1;
      return {
        picture: {
          label: t("sortedChart"),
          xLabel: t("batchAxis"),
          lines: [[t("sortedOrder"), WRONG, sorted], [t("sortedShuffled"), CURED, shuffled], [t("sortedExact"), RIGHT, sorted.map(() => exact.mean), [6, 5]]],
        },
        rows: [
          [t("sortedMean"), number(sorted[last], 4), number(shuffled[last], 4), number(exact.mean, 4)],
          [t("sortedAccuracy"), percent(accuracies.sorted), percent(accuracies.shuffled), t("none")],
          [t("sortedPass"), percent(accuracies.disturbed), percent(accuracies.calibrated), percent(accuracies.shuffled)],
        ],
        verdict: [
          "bad",
          t("sortedVerdict", {
            a: number(100 * accuracies.sorted, 0),
            b: number(100 * accuracies.shuffled, 0),
            c: number(100 * accuracies.disturbed, 0),
            d: number(100 * accuracies.calibrated, 0),
          }),
        ],
      };
    },
    lines: (epochs, t) => `loader = DataLoader(data, batch_size=16, shuffle=True)  # ${t("sortedCode")}
bn.calibrate(model, loader)                             # ${t("sortedCodeAfter")}
print(model[0].running_mean)`,
  },
  micro: {
    slider: { values: [2, 4, 8, 16, 32], value: 4 },
    docs: ["big-batch/", "One big batch from micro-batches"],
    show(size, t) {
      const { whole, added, merged, errors } = microBatches({ size });
      const first = (values) => values.slice(0, 16);
      return {
        picture: {
          label: t("microChart"),
          xLabel: t("microAxis"),
          points: true,
          lines: [[t("microWhole"), RIGHT, first(whole)], [t("theirs"), WRONG, first(added)], [t("ours"), CURED, first(merged), [6, 5]]],
        },
        rows: [[t("microError"), short(errors.added), short(errors.merged), 0]],
        verdict:
          size < 32
            ? ["bad", t("microVerdict", { s: size, a: number(100 * errors.added, 0), b: short(errors.merged, 2) })]
            : ["warn", t("microSame")],
      };
    },
    lines: (size) => `optimizer.zero_grad()
bn.big_batch(model, nn.functional.cross_entropy, x, labels, micro_batch_size=${size})
optimizer.step()`,
  },
  frozen: {
    slider: { min: 0, max: 6, step: 0.5, value: 3 },
    docs: ["statistics/#freezing-that-survives-train", "Freezing that survives train()"],
    show(shift, t) {
      const { theirs, ours, before } = freezing({ shift });
      const last = theirs.means.length - 1;
      return {
        picture: {
          label: t("frozenChart"),
          xLabel: t("batchAxis"),
          lines: [[t("theirs"), WRONG, theirs.means], [t("ours"), CURED, ours.means]],
        },
        rows: [
          [t("frozenMean"), number(theirs.means[last], 4), number(ours.means[last], 4), t("none")],
          [t("frozenOutput"), number(theirs.output, 4), number(ours.output, 4), number(before, 4)],
        ],
        verdict:
          Math.abs(theirs.output - before) > 0.2
            ? ["bad", t("frozenVerdict", { a: number(theirs.output), b: number(ours.output), before: number(before) })]
            : ["warn", t("frozenNote")],
      };
    },
    lines: (shift, t) => `bn.freeze(model)  # ${t("frozenCode")}
model.train()     # ${t("frozenCodeTrain")}
model(x)`,
  },
};

const state = { chosen: "nan", values: Object.fromEntries(Object.entries(FAULTS).map(([name, fault]) => [name, fault.slider.value])) };

export function mount(root, { t, docs }) {
  const choices = el("div", { class: "choices", role: "group", "aria-label": t("choose") });
  const body = el("div", {});
  root.append(el("p", { class: "see" }, t("see")), choices, body);
  const buttons = Object.keys(FAULTS).map((name) => [name, button(choices, { label: t(name), onclick: () => choose(name) }).element]);
  let chart = null;

  function choose(name) {
    state.chosen = name;
    for (const [other, element] of buttons) element.setAttribute("aria-pressed", String(other === name));
    chart?.destroy();
    chart = null;
    body.replaceChildren();
    build(FAULTS[name], name);
  }

  function build(fault, name) {
    const controls = el("div", { class: "controls" });
    const verdict = el("p", { class: "verdict", role: "status" });
    const picture = el("div", {});
    const table = el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": t("number") });
    body.append(el("p", {}, t(`${name}See`)), controls, verdict, el("div", { class: "columns" }, picture, table));
    const python = code(body, { lines: "", caption: t("code"), copy: t("copy"), copied: t("copied") });
    body.append(docs(...fault.docs));
    slider(controls, { ...fault.slider, label: t(`${name}Slider`), value: state.values[name], oninput: update });

    function update(value) {
      state.values[name] = value;
      const found = fault.show(value, t);
      const [tone, text] = found.verdict;
      draw(picture, found.picture, text);
      table.replaceChildren(numbers(found.rows));
      verdict.className = `verdict ${tone}`;
      if (verdict.textContent !== text) verdict.textContent = text;
      python.set(fault.lines(value, t));
    }
    update(state.values[name]);
  }

  function draw(parent, picture, text) {
    if (picture instanceof Element) {
      parent.replaceChildren(picture);
      return;
    }
    chart ??= lineChart(parent, {
      label: picture.label,
      xLabel: picture.xLabel,
      whole: true,
      series: picture.lines.map(([label, color, , dash]) => ({ label, color, dash, points: picture.points })),
    });
    chart.set(upTo(picture.lines[0][2].length), picture.lines.map(([, , values]) => finite(values)), text);
  }

  function numbers(rows) {
    const head = ["number", "theirs", "ours", "exact"].map((key) => el("th", { scope: "col" }, t(key)));
    const line = ([name, ...values]) => el("tr", {}, el("th", { scope: "row" }, name), ...values.map((value) => el("td", {}, String(value))));
    return el("table", { class: "compare" }, el("thead", {}, el("tr", {}, ...head)), el("tbody", {}, ...rows.map(line)));
  }

  choose(state.chosen);
  return { destroy: () => chart?.destroy() };
}

/** Sequences as rows of cells: real values are filled. */
function cells(lengths, label) {
  const [wide, high] = [30, 22];
  const longest = Math.max(...lengths);
  const squares = lengths.flatMap((length, row) =>
    Array.from({ length: longest }, (_, k) =>
      svg("rect", { class: k < length ? "real" : "padding", x: k * wide + 2, y: row * high + 2, width: wide - 4, height: high - 4, rx: 3 }),
    ),
  );
  const box = svg("svg", { class: "cells", viewBox: `0 0 ${longest * wide} ${lengths.length * high}`, role: "img", "aria-label": label }, ...squares);
  return el("figure", {}, el("figcaption", {}, label), box);
}
