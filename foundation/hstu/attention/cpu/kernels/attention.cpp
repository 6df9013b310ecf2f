// HSTU attention on a CPU as PyTorch operators, torch.ops.hypercast_cpu.{forward,backward}.
//
// operator.py documents the arguments; `thresholds` are those of semantics.time_thresholds. The cache's four tensors are
// given together or not at all. ATen's headers only: torch/extension.h would triple the time to compile.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <optional>
#include <tuple>
#include <vector>

#include "backward.h"
#include "forward.h"
#include "problem.h"

namespace hypercast {
namespace {

using at::Tensor;
using Optional = std::optional<Tensor>;

// Owns the contiguous copies that a Problem points into.
struct Arguments {
  Tensor offsets, num_targets, position, time, thresholds, timestamps, cache_offsets, cache_timestamps;
  std::optional<TimeBuckets> buckets;
  Problem problem;

  Arguments(const Tensor& q, const Tensor& v, const Tensor& given_offsets, const Tensor& given_targets,
            const Optional& given_position, const Optional& given_time, const Optional& given_thresholds,
            const Optional& given_timestamps, const Optional& given_cache_offsets,
            const Optional& given_cache_timestamps, int64_t max_seq_len, int64_t contextual_len,
            std::optional<int64_t> max_distance, int64_t full_tail, double scale) {
    offsets = given_offsets.contiguous();
    num_targets = given_targets.contiguous();
    problem.pattern = {contextual_len, max_distance.value_or(kUnlimited), full_tail};
    problem.scale = static_cast<float>(scale);
    problem.inverse_divisor = 1.0f / static_cast<float>(max_seq_len);
    problem.sequences = offsets.numel() - 1;
    problem.heads = q.size(1);
    problem.width = q.size(2);
    problem.value_width = v.size(2);
    problem.offsets = offsets.const_data_ptr<int64_t>();
    problem.num_targets = num_targets.const_data_ptr<int64_t>();
    problem.cache_offsets = pointer(given_cache_offsets, cache_offsets);
    problem.timestamps = problem.cache_timestamps = nullptr;
    if (given_position) {
      position = given_position->to(at::kFloat).contiguous();
      problem.tables.position = position.const_data_ptr<float>();
      problem.tables.positions = position.numel();
    }
    if (given_time) {
      time = given_time->to(at::kFloat).contiguous();
      thresholds = given_thresholds->contiguous();
      buckets.emplace(thresholds.const_data_ptr<float>(), thresholds.numel());
      problem.tables.time = time.const_data_ptr<float>();
      problem.tables.times = time.numel();
      problem.tables.buckets = &*buckets;
      problem.timestamps = pointer(given_timestamps, timestamps);
      problem.cache_timestamps = pointer(given_cache_timestamps, cache_timestamps);
    }
  }

  static const int64_t* pointer(const Optional& given, Tensor& kept) {
    if (!given) return nullptr;
    kept = given->contiguous();
    return kept.const_data_ptr<int64_t>();
  }

