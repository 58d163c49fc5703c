// Controls made of real <input>, <select> and <button> elements with labels, so that they work with keyboards and screen readers.
// Each is appended to `parent`; `set(value)` changes it without calling the listener.
import { el } from "./dom.js";

let made = 0;

/** A slider. With `values`, it moves along that list (learning rates, batch sizes); else from min to max by step. */
export function slider(parent, { label, min = 0, max = 1, step = 0.01, values, value, format = String, oninput }) {
  const id = `control-${++made}`;
  const limits = values ? { min: 0, max: values.length - 1, step: 1 } : { min, max, step };
  const input = el("input", { type: "range", id, ...limits });
  const output = el("output", { for: id });
  const read = () => (values ? values[Number(input.value)] : Number(input.value));
  const show = () => {
    output.textContent = format(read());
    input.setAttribute("aria-valuetext", output.textContent);
  };
  const set = (next) => {
    input.value = values ? values.indexOf(next) : next;
    show();
  };
  input.addEventListener("input", () => {
    show();
    oninput?.(read());
  });
  set(value);
  const element = el("div", { class: "control slider" }, el("label", { for: id }, label), output, input);
  parent.append(element);
  return { element, input, set, get value() { return read(); } };
}

export function toggle(parent, { label, value = false, onchange }) {
  const input = el("input", { type: "checkbox", onchange: () => onchange?.(input.checked) });
  input.checked = value;
  const element = el("label", { class: "control toggle" }, input, el("span", {}, label));
  parent.append(element);
  return { element, input, set(next) { input.checked = next; }, get value() { return input.checked; } };
}

/** A button; `primary` for the main button of a panel. `set(text)` changes its words. */
export function button(parent, { label, primary = false, onclick }) {
  const element = el("button", { type: "button", class: primary ? "primary" : "", onclick }, label);
  parent.append(element);
  return { element, set(text) { element.textContent = text; } };
}

/** A choice; `options` are [value, words] pairs, and values are strings. */
export function select(parent, { label, options, value, onchange }) {
  const id = `control-${++made}`;
  const input = el("select", { id, onchange: () => onchange?.(input.value) });
  input.append(...options.map(([name, words]) => el("option", { value: name }, words)));
  input.value = value;
  const element = el("div", { class: "control select" }, el("label", { for: id }, label), input);
  parent.append(element);
  return { element, input, set(next) { input.value = next; }, get value() { return input.value; } };
}
