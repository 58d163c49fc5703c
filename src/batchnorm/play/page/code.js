// Lines of Python with a copy button. `set(text)` changes the lines.
import { el } from "./dom.js";

export function code(parent, { lines, caption, copy, copied }) {
  const text = el("code", {}, lines);
  const button = el("button", { type: "button", class: "copy", onclick: copyLines }, copy);
  const status = el("span", { class: "hidden", role: "status" });

  async function copyLines() {
    try {
      await navigator.clipboard.writeText(text.textContent);
    } catch {
      // A page opened from disk may have no clipboard: the lines are selected, ready for Ctrl+C.
      getSelection().selectAllChildren(text);
      return;
    }
    button.textContent = status.textContent = copied;
    setTimeout(() => {
      button.textContent = copy;
      status.textContent = "";
    }, 1500);
  }

  const lineBox = el("pre", { tabindex: "0", "aria-label": caption }, text);
  const element = el("figure", { class: "code" }, el("figcaption", {}, caption, button, status), lineBox);
  parent.append(element);
  return { element, set(next) { text.textContent = next; } };
}
