// The operators on CPU tensors: checks, memory and addresses for the kernels, and the autograd node.
//
// Schemas are defined in core/ops.py. Errors here protect memory; core/validation.py gives users clearer ones.

#include <ATen/EmptyTensor.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/library.h>

#include "kernels.h"
#include "memory.h"

namespace batchnorm {

namespace {

using at::Tensor;
using Optional = std::optional<Tensor>;
using Name = std::optional<std::string_view>;

// Outputs from this size on are written past the cache: they would push out what is still to be read, and a cache line
// that is written as a whole need not be read first. Both sides of the line are in docs/performance.md.
constexpr int64_t kPastCache = 4 << 20;

bool has(const Optional& t) { return t.has_value() && t->defined(); }

Type type_of(at::ScalarType dtype) {
  switch (dtype) {
    case at::kFloat:
      return Type::float32;
    case at::kDouble:
      return Type::float64;
    case at::kBFloat16:
      return Type::bfloat16;
    case at::kHalf:
      return Type::float16;
    default:
      TORCH_CHECK(false, "batchnorm: expected float32, float64, bfloat16 or float16, got ", dtype);
  }
}

double largest(Type type) {
  switch (type) {
    case Type::float64:
      return std::numeric_limits<double>::max();
    case Type::float16:
      return 65504;
    case Type::bfloat16:
      return 3.3895313892515355e38;
    default:
      return std::numeric_limits<float>::max();
  }
}

at::ScalarType working_dtype(const Tensor& x) { return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat; }

Activation activation_of(const Name& name) {
  if (!name) return Activation::none;
  static constexpr std::pair<std::string_view, Activation> kTable[] = {
      {"relu", Activation::relu}, {"relu6", Activation::relu6}, {"leaky_relu", Activation::leaky_relu},
      {"silu", Activation::silu}, {"gelu", Activation::gelu},   {"hardswish", Activation::hardswish}};
  for (const auto& [known, activation] : kTable) {
    if (*name == known) return activation;
  }
  TORCH_CHECK(false, "batchnorm: unknown activation ", *name);
}

// An activation whose derivative at z is that at act(z): the output is kept in place of the residual.
bool by_output(Activation a) {
  return a == Activation::relu || a == Activation::relu6 || a == Activation::leaky_relu;
}

void check_cpu(const Tensor& t, const char* name) {
  TORCH_CHECK(t.device().is_cpu() && t.layout() == at::kStrided, "batchnorm: expected ", name,
              " on cpu and dense, got ", t.device(), ", ", t.layout());
  const size_t size = at::detail::computeStorageNbytes(t.sizes(), t.strides(), t.itemsize(), t.storage_offset());
  TORCH_CHECK(t.numel() == 0 || t.storage().nbytes() >= size, "batchnorm: ", name, " needs ", size,
              " bytes, and its storage has been resized to ", t.storage().nbytes());
}

// True if the dimensions lie in memory in this order without gaps: N, then the space, and C first or last.
bool is_dense(const Tensor& x, bool channels_last) {
  const auto sizes = x.sizes(), strides = x.strides();
  int64_t step = 1;
  auto fits = [&](int64_t d) {
    const bool ok = sizes[d] == 1 || strides[d] == step;
    step *= sizes[d];
    return ok;
  };
  if (channels_last && !fits(1)) return false;
  for (int64_t d = x.dim() - 1; d > 1; --d) {
    if (!fits(d)) return false;
  }
  if (!channels_last && !fits(1)) return false;
  return fits(0);
}

// A tensor as the kernels read it: (N, C, S), as planes or as rows.
struct Input {
  Tensor x;
  int64_t N, C, S;
  bool rows;

