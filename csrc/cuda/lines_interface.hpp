// The part of the C interface that takes lines one by one, over a LineLauncher(stream) with
//
//     joint_pairs<OPERAND>(params, lines), finish<OPERAND>(params), total(params)
//
// To be included once, after interface.hpp.
#pragma once
#include "lines.hpp"

namespace simmim {
namespace {

// Calls `then` with the type of operands that a validated call names.
template <class Then>
Status with_elements(int operand, Then const& then) {
  if (operand == SIMMIM_CUDA_BFLOAT16) return then(std::integral_constant<Operand, Operand::BFLOAT16>{});
  if (operand == SIMMIM_CUDA_FLOAT16) return then(std::integral_constant<Operand, Operand::FLOAT16>{});
  return then(std::integral_constant<Operand, Operand::FLOAT32>{});
}

bool is_aligned(void const* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

Status validate(simmim_cuda_problem const& p, simmim_cuda_entropies const& e) {
  if (Status status = validate(p)) return status;
  if (p.function != SIMMIM_CUDA_LOGSUMEXP || p.joint != SIMMIM_CUDA_LEFT_OUT) return refuse("cross entropies need log-sum-exps that leave joint pairs out");
  if (p.first_row || p.first_column) return refuse("cross entropies are of a whole matrix");
  if (!e.rows && !e.columns) return refuse("cross entropies need rows or columns");
  if (e.columns && p.positives) return refuse("cross entropies by column need joint pairs on the diagonal");
  if (!p.positives && p.n > p.m) return refuse("without positives there must be as many columns as rows");
  if (!e.scores) return refuse("cross entropies need room for the joint pairs' scores");
  if ((e.row_entropies && !e.rows) || (e.col_entropies && !e.columns)) return refuse("cross entropies need the log-sum-exps of their side");
  if (!e.value != !e.terms) return refuse("a value needs terms, and terms a value");
  if ((e.row_gradient && !e.rows) || (e.col_gradient && !e.columns)) return refuse("gradients need the log-sum-exps of their side");
  if (e.joint_gradient && ((e.rows && !e.row_gradient) || (e.columns && !e.col_gradient)))
    return refuse("the gradient of joint scores comes with those of the log-sum-exps");
  return {};
}

Status validate(simmim_cuda_gradients const& g, simmim_cuda_ends const& ends) {
  constexpr int64_t MOST = INT32_MAX - BLOCK;
  if (ends.count < 0 || ends.count > MOST || ends.joints < 0 || ends.joints > MOST) return refuse("counts of lines must be below 2^31 - 16384, and not below 0");
  if (ends.count == 0) return {};
  int const unit = g.operand == SIMMIM_CUDA_FLOAT32 ? 4 : 8;
  if ((ends.gradient || ends.dots) && !ends.totals) return refuse("gradients and dots need totals");
  if (!is_aligned(ends.totals) || !is_aligned(ends.gradient)) return refuse("totals and gradients must be aligned to 16 bytes");
  if (ends.dots && (!ends.own || !is_aligned(ends.own) || ends.own_row % unit || ends.own_row < g.d)) return refuse("dots need operands, aligned to 16 bytes");
  if (ends.joint && (!ends.other || !is_aligned(ends.other) || ends.other_row % unit || ends.other_row < g.d))
    return refuse("joint pairs need operands of the other side, aligned to 16 bytes");
  return {};
}
Status validate(simmim_cuda_gradients const& g) {
  if (g.operand < SIMMIM_CUDA_BFLOAT16 || g.operand > SIMMIM_CUDA_FLOAT32) return refuse("there is no such type of operands");
  if (g.d < 1 || g.d > INT32_MAX - BLOCK || g.d % (g.operand == SIMMIM_CUDA_FLOAT32 ? 4 : 8)) return refuse("d must be a multiple of 16 bytes, from 1 to 2^31 - 16384");
  if (!g.scale) return refuse("gradients need the scale");
  if (g.scale_gradient && (!g.dots || g.dot_count < 1)) return refuse("the gradient of the scale needs dots");
  if (Status status = validate(g, g.rows)) return status;
  return validate(g, g.columns);
}

JointPairs joint_pairs_of(simmim_cuda_problem const& p, simmim_cuda_entropies const& e) {
  return {p.x,
          p.y,
          p.x_row,
          p.y_row,
          p.d,
          p.scale,
          p.row_bias,
          p.col_bias,
          p.positives,
          p.lo,
          p.hi,
          int(p.n),
          int(p.m),
          e.known != 0,
          e.scores,
          {e.rows, e.row_upstream, e.row_upstream_step, e.row_entropies, e.row_gradient},
          {e.columns, e.col_upstream, e.col_upstream_step, e.col_entropies, e.col_gradient},
          e.weights != 0,
          e.factor,
          e.unit,
          e.joint_gradient,
          e.terms};
}

Ends ends_of(simmim_cuda_ends const& e) {
  return {e.totals, int(e.count), e.own, e.other, e.own_row, e.other_row, e.partners, e.joint, int(e.joints), e.gradient, e.wide != 0, e.bias, e.dots};
}

}  // namespace
}  // namespace simmim

SIMMIM_API int simmim_cuda_cross_entropies(const simmim_cuda_problem* problem, const simmim_cuda_entropies* entropies, void* workspace) {
  using namespace simmim;
  auto const& p = *problem;
  auto const& e = *entropies;
  if (Status status = validate(p, e)) return status.code;
  if (!e.known)
    if (int const code = simmim_cuda_statistics(problem, e.rows, e.columns, workspace)) return code;
  OnDevice device;
  if (Status status = device.enter(p.device)) return status.code;
  LineLauncher const launcher(p.stream);
  auto const made = joint_pairs_of(p, e);
  int const lines = int(e.col_gradient ? p.m : p.n);
  if (Status status = with_elements(p.operand, [&](auto operand) { return launcher.template joint_pairs<decltype(operand)::value>(made, lines); }))
    return status.code;
  if (!e.value) return 0;
  return launcher.total({e.terms, p.n, e.factor, e.value}).code;
}

SIMMIM_API int simmim_cuda_finish(const simmim_cuda_gradients* gradients) {
  using namespace simmim;
  auto const& g = *gradients;
  if (Status status = validate(g)) return status.code;
  OnDevice device;
  if (Status status = device.enter(g.device)) return status.code;
  LineLauncher const launcher(g.stream);
  Finish const made{g.d, g.scale, g.unit, g.upstream, ends_of(g.rows), ends_of(g.columns)};
  if (made.rows.count + int64_t(made.columns.count) > 0)
    if (Status status = with_elements(g.operand, [&](auto operand) { return launcher.template finish<decltype(operand)::value>(made); })) return status.code;
  if (!g.scale_gradient) return 0;
  return launcher.total({g.dots, g.dot_count, 1.f, g.scale_gradient}).code;
}
