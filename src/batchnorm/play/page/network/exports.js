/** The engine as tests reach it, in node and in the page. */
export * from "./comparison.js";
export * from "./data.js";
export * from "./dependence.js";
export * from "./faults.js";
export * from "./layers.js";
export * from "./training.js";
