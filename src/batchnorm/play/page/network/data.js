/** Data sets that fit in a page. Inputs are rows of a Float64Array, labels numbers from 0. All are seeded. */
import { random } from "../normalise.js";
import { DIGITS } from "./digits.js";

const SAMPLES = 600;
const IN_TRAINING = 2 / 3;

/** The names of the sets with two inputs, and of the one with 64. */
export const DATASETS = ["moons", "circles", "spiral", "clusters", "digits"];

/** { features, classes, train: { inputs, labels }, test: { inputs, labels } } */
export function dataset(name, seed = 1) {
  const { uniform, normal } = random(seed);
  if (name === "digits") return split(digits(), 64, 10, uniform);
  const samples = Array.from({ length: SAMPLES }, (_, index) => SHAPES[name].sample(index, uniform, normal));
  return split(samples, 2, SHAPES[name].classes, uniform);
}

// A sample is { input: [x, y], label }; the sets are about as wide as [−1.5, 1.5].
const SHAPES = {
  moons: {
    classes: 2,
    sample(index, uniform, normal) {
      const angle = Math.PI * uniform();
      const label = index % 2;
      const [x, y] = label === 0 ? [Math.cos(angle), Math.sin(angle)] : [1 - Math.cos(angle), 0.5 - Math.sin(angle)];
      return { input: [x - 0.5 + 0.1 * normal(), y - 0.25 + 0.1 * normal()], label };
    },
  },
  circles: {
    classes: 2,
    sample(index, uniform, normal) {
      const angle = 2 * Math.PI * uniform();
      const radius = index % 2 === 0 ? 0.5 : 1.2;
      return { input: [radius * Math.cos(angle) + 0.1 * normal(), radius * Math.sin(angle) + 0.1 * normal()], label: index % 2 };
    },
  },
  spiral: {
    classes: 2,
    sample(index, uniform, normal) {
      const turn = Math.sqrt(uniform()); // more samples outside, where the arms are longer
      const angle = 3 * Math.PI * turn + (index % 2) * Math.PI;
      const radius = 1.4 * turn;
      return { input: [radius * Math.cos(angle) + 0.04 * normal(), radius * Math.sin(angle) + 0.04 * normal()], label: index % 2 };
    },
  },
  clusters: {
    classes: 4,
    sample(index, uniform, normal) {
      const angle = (Math.PI / 2) * (index % 4) + Math.PI / 4;
      return { input: [Math.cos(angle) + 0.3 * normal(), Math.sin(angle) + 0.3 * normal()], label: index % 4 };
    },
  },
};

// Pixels have 17 levels, one letter each; they are scaled to −1 … 1.
function digits() {
  return DIGITS.map(([label, pixels]) => ({
    input: Array.from(pixels, (letter) => parseInt(letter, 17) / 8 - 1),
    label,
  }));
}

function split(samples, features, classes, uniform) {
  const shuffled = permutation(samples.length, uniform).map((index) => samples[index]);
  const inTraining = Math.round(samples.length * IN_TRAINING);
  const rows = (part) => ({
    inputs: Float64Array.from(part.flatMap(({ input }) => input)),
    labels: Uint8Array.from(part, ({ label }) => label),
  });
  return { features, classes, train: rows(shuffled.slice(0, inTraining)), test: rows(shuffled.slice(inTraining)) };
}

/** The numbers below `length` in random order. */
export function permutation(length, uniform) {
  const order = Array.from({ length }, (_, index) => index);
  for (let last = length - 1; last > 0; last--) {
    const other = Math.floor(uniform() * (last + 1));
    [order[last], order[other]] = [order[other], order[last]];
  }
  return order;
}

/** The rows of `inputs` with these indices. */
export function rowsOf(inputs, features, indices) {
  const rows = new Float64Array(indices.length * features);
  indices.forEach((index, row) => rows.set(inputs.subarray(index * features, (index + 1) * features), row * features));
  return rows;
}
