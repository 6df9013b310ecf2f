// Forward: for each block of rows, over the blocks of keys that it sees: scores, SiLU, mask, times values.
#pragma once

#include <algorithm>
#include <vector>

#include "activation.h"
#include "problem.h"

namespace hypercast {

template <typename T>
struct ForwardInputs {
  Heads<T> q, k, v, k_cache, v_cache;
};

template <typename T>
void activate_row(const float* scores, const float* bias, float scale, int64_t count, T* weights) {
  if (bias) {
#pragma omp simd
    for (int64_t c = 0; c < count; ++c) {
      const float x = scores[c] * scale + bias[c];
      store(weights + c, x * sigmoid(x));
    }
  } else {
#pragma omp simd
    for (int64_t c = 0; c < count; ++c) {
      const float x = scores[c] * scale;
      store(weights + c, x * sigmoid(x));
    }
  }
}

// SiLU(scale * score + bias) of `rows` x `count` scores, kBlock apart; `weights` may be `scores`. Biases' data may be
// null.
template <typename T>
void activate(const float* scores, SequenceBias::InPlace bias, float scale, int64_t rows, int64_t count, T* weights) {
  // Whole blocks lie in one piece: one long loop instead of a short one for each row.
  const bool whole = count == kBlock && (!bias.data || bias.stride == kBlock);
  for (int64_t r = 0; r < (whole ? 1 : rows); ++r) {
    activate_row(scores + r * kBlock, bias.data ? bias.data + r * bias.stride : nullptr, scale,
                 whole ? rows * kBlock : count, weights + r * kBlock);
  }
}

template <typename T>
inline float dot(const T* a, const T* b, int64_t count) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t c = 0; c < count; ++c) sum += static_cast<float>(a[c]) * static_cast<float>(b[c]);
  return sum;
}

template <typename T>
class Forward {
 public:
  Forward(const Problem& problem, const ForwardInputs<T>& inputs, T* out)
      : problem_(problem), inputs_(inputs), out_(out) {}

  void run(const Item& item, int64_t /*slot*/) {
    const Sequence sequence = problem_.sequence(item.sequence);
    const SequenceBias bias = problem_.bias(item.sequence, sequence);
    const Rows<T> q = problem_.rows(inputs_.q, {}, item.sequence, item.head);
    const Rows<T> k = problem_.rows(inputs_.k, inputs_.k_cache, item.sequence, item.head);
    const Rows<T> v = problem_.rows(inputs_.v, inputs_.v_cache, item.sequence, item.head);
    pack_keys(sequence, item, k, v);
    for (int64_t r0 = item.begin; r0 < item.end; r0 += kGroup * kBlock) {
      const int64_t r1 = std::min(r0 + kGroup * kBlock, item.end);
      take_rows(sequence, q, r0, r1);
      const int64_t end = sequence.seen_end(r1 - 1);
      for (int64_t k0 = 0; k0 < end; k0 += kBlock) {
        for (RowBlock& rows : group_) add_keys(sequence, bias, rows, k0, std::min(k0 + kBlock, key_end_));
      }
      for (const RowBlock& rows : group_) write(sequence, bias, item.head, rows, q, k, v);
    }
  }

 private:
  // A block of queries, and the sums of their output.
  struct RowBlock {
    int64_t begin, end;
    Operand<T> query;
    float* sums;
    bool started;
  };

