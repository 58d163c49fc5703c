// The shell: header, language switch, the panels in order, sources. A language switch mounts every panel anew.
import { el } from "./dom.js";
import * as network from "./network/exports.js";
import * as normalise from "./normalise.js";
import * as backward from "./panels/backward.js";
import * as batch from "./panels/batch.js";
import * as evaluation from "./panels/evaluation.js";
import * as faults from "./panels/faults.js";
import * as learning from "./panels/network.js";
import * as stream from "./stream.js";
import { languages, words } from "./words.js";

const PANELS = [batch, learning, evaluation, faults, backward];

// For the tests, which compare these numbers with the package's.
window.batchnormPlay = { normalise, stream, network, words: Object.fromEntries(PANELS.map((panel) => [panel.id, panel.words])) };

const page = document.getElementById("page");
const asked = new URLSearchParams(location.search).get("lang");
let mounted = [];

/** Words of a panel in one language, and the shell's if it has none for a key; {name} in a text is filled from `values`. */
function translator(lang, own = {}) {
  return (key, values = {}) => {
    const text = own[lang]?.[key] ?? words[lang][key];
    if (text === undefined) throw new Error(`no words for ${key} in ${lang}`);
    return typeof text === "string" ? text.replace(/\{(\w+)\}/g, (all, name) => values[name] ?? all) : text;
  };
}

/** "In the docs: Tools, Calibrate", a link if the page is part of the docs site. */
function docs(t) {
  const base = document.querySelector("meta[name=docs]").content;
  return (path, title) => {
    const target = base ? el("a", { href: base + path }, title) : el("b", {}, title);
    return el("p", { class: "docs" }, t("docs"), target);
  };
}

function render(lang) {
  for (const panel of mounted) panel.destroy();
  const t = translator(lang);
  document.documentElement.lang = lang;
  document.title = `${t("page")} · batchnorm`;
  const sections = PANELS.map((panel, i) => {
    const title = translator(lang, panel.words)("title");
    const heading = el("h2", { id: `${panel.id}-title` }, el("span", { class: "number" }, `${i + 1}`), title);
    return { panel, title, root: el("section", { id: panel.id, "aria-labelledby": `${panel.id}-title` }, heading) };
  });
  const links = sections.map(({ panel, title }, i) => el("li", {}, el("a", { href: `#${panel.id}` }, `${i + 1} ${title}`)));
  page.replaceChildren(
    el(
      "header",
      {},
      el("div", { class: "top" }, el("p", { class: "eyebrow" }, "batchnorm play"), switcher(lang, t)),
      el("h1", {}, t("page")),
      el("p", { class: "lead" }, t("lead")),
      el("nav", { "aria-label": t("panels") }, el("ol", {}, ...links)),
    ),
    el("main", {}, ...sections.map(({ root }) => root), known(t)),
    el("footer", {}, el("p", {}, `${t("study")} `, el("code", {}, "batchnorm study")), el("p", {}, t("made"))),
  );
  // Panels are mounted in the document: charts measure the width that they have.
  mounted = sections.map(({ panel, root }) =>
    panel.mount(root, { t: translator(lang, panel.words), lang, docs: docs(t) }),
  );
}

function switcher(lang, t) {
  const buttons = Object.entries(languages).map(([code, name]) =>
    el("button", { type: "button", lang: code, "aria-pressed": String(code === lang), onclick: () => change(code) }, name),
  );
  return el("div", { class: "languages", role: "group", "aria-label": t("language") }, ...buttons);
}

function change(lang) {
  const place = scrollY;
  render(lang);
  scrollTo({ top: place, behavior: "instant" });
  page.querySelector(`.languages [lang=${lang}]`).focus({ preventScroll: true });
  history.replaceState(null, "", `?lang=${lang}${location.hash}`);
}

function known(t) {
  const reasons = t("reasons").map(([kind, text]) => el("li", {}, el("span", { class: `badge ${kind}` }, t(kind)), " ", text));
  const references = t("references").map(([title, id]) =>
    el("li", {}, `${title}, `, el("a", { href: `https://arxiv.org/abs/${id}` }, `arXiv:${id}`)),
  );
  return el(
    "section",
    { id: "known", "aria-labelledby": "known-title" },
    el("h2", { id: "known-title" }, t("known")),
    el("p", {}, t("knownLead")),
    el("ul", { class: "reasons" }, ...reasons),
    el("h3", {}, t("sources")),
    el("ol", { class: "references" }, ...references),
  );
}

render(asked in languages ? asked : document.documentElement.lang);
// The sections did not exist when the browser looked for the address's anchor.
if (location.hash) document.getElementById(location.hash.slice(1))?.scrollIntoView({ behavior: "instant" });