  explicit Input(const Tensor& given) : x(given) {
    check_cpu(x, "the input");
    TORCH_CHECK(x.dim() >= 2, "batchnorm: expected an input (N, C, *), got ", x.sizes());
    TORCH_CHECK(x.numel() > 0, "batchnorm: expected an input with values, got ", x.sizes());
    N = x.size(0), C = x.size(1), S = x.numel() / (N * C);
    if (!is_dense(x, true) && !is_dense(x, false)) x = x.contiguous();
    rows = C > 1 && is_dense(x, true);
  }

  // `t` with the strides and dtype of x.
  Tensor alike(const Tensor& t, const char* name) const {
    check_cpu(t, name);
    TORCH_CHECK(t.sizes() == x.sizes(), "batchnorm: expected ", name, " of shape ", x.sizes(), ", got ", t.sizes());
    if (t.strides() == x.strides() && t.scalar_type() == x.scalar_type()) return t;
    Tensor copy = batchnorm::empty_like(x);
    copy.copy_(t);
    return copy;
  }
};

// A call, and the tensors whose addresses it holds.
struct Prepared {
  Input input;
  Call call;
  c10::SmallVector<Tensor, 8> kept;
  bool few_taken = false;

  Prepared(const Tensor& x, const Name& activation, int64_t virtual_batch_size = 0) : input(x) {
    call.cut = cut(input.rows, input.N, input.C, input.S, virtual_batch_size);
    call.type = type_of(x.scalar_type());
    call.activation = activation_of(activation);
    call.stream = static_cast<int64_t>(input.x.nbytes()) >= kPastCache;
    call.x = input.x.const_data_ptr();
    call.threads = call.cut.parallel && !at::in_parallel_region() ? at::get_num_threads() : 1;
  }

  const void* alike(const Tensor& t, const char* name) {
    kept.push_back(input.alike(t, name));
    return kept.back().const_data_ptr();
  }

  void extra(const Optional& t) {
    if (has(t)) call.extra = alike(*t, "the residual");
  }

  // A parameter or buffer (C,) as it is, or as a contiguous copy.
  Channels channels(const Tensor& t, const char* name) {
    check_cpu(t, name);
    TORCH_CHECK(t.numel() == input.C, "batchnorm: expected ", name, " of ", input.C, " channels, got ", t.sizes());
    const auto dtype = t.scalar_type();
    TORCH_CHECK(dtype == input.x.scalar_type() || (dtype == at::kFloat && input.x.scalar_type() != at::kDouble),
                "batchnorm: ", name, " has ", dtype, " and the input ", input.x.scalar_type());
    kept.push_back(t.contiguous());
    return {kept.back().data_ptr(), type_of(dtype)};
  }

  void affine(const Optional& weight, const Optional& bias) {
    if (has(weight)) call.weight = channels(*weight, "weight");
    if (has(bias)) call.bias = channels(*bias, "bias");
  }

  double few[512];  // for tables of small tensors: an allocation costs as much as their kernel

  // Uninitialised doubles.
  double* doubles(int64_t n) {
    if (n <= static_cast<int64_t>(std::size(few)) && !few_taken) {
      few_taken = true;
      return few;
    }
    kept.push_back(at::detail::empty_cpu({n}, at::kDouble));
    return kept.back().mutable_data_ptr<double>();
  }

  // Parameters (groups or 1, C) in double.
  void parameters(std::initializer_list<std::pair<const double**, const Tensor*>> given) {
    const int64_t groups = call.cut.groups, C = input.C;
    int64_t most = 1;
    for (const auto& [_, t] : given) most = std::max(most, t->size(0));
    TORCH_CHECK(most == 1 || most == groups, "batchnorm: expected parameters of ", groups, " groups, got ", most);
    call.shared = most == 1;
    for (const auto& [address, t] : given) {
      check_cpu(*t, "a parameter");
      kept.push_back(t->to(at::kDouble).expand({most, C}).contiguous());
      *address = kept.back().const_data_ptr<double>();
    }
  }

