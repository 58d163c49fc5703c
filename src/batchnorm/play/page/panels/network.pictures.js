// Canvases of panel 2: answers over the plane, answers to digits, and histograms by layer.
import { BINS, EXTENT, FIELD } from "../network/comparison.js";

const CLASSES = ["--violet", "--green", "--red", "--grey"];
const SIDE = 320;

/** Background: the answer at each point, paler where the network is unsure. Dots and squares: the samples in training. */
export function drawField(canvas, { labels, sure }, { train, classes }) {
  const context = sized(canvas, SIDE, SIDE);
  const fills = CLASSES.map(color);
  const colors = CLASSES.map(rgb);
  const image = new ImageData(FIELD, FIELD);
  labels.forEach((label, i) => {
    if (label < 0) return; // NaN: no answer, no colour
    const certainty = (sure[i] - 1 / classes) / (1 - 1 / classes);
    image.data.set([...colors[label], 30 + 140 * certainty], 4 * i);
  });
  const small = new OffscreenCanvas(FIELD, FIELD);
  small.getContext("2d").putImageData(image, 0, 0);
  context.drawImage(small, 0, 0, SIDE, SIDE);
  const place = (v) => ((v + EXTENT) / (2 * EXTENT)) * SIDE;
  context.strokeStyle = color("--panel");
  train.labels.forEach((label, row) => {
    context.fillStyle = fills[label];
    context.beginPath();
    const [x, y] = [place(train.inputs[2 * row]), SIDE - place(train.inputs[2 * row + 1])];
    if (label % 2) context.rect(x - 3, y - 3, 6, 6); // classes differ in shape too
    else context.arc(x, y, 3.5, 0, 2 * Math.PI);
    context.fill();
    context.stroke();
  });
}

/** 24 digits with the network's answers; wrong ones are marked by colour and by a cross. */
export function drawAnswers(canvas, answers, { test, features }) {
  const context = sized(canvas, SIDE, SIDE);
  const [columns, cell] = [5, 64];
  const ink = rgb("--ink");
  const small = new OffscreenCanvas(8, 8);
  answers.forEach((answer, k) => {
    const [x, y] = [(k % columns) * cell, Math.floor(k / columns) * cell];
    const image = new ImageData(8, 8);
    for (let pixel = 0; pixel < 64; pixel++) {
      image.data.set([...ink, 127.5 * (1 + test.inputs[k * features + pixel])], 4 * pixel);
    }
    const right = answer === test.labels[k];
    small.getContext("2d").putImageData(image, 0, 0);
    context.imageSmoothingEnabled = false;
    context.drawImage(small, x + 3, y + 15, 32, 32);
    context.fillStyle = color(right ? "--good" : "--bad");
    context.font = "600 17px system-ui, sans-serif";
    context.fillText(`${answer < 0 ? "?" : answer}${right ? "" : "✗"}`, x + 37, y + 37);
  });
}

/** One histogram per row, from the first layer at the top to the last; darker means more values. */
export function drawStrip(canvas, histograms, name) {
  const height = 8 * histograms.length;
  const context = sized(canvas, SIDE, height);
  context.fillStyle = color(name);
  histograms.forEach((shares, layer) => {
    const most = Math.max(...shares);
    shares.forEach((share, bin) => {
      context.globalAlpha = share > 0 ? 0.08 + 0.92 * (share / most) : 0;
      context.fillRect((bin * SIDE) / BINS, 8 * layer, SIDE / BINS, 7);
    });
  });
  context.globalAlpha = 1;
}

// A canvas has more pixels than points on a fine screen. Its size is set only when it changes, since that clears it.
function sized(canvas, width, height) {
  const ratio = Math.min(window.devicePixelRatio || 1, 2);
  const [w, h] = [Math.round(width * ratio), Math.round(height * ratio)];
  if (canvas.width !== w || canvas.height !== h) Object.assign(canvas, { width: w, height: h });
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  return context;
}

function color(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

// Colours of the style sheet are #rrggbb or #rgb.
function rgb(name) {
  const hex = color(name).slice(1);
  const digits = hex.length === 3 ? [...hex].map((digit) => digit + digit) : hex.match(/../g);
  return digits.map((pair) => parseInt(pair, 16));
}
