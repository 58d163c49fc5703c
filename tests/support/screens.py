"""Faults of a page that can be measured: too wide, small or faint text, drawings without a name, overlapping labels."""

from __future__ import annotations

from typing import Any

SMALLEST = 11  # pixels
FAINTEST = 4.5  # contrast of WCAG 2.2 AA, 1.4.3: https://www.w3.org/TR/WCAG22/#contrast-minimum

FAULTS = """([smallest, faintest]) => {
  const faults = new Set();
  const known = new Map();
  const color = (text) => {
    if (!known.has(text)) {
      const canvas = document.createElement("canvas");
      canvas.width = canvas.height = 1;
      const pen = canvas.getContext("2d");
      pen.fillStyle = text;
      pen.fillRect(0, 0, 1, 1);
      const [r, g, b, a] = pen.getImageData(0, 0, 1, 1).data;
      known.set(text, [r, g, b, a / 255]);
    }
    return known.get(text);
  };
  const over = (top, under) => [0, 1, 2].map((i) => top[i] * top[3] + under[i] * (1 - top[3]));
  const behind = (element) => {
    const layers = [];
    for (let e = element; e; e = e.parentElement) layers.push(color(getComputedStyle(e).backgroundColor));
    return layers.reverse().reduce((under, top) => over(top, under), [255, 255, 255]);
  };
  const luminance = (rgb) => {
    const [r, g, b] = rgb.map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const contrast = (one, other) => {
    const [low, high] = [luminance(one), luminance(other)].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  };
  const opacity = (element) => {
    let product = 1;
    for (let e = element; e; e = e.parentElement) product *= Number(getComputedStyle(e).opacity);
    return product;
  };
  const width = document.documentElement.clientWidth;
  if (document.documentElement.scrollWidth > width) faults.add(`the page is wider than ${width} px`);

  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; (node = walker.nextNode()); ) {
    const element = node.parentElement;
    if (!node.data.trim() || element.closest("script, style, title, template, :disabled")) continue;
    if (!element.checkVisibility({ opacityProperty: true, visibilityProperty: true })) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    const box = range.getBoundingClientRect();
    if (box.width < 2 || box.height < 2) continue;  // for screen readers alone
    const style = getComputedStyle(element);
    const drawn = element instanceof SVGElement;
    const matrix = drawn && element.getScreenCTM();
    const size = parseFloat(style.fontSize) * (matrix ? Math.hypot(matrix.a, matrix.b) : 1);
    const where = `${element.tagName.toLowerCase()} "${node.data.trim().slice(0, 30)}"`;
    if (size < smallest - 0.01) faults.add(`${size.toFixed(1)} px: ${where}`);
    const back = behind(element);
    const [r, g, b, a] = color(drawn ? style.fill : style.color);
    const found = contrast(over([r, g, b, a * opacity(element)], back), back);
    if (found < faintest) faults.add(`contrast ${found.toFixed(2)}: ${where}`);
  }

  for (const drawing of document.querySelectorAll("svg:not([aria-hidden=true]), canvas, img")) {
    if (drawing.parentElement.closest("svg, [aria-hidden=true]")) continue;
    const box = drawing.getBoundingClientRect();
    if (box.width < 40 || box.right < 0) continue;  // an icon beside its text; what plotly measures letters with
    const name = drawing.getAttribute("aria-label") || drawing.getAttribute("alt") || drawing.closest("[aria-label]");
    if (!name) faults.add(`no name: ${drawing.outerHTML.slice(0, 60)}`);
  }

  for (const chart of document.querySelectorAll("svg.chart")) {
    const frame = chart.getBoundingClientRect();
    const texts = [...chart.querySelectorAll("text:not([transform^='rotate(-40'])")];  // their boxes are too large
    const boxes = texts.map((text) => [text.textContent, text.getBoundingClientRect()]);
    for (const [i, [text, a]] of boxes.entries()) {
      if (a.left < frame.left - 2 || a.right > frame.right + 2 || a.top < frame.top - 2 || a.bottom > frame.bottom + 2)
        faults.add(`cut off: "${text}"`);
      for (const [other, b] of boxes.slice(i + 1)) {
        const [x, y] = [
          Math.min(a.right, b.right) - Math.max(a.left, b.left),
          Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top),
        ];
        if (x > 1 && y > 3) faults.add(`"${text}" touches "${other}"`);
      }
    }
  }
  return [...faults];
}"""


def faults(tab: Any) -> list[str]:
    """One line for each fault of the page that the tab shows, in its width and its colours."""
    found: list[str] = tab.evaluate(FAULTS, [SMALLEST, FAINTEST])
    return found