  void normalizer(const Tensor& mean, const Tensor& scale, const Tensor& shift) {
    const double* address = nullptr;
    parameters({{&address, &mean}, {&call.scale, &scale}, {&call.shift, &shift}});
    call.mean = const_cast<double*>(address);  // read only, as scale and shift are
  }

  // Weights that broadcast over x, as the kernels read them: one a position, or one a value.
  void mask(const Optional& given) {
    if (!has(given)) return;
    check_cpu(*given, "mask");
    TORCH_CHECK(given->dim() == input.x.dim(), "batchnorm: expected a mask that broadcasts over ", input.x.sizes());
    call.mask_shared = given->size(1) == 1;
    auto sizes = input.x.sizes().vec();
    if (call.mask_shared) {
      sizes[1] = 1;
      kept.push_back(given->expand(sizes).to(working_dtype(input.x)).contiguous());
    } else {
      Tensor weights = at::detail::empty_strided_cpu(sizes, input.x.strides(), working_dtype(input.x));
      weights.copy_(given->expand(sizes));
      kept.push_back(weights);
    }
    call.mask = kept.back().const_data_ptr();
  }

  void statistics(const Tensor& rows) {
    check_cpu(rows, "statistics");
    TORCH_CHECK(rows.scalar_type() == at::kDouble && rows.is_contiguous() && rows.numel() == 3 * input.C,
                "batchnorm: expected statistics (3, ", input.C, ") in float64, got ", rows.sizes());
    call.mean = rows.mutable_data_ptr<double>();
    call.rstd = call.mean + input.C;
    call.variance = call.rstd + input.C;
  }

  Tensor output() {
    Tensor y = batchnorm::empty_like(input.x);
    call.y = y.mutable_data_ptr();
    return y;
  }
};

// ---- primitives

std::tuple<Tensor, Tensor, Tensor> moments_cpu(const Tensor& x, int64_t virtual_batch_size, const Optional& mask) {
  Prepared p(x, {}, virtual_batch_size);
  p.mask(mask);
  const int64_t groups = p.call.cut.groups;
  auto table = [&](double*& address) {
    Tensor t = at::detail::empty_cpu({groups, p.input.C}, at::kDouble);
    address = t.mutable_data_ptr<double>();
    return t;
  };
  Tensor count = table(p.call.count), mean = table(p.call.mean), m2 = table(p.call.m2);
  set_moment_tables(p.call, p.doubles(moment_table_size(p.call.cut)));
  moments(p.call);
  return {count, mean, m2};
}

Tensor normalize_cpu(
    const Tensor& x, const Tensor& mean, const Tensor& scale, const Tensor& shift, const Optional& residual,
    Name activation, int64_t virtual_batch_size, const Optional& mask) {
  Prepared p(x, activation, virtual_batch_size);
  p.normalizer(mean, scale, shift);
  p.extra(residual);
  p.mask(mask);
  Tensor y = p.output();
  normalize(p.call);
  return y;
}

std::tuple<Tensor, Tensor> backward_reduce_cpu(
    const Tensor& grad, const Tensor& x, const Tensor& mean, const Tensor& scale, const Tensor& shift,
    const Optional& residual, Name activation, int64_t virtual_batch_size, const Optional& mask) {
  Prepared p(x, activation, virtual_batch_size);
  p.normalizer(mean, scale, shift);
  p.extra(residual);
  p.mask(mask);
  p.call.grad = p.alike(grad, "the gradient");
  Tensor sum_g = at::detail::empty_cpu({p.call.cut.groups, p.input.C}, at::kDouble);
  Tensor sum_gx = at::detail::empty_cpu({p.call.cut.groups, p.input.C}, at::kDouble);
  p.call.sum_g = sum_g.mutable_data_ptr<double>();
  p.call.sum_gx = sum_gx.mutable_data_ptr<double>();
  set_sum_tables(p.call, p.doubles(sum_table_size(p.call.cut)));
  backward_reduce(p.call);
  return {sum_g, sum_gx};
}

std::tuple<Tensor, Tensor> backward_apply_cpu(
    const Tensor& grad, const Tensor& x, const Tensor& mean, const Tensor& scale, const Tensor& shift,
    const Tensor& a, const Tensor& b, const Tensor& c, const Optional& residual, Name activation,
    int64_t virtual_batch_size, const Optional& mask) {
  Prepared p(x, activation, virtual_batch_size);
  const double* address = nullptr;
  p.parameters({{&address, &mean}, {&p.call.scale, &scale}, {&p.call.shift, &shift}, {&p.call.a, &a},
                {&p.call.b, &b}, {&p.call.c, &c}});
  p.call.mean = const_cast<double*>(address);
  p.extra(residual);
  p.mask(mask);
  p.call.grad = p.alike(grad, "the gradient");
  Tensor dx = p.output();
  Tensor dresidual = has(residual) ? batchnorm::empty_like(p.input.x) : at::detail::empty_cpu({0}, x.scalar_type());
  if (has(residual)) p.call.dresidual = dresidual.mutable_data_ptr();
  backward_apply(p.call);
  return {dx, dresidual};
}

// ---- the plain case and the frozen case

// A running statistic: written in place, or through a copy where the kernels cannot write it.
struct Written {
  Tensor original, copy;

