/** Which sample's gradient depends on which: ∂y_j/∂x_i within a batch of one channel. */
import { BatchNorm } from "./layers.js";

/** A layer of one channel with this γ; `frozen` by these running statistics, if given. */
function layerOf({ gamma = 1, eps, frozen = null }) {
  const layer = new BatchNorm(1, eps === undefined ? {} : { eps });
  layer.weight.value[0] = gamma;
  if (frozen) {
    layer.frozen = true;
    layer.statistics = { mean: Float64Array.of(frozen.mean), variance: Float64Array.of(frozen.variance) };
  }
  return layer;
}

/** The outputs, and the gradient dx for the gradient dy at the output. */
export function passes(x, dy, options = {}) {
  const layer = layerOf(options);
  const { outputs, saved } = layer.forward([Float64Array.from(x)], true);
  const [dx] = layer.backward([Float64Array.from(dy)], saved);
  return { y: outputs[0], dx, normalised: saved.normalised[0], scale: saved.scale[0] };
}

/** matrix[i][j] = ∂y_j/∂x_i: row i has the weight of each output j's gradient in the gradient of sample i. */
export function dependences(x, options = {}) {
  const columns = Array.from(x, (_, j) => passes(x, Array.from(x, (_, k) => (k === j ? 1 : 0)), options).dx);
  return Array.from(x, (_, i) => columns.map((column) => column[i]));
}