  void pack_keys(const Sequence& sequence, const Item& item, const Rows<T>& k, const Rows<T>& v) {
    const int64_t end = key_end_ = sequence.seen_end(item.end - 1);
    const int64_t blocks = round_up(end, kBlock) / kBlock;
    const int64_t key_size = inner<T>(problem_.width) * kBlock, value_size = kBlock * inner<T>(problem_.value_width);
    T* key_memory = keys_.at_least(blocks * key_size);
    T* value_memory = values_.at_least(blocks * value_size);
    key_.assign(blocks, {nullptr, 0});
    value_.assign(blocks, {nullptr, 0});
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t k0 = block * kBlock, k1 = std::min(k0 + kBlock, end);
      if (!sequence.any_seen(item.begin, item.end, k0, k1)) continue;
      key_[block] = as_right_transposed(k, k0, k1, problem_.width, key_memory + block * key_size);
      value_[block] = as_right(v, k0, k1, problem_.value_width, value_memory + block * value_size);
    }
  }

  void take_rows(const Sequence& sequence, const Rows<T>& q, int64_t begin, int64_t end) {
    const int64_t query_size = kBlock * inner<T>(problem_.width), sum_size = kBlock * problem_.value_width;
    T* queries = query_.at_least(kGroup * query_size);
    float* sums = sums_.at_least(kGroup * sum_size);
    group_.clear();
    for (int64_t r0 = begin; r0 < end; r0 += kBlock, queries += query_size, sums += sum_size) {
      const int64_t r1 = std::min(r0 + kBlock, end), stored = sequence.first_row;
      group_.push_back({r0, r1, as_rows(q, r0 - stored, r1 - stored, problem_.width, queries), sums, false});
    }
  }

  void add_keys(const Sequence& sequence, const SequenceBias& bias, RowBlock& rows, int64_t k0, int64_t k1) {
    const int64_t r0 = rows.begin, r1 = rows.end;
    if (!sequence.any_seen(r0, r1, k0, k1)) return;
    const int64_t padded = round_up(r1 - r0, kTile), keys = round_up(k1 - k0, kTile), width = problem_.value_width;
    const Operand<T>&key = key_[k0 / kBlock], &value = value_[k0 / kBlock];
    float* scores = scores_.at_least(kBlock * kBlock);
    T* weights = weights_of(scores);
    product(padded, keys, inner<T>(problem_.width), rows.query.data, rows.query.stride, key.data, key.stride, scores,
            kBlock, false);
    activate(scores, biases(bias, r0, r1, k0, keys), problem_.scale, padded, keys, weights);
    if (!sequence.all_seen(r0, r1, k0, k1)) mask(sequence, r0, r1, k0, keys, weights);
    product(padded, width, keys, weights, kBlock, value.data, value.stride, rows.sums, width, rows.started);
    rows.started = true;
  }

  SequenceBias::InPlace biases(const SequenceBias& bias, int64_t r0, int64_t r1, int64_t k0, int64_t keys) {
    if (!bias.any()) return {};
    if (const SequenceBias::InPlace found = bias.of_rows(r0, r1, k0); found.data) return found;
    float* made = biases_.block();
    for (int64_t r = r0; r < r1; ++r) bias.of_row(r, k0, keys, made + (r - r0) * kBlock);
    return {made, kBlock};
  }

  void write(const Sequence& sequence, const SequenceBias& bias, int64_t head, const RowBlock& rows, const Rows<T>& q,
             const Rows<T>& k, const Rows<T>& v) {
    const int64_t width = problem_.value_width;
    for (int64_t r = rows.begin; r < rows.end; ++r) {
      const int64_t at = r - sequence.first_row;
      float* sum = rows.sums + (r - rows.begin) * width;
      if (!rows.started) std::fill(sum, sum + width, 0.0f);
      if (r >= sequence.history_end) {  // a target sees itself
        const float score = dot(q.row(at), k.row(r), problem_.width) * problem_.scale + bias.of_self();
        const float weight = score * sigmoid(score);
        const T* own = v.row(r);
        for (int64_t c = 0; c < width; ++c) sum[c] += weight * static_cast<float>(own[c]);
      }
      T* out = out_ + ((sequence.rows_begin + at) * problem_.heads + head) * width;
      for (int64_t c = 0; c < width; ++c) out[c] = static_cast<T>(sum[c] * problem_.inverse_divisor);
    }
  }

  static void mask(const Sequence& sequence, int64_t r0, int64_t r1, int64_t k0, int64_t keys, T* weights) {
    for (int64_t r = r0; r < r1; ++r) {
      T* row = weights + (r - r0) * kBlock - k0;
      const int64_t hidden = std::max(k0, sequence.context_end);
      const int64_t seen = std::clamp(sequence.first_seen(r), hidden, std::max(hidden, k0 + keys));
      const int64_t end = std::clamp(sequence.seen_end(r), k0, k0 + keys);
      if (hidden < k0 + keys) std::fill(row + hidden, row + std::min(seen, k0 + keys), T(0));
      std::fill(row + end, row + k0 + keys, T(0));
    }
  }

  T* weights_of(float* scores) {
    if constexpr (std::is_same_v<T, float>) {
      return scores;
    } else {
      return weights_.at_least(kBlock * kBlock);
    }
  }

  const Problem& problem_;
  const ForwardInputs<T>& inputs_;
  T* out_;
  std::vector<Operand<T>> key_, value_;
  std::vector<RowBlock> group_;
  int64_t key_end_ = 0;
  Scratch<float> scores_{0}, biases_{1}, sums_{2};
  Scratch<T> query_{3}, keys_{4}, values_{5}, weights_{6};
};

}  // namespace hypercast