  Channels open(Prepared& p, const Tensor& t, const char* name) {
    original = t;
    const Channels channels = p.channels(t, name);
    copy = p.kept.back();
    return channels;
  }
  void close() const {
    if (original.defined() && !copy.is_same(original)) original.copy_(copy);
  }
};

// Counts a batch, and returns how many there have been.
double count_batch(const Tensor& batches) {
  check_cpu(batches, "num_batches_tracked");
  TORCH_CHECK(batches.numel() == 1, "batchnorm: expected num_batches_tracked of one element");
  if (batches.scalar_type() == at::kLong) return static_cast<double>(++*batches.mutable_data_ptr<int64_t>());
  batches.add_(1);
  return batches.item().toDouble();
}

std::tuple<Tensor, Tensor> forward_cpu(
    const Tensor& x, const Optional& residual, const Optional& weight, const Optional& bias, const Optional& mean,
    const Optional& var, const Optional& running_mean, const Optional& running_var, const Optional& batches,
    const Optional& skipped, std::optional<double> momentum, double eps, Name activation, bool skip_nonfinite) {
  Prepared p(x, activation);
  Tensor statistics = at::detail::empty_cpu({3, p.input.C}, at::kDouble);
  p.statistics(statistics);
  p.call.eps = eps;
  p.affine(weight, bias);
  p.extra(residual);
  if (has(mean)) {
    TORCH_CHECK(has(var) && eps >= 0, "batchnorm: a mean needs a variance, and eps ≥ 0");
    p.call.running_mean = p.channels(*mean, "mean");
    p.call.running_var = p.channels(*var, "var");
    Tensor y = p.output();
    read_population(p.call);
    normalize(p.call);
    return {y, statistics};
  }
  TORCH_CHECK(p.input.N * p.input.S > 1 && eps > 0, "batchnorm: one value has no variance, and eps must be positive");
  TORCH_CHECK(has(running_mean) == has(running_var),
              "batchnorm: expected running_mean and running_var, or neither; got one of them");
  Written moved_mean, moved_var;
  const bool moves = has(running_mean);
  if (moves) {
    TORCH_CHECK(momentum || has(batches), "batchnorm: a cumulative average needs num_batches_tracked");
    p.call.running_mean = moved_mean.open(p, *running_mean, "running_mean");
    p.call.running_var = moved_var.open(p, *running_var, "running_var");
    p.call.limit = skip_nonfinite ? largest(p.call.running_var.type) : 0;
    if (has(skipped)) check_cpu(*skipped, "skipped_batches");
  }
  Tensor y = p.output();
  if (!p.call.cut.fused) {
    p.call.count = p.doubles(2 * p.input.C);
    p.call.m2 = p.call.count + p.input.C;
    set_moment_tables(p.call, p.doubles(moment_table_size(p.call.cut)));
  }
  if (moves) {  // nothing can fail from here on
    const double counted = has(batches) ? count_batch(*batches) : 0;
    p.call.momentum = momentum ? *momentum : 1 / counted;
  }
  forward(p.call);
  if (moves) {
    moved_mean.close();
    moved_var.close();
    if (has(skipped) && p.call.skipped.load()) count_batch(*skipped);
  }
  return {y, statistics};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward_cpu(
    const Tensor& grad, const Tensor& x, const Optional& extra, const Optional& weight, const Optional& bias,
    const Tensor& statistics, double eps, Name activation, bool constant, std::array<bool, 4> needs) {
  Prepared p(x, activation);
  p.statistics(statistics);
  p.affine(weight, bias);
  p.extra(extra);
  p.call.by_output = has(extra) && by_output(p.call.activation);
  p.call.constant = constant;
  p.call.grad = p.alike(grad, "the gradient");
  auto nothing = [&] { return at::detail::empty_cpu({0}, x.scalar_type()); };
  Tensor dx = needs[0] || needs[1] ? p.output() : nothing();
  Tensor dresidual = needs[1] ? batchnorm::empty_like(p.input.x) : nothing();
  if (needs[1]) p.call.dresidual = dresidual.mutable_data_ptr();
  Tensor dweight = nothing(), dbias = nothing();
  if (needs[2] && has(weight)) {
    dweight = at::detail::empty_cpu(weight->sizes(), weight->scalar_type());
    p.call.dweight = {dweight.mutable_data_ptr(), type_of(weight->scalar_type())};
  }
  if (needs[3] && has(bias)) {
    dbias = at::detail::empty_cpu(bias->sizes(), bias->scalar_type());
    p.call.dbias = {dbias.mutable_data_ptr(), type_of(bias->scalar_type())};
  }
  p.call.sum_g = p.doubles(2 * p.input.C);
  p.call.sum_gx = p.call.sum_g + p.input.C;
  if (!p.call.cut.fused) set_sum_tables(p.call, p.doubles(sum_table_size(p.call.cut)));
  backward(p.call);
  return {dx, dresidual, dweight, dbias};
}

// ---- autograd

template <class F>
c10::TypedOperatorHandle<F> find(const char* name, F* /* the signature */) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<F>();
}

const auto& forward_op() {
  static const auto op = find("batchnorm::forward", &forward_cpu);
  return op;
}
const auto& backward_op() {
  static const auto op = find("batchnorm::backward", &backward_cpu);
  return op;
}

using torch::autograd::SavedVariable;
using torch::autograd::Variable;
using torch::autograd::variable_list;

// The node keeps the input, the per-channel statistics, and, if the activation's derivative needs it, the residual or
// the output. A node of our own rather than torch::autograd::Function, which costs as much as a small tensor's kernel.
struct BatchNormBackward : torch::autograd::Node {
  SavedVariable x, extra, weight, bias, statistics;
  std::optional<std::string> activation;
  double eps = 0;
  bool constant = false;

