// Builds one HTML file with script and style inside: node build.mjs [OUT], by default page.html beside this folder.
import { readFile, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const here = dirname(fileURLToPath(import.meta.url));
const out = process.argv[2] ?? join(here, "..", "page.html");
const options = { bundle: true, minify: true, write: false, format: "iife", target: "es2020", charset: "utf8", legalComments: "none" };

// import source from "./worker.js?worker" gives the bundled script of a worker as text, for new Worker(blob URL).
const worker = {
  name: "worker",
  setup({ onResolve, onLoad }) {
    onResolve({ filter: /\?worker$/ }, ({ path, resolveDir }) => ({ path: join(resolveDir, path.replace(/\?worker$/, "")), namespace: "worker" }));
    onLoad({ filter: /.*/, namespace: "worker" }, async ({ path }) => ({ contents: await bundle(path), loader: "text" }));
  },
};

async function bundle(entry, plugins = []) {
  const { outputFiles } = await build({ ...options, entryPoints: [entry], plugins });
  return outputFiles[0].text;
}

const parts = {
  style: (await bundle(join(here, "node_modules/uplot/dist/uPlot.min.css"))) + (await bundle(join(here, "style.css"))),
  script: await bundle(join(here, "main.js"), [worker]),
  licence: await readFile(join(here, "node_modules/uplot/LICENSE"), "utf8"),
};
const shell = await readFile(join(here, "index.html"), "utf8");
// A function as replacement: "$&" in the script stays as it is.
await writeFile(out, shell.replace(/\{\{(\w+)\}\}/g, (_, name) => parts[name].trim()));
console.log(out);