  Arguments(const Arguments&) = delete;
};

// Rows must be contiguous; whatever lies between them may stay.
Tensor with_dense_rows(const Tensor& tensor) { return tensor.stride(2) == 1 ? tensor : tensor.contiguous(); }

template <typename T>
void run_forward(const Problem& problem, const ForwardInputs<T>& inputs, Tensor& out) {
  T* to = out.data_ptr<T>();
  for_each_slot(forward_items(problem), [&] { return Forward<T>(problem, inputs, to); });
}

template <typename T>
Heads<T> heads(const Optional& tensor) {
  return tensor ? Heads<T>(*tensor) : Heads<T>();
}

Tensor forward(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& offsets, const Tensor& num_targets,
               const Optional& position_bias, const Optional& time_bias, const Optional& thresholds,
               const Optional& timestamps, const Optional& k_cache, const Optional& v_cache,
               const Optional& cache_offsets, const Optional& cache_timestamps, int64_t max_seq_len,
               int64_t contextual_len, std::optional<int64_t> max_distance, int64_t full_tail, double scale) {
  const Arguments arguments(q, v, offsets, num_targets, position_bias, time_bias, thresholds, timestamps, cache_offsets,
                            cache_timestamps, max_seq_len, contextual_len, max_distance, full_tail, scale);
  const Tensor q_rows = with_dense_rows(q), k_rows = with_dense_rows(k), v_rows = with_dense_rows(v);
  Optional k_stored, v_stored;
  if (k_cache) k_stored = with_dense_rows(*k_cache);
  if (v_cache) v_stored = with_dense_rows(*v_cache);
  Tensor out = at::empty(v.sizes(), v.options());
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    const ForwardInputs<T> inputs{Heads<T>(q_rows), Heads<T>(k_rows), Heads<T>(v_rows), heads<T>(k_stored),
                                  heads<T>(v_stored)};
    run_forward(arguments.problem, inputs, out);
  };
  q.scalar_type() == at::kBFloat16 ? run(at::BFloat16()) : run(float());
  return out;
}

// Several chunks of keys per head where there are too few heads of sequences to share among threads.
int64_t key_chunks(const Problem& problem) {
  if (problem.sequences * problem.heads >= kMaximumChunks * kMaximumChunks) return 1;
  int64_t longest = 0;
  for (int64_t b = 0; b < problem.sequences; ++b) longest = std::max(longest, problem.sequence(b).length);
  return std::clamp<int64_t>(longest / kChunk, 1, kMaximumChunks);
}

template <typename T>
void run_backward(const Problem& problem, int64_t chunks, const BackwardInputs<T>& inputs,
                  const BackwardOutputs<T>& outputs, double* position, double* time) {
  const std::vector<Item> items = backward_items(problem, chunks);
  std::vector<BiasGradient> slots(std::min<size_t>(kSlots, items.size()), BiasGradient(problem.tables));
  for_each_slot(items, [&] { return Backward<T>(problem, inputs, outputs, slots); });
  for (const BiasGradient& slot : slots) slot.add_to(position, time);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> backward(
    const Tensor& grad, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& offsets,
    const Tensor& num_targets, const Optional& position_bias, const Optional& time_bias, const Optional& thresholds,
    const Optional& timestamps, int64_t max_seq_len, int64_t contextual_len, std::optional<int64_t> max_distance,
    int64_t full_tail, double scale) {
  const Arguments arguments(q, v, offsets, num_targets, position_bias, time_bias, thresholds, timestamps, {}, {},
                            max_seq_len, contextual_len, max_distance, full_tail, scale);
  const Problem& problem = arguments.problem;
  const Tensor q_rows = with_dense_rows(q), k_rows = with_dense_rows(k), v_rows = with_dense_rows(v),
               grad_rows = with_dense_rows(grad);
  const int64_t chunks = key_chunks(problem);
  Tensor dq = at::empty({chunks, q.size(0), q.size(1), q.size(2)}, q.options().dtype(at::kFloat));
  Tensor dk = at::empty(k.sizes(), k.options()), dv = at::empty(v.sizes(), v.options());
  Tensor position = at::zeros({problem.tables.positions}, at::kDouble);
  Tensor time = at::zeros({problem.tables.times}, at::kDouble);
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    const BackwardInputs<T> inputs{Heads<T>(q_rows), Heads<T>(k_rows), Heads<T>(v_rows), Heads<T>(grad_rows)};
    const BackwardOutputs<T> outputs{dq.data_ptr<float>(), dq.stride(0), dk.data_ptr<T>(), dv.data_ptr<T>()};
    run_backward(problem, chunks, inputs, outputs, position.data_ptr<double>(), time.data_ptr<double>());
  };
  q.scalar_type() == at::kBFloat16 ? run(at::BFloat16()) : run(float());
  const auto table = [&](const Optional& like, Tensor& sum) {
    return like ? sum.mul_(problem.inverse_divisor).to(like->scalar_type()) : at::empty({0}, q.options());
  };
  return {(chunks == 1 ? dq.select(0, 0) : dq.sum(0)).to(q.scalar_type()), dk, dv, table(position_bias, position),
          table(time_bias, time)};
}

TORCH_LIBRARY(hypercast_cpu, m) {
  m.def(
      "forward(Tensor q, Tensor k, Tensor v, Tensor offsets, Tensor num_targets, Tensor? position_bias, "
      "Tensor? time_bias, Tensor? thresholds, Tensor? timestamps, Tensor? k_cache, Tensor? v_cache, "
      "Tensor? cache_offsets, Tensor? cache_timestamps, int max_seq_len, int contextual_len, int? max_distance, "
      "int full_tail, float scale) -> Tensor",
      forward);
  m.def(
      "backward(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor offsets, Tensor num_targets, "
      "Tensor? position_bias, Tensor? time_bias, Tensor? thresholds, Tensor? timestamps, int max_seq_len, "
      "int contextual_len, int? max_distance, int full_tail, float scale) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
      backward);
}

}  // namespace
}  // namespace hypercast