  std::string name() const override { return "BatchNormBackward"; }

  void release_variables() override {
    std::lock_guard<std::mutex> lock(mutex_);
    for (auto* saved : {&x, &extra, &weight, &bias, &statistics}) saved->reset_data();
  }

  variable_list apply(variable_list&& grads) override {
    std::lock_guard<std::mutex> lock(mutex_);
    variable_list results(4);
    const Variable& grad = grads[0];
    if (!grad.defined()) return results;
    std::array<bool, 4> needs{};
    for (size_t i = 0; i < 4; ++i) needs[i] = task_should_compute_output(i);
    if (needs[1] && !activation) {  // the output is linear in the residual
      results[1] = grad;
      needs[1] = false;
    }
    if (!(needs[0] || needs[1] || needs[2] || needs[3])) return results;
    // unpacked before dispatch goes below autograd: a hook may run a part of the model again
    auto optional = [](Variable v) { return v.defined() ? Optional(std::move(v)) : Optional(); };
    const Tensor x_ = x.unpack(), statistics_ = statistics.unpack();
    const Optional extra_ = optional(extra.unpack(getptr())), weight_ = optional(weight.unpack()),
                   bias_ = optional(bias.unpack());
    auto call = [&] {
      return backward_op().call(grad, x_, extra_, weight_, bias_, statistics_, eps,
                                activation ? Name(*activation) : Name(), constant, needs);
    };
    auto computed = [&] {
      if (at::GradMode::is_enabled()) return call();  // to be differentiated again: core/ops.py has the formula
      at::AutoDispatchBelowADInplaceOrView below;
      return call();
    }();
    if (needs[0]) results[0] = std::get<0>(computed);
    if (needs[1]) results[1] = std::get<1>(computed);
    if (needs[2]) results[2] = std::get<2>(computed);
    if (needs[3]) results[3] = std::get<3>(computed);
    return results;
  }
};

bool wants_gradient(const Optional& t) { return has(t) && t->requires_grad(); }

std::tuple<Tensor, Tensor> forward_autograd(
    const Tensor& x, const Optional& residual, const Optional& weight, const Optional& bias, const Optional& mean,
    const Optional& var, const Optional& running_mean, const Optional& running_var, const Optional& batches,
    const Optional& skipped, std::optional<double> momentum, double eps, Name activation, bool skip_nonfinite) {
  for (const auto* written : {&running_mean, &running_var, &batches}) {
    if (has(*written) && !(*written)->is_inference()) torch::autograd::impl::bump_version(**written);
  }
  auto results = [&] {
    at::AutoDispatchBelowADInplaceOrView below;
    return forward_op().call(x, residual, weight, bias, mean, var, running_mean, running_var, batches, skipped,
                             momentum, eps, activation, skip_nonfinite);
  }();
  const bool differentiated = at::GradMode::is_enabled() && (x.requires_grad() || wants_gradient(residual) ||
                                                             wants_gradient(weight) || wants_gradient(bias));
  if (!differentiated) return results;
  const auto& [y, statistics] = results;
  auto node = c10::make_intrusive<BatchNormBackward>();
  const Tensor none;
  const Tensor &r = residual ? *residual : none, &w = weight ? *weight : none, &b = bias ? *bias : none;
  node->set_next_edges(torch::autograd::collect_next_edges(x, r, w, b));
  node->x = SavedVariable(x, false);
  const Activation act = activation_of(activation);
  node->weight = SavedVariable(w, false);
  node->bias = SavedVariable(b, false);
  node->statistics = SavedVariable(statistics, false);
  if (activation) node->activation.emplace(*activation);
  node->eps = eps;
  node->constant = has(mean);
  torch::autograd::set_history(y, node);
  // Last: an output saved before it has a history is taken for a leaf, and then it and the node keep each other alive.
  if (r.defined() && act != Activation::none) node->extra = SavedVariable(by_output(act) ? y : r, by_output(act));
  return results;
}

}  // namespace

TORCH_LIBRARY_IMPL(batchnorm, CPU, m) {
  m.impl("moments", moments_cpu);
  m.impl("normalize", normalize_cpu);
  m.impl("backward_reduce", backward_reduce_cpu);
  m.impl("backward_apply", backward_apply_cpu);
  m.impl("forward", forward_cpu);
  m.impl("backward", backward_cpu);
}

TORCH_LIBRARY_IMPL(batchnorm, AutogradCPU, m) { m.impl("forward", forward_autograd); }

}  // namespace batchnorm
