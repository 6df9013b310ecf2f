// Backward: scores are computed again, transposed (keys by rows), so that every product reads its operands in order.
//
// With S' = K Q', P' = SiLU(S'), G' = V dO' and dS' = G' * SiLU'(S'), all of one block and masked:
//   dV += P' dO    dK += dS' Q    dQ' += K' dS'
// Scale and divisor are applied to the sums.
#pragma once

#include <algorithm>
#include <vector>

#include "activation.h"
#include "forward.h"
#include "problem.h"

namespace hypercast {

template <typename T>
struct BackwardInputs {
  Heads<T> q, k, v, grad;
};

// Where gradients go: contiguous [tokens, heads, width] each; dq in float32, once per chunk of keys.
template <typename T>
struct BackwardOutputs {
  float* dq;
  int64_t dq_chunk_stride;
  T* dk;
  T* dv;
};

HYPERCAST_INLINE void differentiate(float x, float& weight, float& gradient) {
  const float s = sigmoid(x);
  weight = x * s;
  gradient *= s + weight * (1.0f - s);
}

inline void differentiate_row(float* scores, float* gradient, const float* bias, float scale, int64_t count) {
  if (bias) {
#pragma omp simd
    for (int64_t c = 0; c < count; ++c) differentiate(scores[c] * scale + bias[c], scores[c], gradient[c]);
  } else {
#pragma omp simd
    for (int64_t c = 0; c < count; ++c) differentiate(scores[c] * scale, scores[c], gradient[c]);
  }
}

// Scores to weights, and gradients of weights to gradients of scores: `keys` x `count` of each, kBlock apart.
inline void differentiate(float* scores, float* gradient, SequenceBias::InPlace bias, float scale, int64_t keys,
                          int64_t count) {
  const bool whole = count == kBlock && (!bias.data || bias.stride == kBlock);  // as in activate()
  for (int64_t k = 0; k < (whole ? 1 : keys); ++k) {
    differentiate_row(scores + k * kBlock, gradient + k * kBlock, bias.data ? bias.data + k * bias.stride : nullptr,
                      scale, whole ? keys * kBlock : count);
  }
}

template <typename T>
class Backward {
 public:
  Backward(const Problem& problem, const BackwardInputs<T>& inputs, const BackwardOutputs<T>& outputs,
           std::vector<BiasGradient>& slots)
      : problem_(problem),
        inputs_(inputs),
        outputs_(outputs),
        slots_(slots),
        width_(problem.width),
        values_(problem.value_width) {}

  void run(const Item& item, int64_t slot) {
    BiasGradient& tables = slots_[slot];
    const Sequence sequence = problem_.sequence(item.sequence);
    const SequenceBias bias = problem_.bias(item.sequence, sequence);
    tables.begin(sequence);
    const Rows<T> q = problem_.rows(inputs_.q, {}, item.sequence, item.head);
    const Rows<T> k = problem_.rows(inputs_.k, {}, item.sequence, item.head);
    const Rows<T> v = problem_.rows(inputs_.v, {}, item.sequence, item.head);
    const Rows<T> grad = problem_.rows(inputs_.grad, {}, item.sequence, item.head);
    pack_rows(sequence, item, q, grad);
    for (int64_t k0 = item.begin; k0 < item.end; k0 += kGroup * kBlock) {
      take_keys(k, v, k0, std::min(k0 + kGroup * kBlock, item.end));
      for (RowBlock& rows : rows_) {
        for (KeyBlock& keys : group_) add(sequence, bias, rows, keys, tables);
      }
      for (const KeyBlock& keys : group_) write(sequence, item.head, keys);
    }
    tables.end();
    write_dq(sequence, item);
    if (item.chunk == 0) {
      for (int64_t target = sequence.history_end; target < sequence.length; ++target) {
        self(sequence, bias, item.head, target, q.row(target), k.row(target), v.row(target), grad.row(target), tables);
      }
    }
  }

 private:
  // One block of rows in the four layouts that products read, and the sums of its dQ'.
  struct RowBlock {
    int64_t begin, end;
    bool seen, started;
    Operand<T> q_transposed, grad_transposed, q, grad;
    float* dq_transposed;
  };

  // One block of keys with their values, and the sums of their gradients.
  struct KeyBlock {
    int64_t begin, end;
    Operand<T> key, value, key_transposed;
    float *dk, *dv;
    bool started;
  };

  void pack_rows(const Sequence& sequence, const Item& item, const Rows<T>& q, const Rows<T>& grad) {
    const int64_t blocks = round_up(sequence.length, kBlock) / kBlock;
    const int64_t q_size = kBlock * inner<T>(width_), grad_size = kBlock * inner<T>(values_);
    T* q_memory = q_memory_.at_least(2 * blocks * q_size);
    T* grad_memory = grad_memory_.at_least(2 * blocks * grad_size);
    float* dq_memory = dq_memory_.at_least(blocks * kBlock * width_);
    rows_.assign(blocks, {});
    for (int64_t block = 0; block < blocks; ++block) {
      RowBlock& made = rows_[block];
      const int64_t r0 = made.begin = block * kBlock, r1 = made.end = std::min(r0 + kBlock, sequence.length);
      made.seen = item.begin < item.end && sequence.any_seen(r0, r1, item.begin, item.end);
      if (!made.seen) continue;
      made.q_transposed = as_right_transposed(q, r0, r1, width_, q_memory + 2 * block * q_size);
      made.q = as_right(q, r0, r1, width_, q_memory + (2 * block + 1) * q_size);
      made.grad_transposed = as_right_transposed(grad, r0, r1, values_, grad_memory + 2 * block * grad_size);
      made.grad = as_right(grad, r0, r1, values_, grad_memory + (2 * block + 1) * grad_size);
      made.dq_transposed = dq_memory + block * kBlock * width_;
    }
  }

  void take_keys(const Rows<T>& k, const Rows<T>& v, int64_t begin, int64_t end) {
    const int64_t key_size = kBlock * inner<T>(width_), value_size = kBlock * inner<T>(values_);
    T* keys = key_memory_.at_least(kGroup * key_size);
    T* values = value_memory_.at_least(kGroup * value_size);
    T* transposed = transposed_memory_.at_least(kGroup * key_size);
    float* dk = dk_.at_least(kGroup * kBlock * width_);
    float* dv = dv_.at_least(kGroup * kBlock * values_);
    group_.clear();
    for (int64_t block = 0; begin + block * kBlock < end; ++block) {
      const int64_t k0 = begin + block * kBlock, k1 = std::min(k0 + kBlock, end);
      group_.push_back({k0, k1, as_rows(k, k0, k1, width_, keys + block * key_size),
                        as_rows(v, k0, k1, values_, values + block * value_size),
                        as_left_transposed(k, k0, k1, width_, transposed + block * key_size),
                        dk + block * kBlock * width_, dv + block * kBlock * values_, false});
    }
  }

  void add(const Sequence& sequence, const SequenceBias& bias, RowBlock& row, KeyBlock& key, BiasGradient& tables) {
    const int64_t r0 = row.begin, r1 = row.end, k0 = key.begin, k1 = key.end;
    if (!row.seen || !sequence.any_seen(r0, r1, k0, k1)) return;
    const int64_t rows = round_up(r1 - r0, kTile), keys = round_up(k1 - k0, kTile);
    float* scores = scores_.at_least(kBlock * kBlock);
    constexpr int64_t kMargin = BiasGradient::kLanes;
    float* gradient = gradient_.at_least(kMargin + kBlock * kBlock + kMargin) + kMargin;
    int32_t* buckets = buckets_.at_least(kBlock * kBlock);
    int32_t common[kBlock];
    product(keys, rows, inner<T>(width_), key.key.data, key.key.stride, row.q_transposed.data, row.q_transposed.stride,
            scores, kBlock, false);
    product(keys, rows, inner<T>(values_), key.value.data, key.value.stride, row.grad_transposed.data,
            row.grad_transposed.stride, gradient, kBlock, false);
    const SequenceBias::InPlace in_place = bias.any() ? bias.of_keys(k0, r0, r1) : SequenceBias::InPlace{};
    SequenceBias::InPlace biases = in_place;
    if (bias.any() && !in_place.data) {
      float* made = biases_.block();
      for (int64_t k = k0, at = 0; k < k1; ++k, at += kBlock) {
        common[k - k0] = bias.of_key(k, r0, r1 - r0, made + at, buckets + at);
      }
      biases = {made, kBlock};
    }
    differentiate(scores, gradient, biases, problem_.scale, keys, rows);
    if (!sequence.all_seen(r0, r1, k0, k1)) {
      mask(sequence, k0, k1, r0, rows, scores);
      mask(sequence, k0, k1, r0, rows, gradient);
    }
    if (in_place.data) {
      tables.add_block(k0, k1 - k0, r0, r1 - r0, gradient);
    } else if (biases.data) {
      for (int64_t k = k0, at = 0; k < k1; ++k, at += kBlock) {
        tables.add(k, r0, r1 - r0, gradient + at, common[k - k0], buckets + at);
      }
    }
    const T *weights, *left, *right;
    as_operands(scores, gradient, keys, rows, weights, left, right);
    product(keys, values_, rows, weights, kBlock, row.grad.data, row.grad.stride, key.dv, values_, key.started);
    product(keys, width_, rows, left, kBlock, row.q.data, row.q.stride, key.dk, width_, key.started);
    product(width_, rows, keys, key.key_transposed.data, key.key_transposed.stride, right, kBlock, row.dq_transposed,
            kBlock, row.started);
    key.started = row.started = true;
  }

  void write(const Sequence& sequence, int64_t head, const KeyBlock& key) {
    const float factor = problem_.scale * problem_.inverse_divisor;
    for (int64_t k = key.begin; k < key.end; ++k) {
      const int64_t at = (sequence.rows_begin + k) * problem_.heads + head;
      const float *dk = key.dk + (k - key.begin) * width_, *dv = key.dv + (k - key.begin) * values_;
      T *to_k = outputs_.dk + at * width_, *to_v = outputs_.dv + at * values_;
      for (int64_t c = 0; c < width_; ++c) to_k[c] = static_cast<T>(key.started ? dk[c] * factor : 0.0f);
      for (int64_t c = 0; c < values_; ++c) {
        to_v[c] = static_cast<T>(key.started ? dv[c] * problem_.inverse_divisor : 0.0f);
      }
    }
  }

  static void mask(const Sequence& sequence, int64_t k0, int64_t k1, int64_t r0, int64_t rows, float* block) {
    for (int64_t k = std::max(k0, sequence.context_end); k < k1; ++k) {
      float* row = block + (k - k0) * kBlock - r0;
      std::fill(row + r0, row + std::clamp(k, r0, r0 + rows), 0.0f);
      const int64_t begin = std::clamp(sequence.hidden_begin(k), r0, r0 + rows);
      const int64_t end = std::clamp(sequence.hidden_end(), begin, r0 + rows);
      std::fill(row + begin, row + end, 0.0f);
    }
  }

  // Weights and gradients of scores as operands: in place for float32, rounded for bfloat16.
  void as_operands(float* scores, float* gradient, int64_t keys, int64_t rows, const T*& weights, const T*& left,
                   const T*& right) {
    if constexpr (std::is_same_v<T, float>) {
      weights = scores;
      left = right = gradient;
    } else {
      T* memory = rounded_.at_least(3 * kBlock * kBlock);
      T *w = memory, *l = memory + kBlock * kBlock, *r = memory + 2 * kBlock * kBlock;
      for (int64_t j = 0; j < keys; ++j) {
#pragma omp simd
        for (int64_t c = 0; c < rows; ++c) store(w + j * kBlock + c, scores[j * kBlock + c]);
#pragma omp simd
        for (int64_t c = 0; c < rows; ++c) store(l + j * kBlock + c, gradient[j * kBlock + c]);
      }
      for (int64_t j = 0; j < keys; j += 2) {
        for (int64_t c = 0; c < rows; ++c) {
          r[j * kBlock + 2 * c] = l[j * kBlock + c];
          r[j * kBlock + 2 * c + 1] = l[(j + 1) * kBlock + c];
        }
      }
      weights = w;
      left = l;
      right = r;
    }
  }

  void write_dq(const Sequence& sequence, const Item& item) {
    const float factor = problem_.scale * problem_.inverse_divisor;
    for (const RowBlock& row : rows_) {
      for (int64_t r = row.begin; r < row.end; ++r) {
        float* out = dq_row(sequence, item.head, item.chunk, r);
        for (int64_t c = 0; c < width_; ++c) {
          out[c] = row.started ? row.dq_transposed[c * kBlock + r - row.begin] * factor : 0.0f;
        }
      }
    }
  }

  float* dq_row(const Sequence& sequence, int64_t head, int64_t chunk, int64_t row) {
    return outputs_.dq + chunk * outputs_.dq_chunk_stride + ((sequence.rows_begin + row) * problem_.heads + head) * width_;
  }

  // A target's weight for itself.
  void self(const Sequence& sequence, const SequenceBias& bias, int64_t head, int64_t row, const T* q, const T* k,
            const T* v, const T* grad, BiasGradient& tables) {
    const float x = dot(q, k, width_) * problem_.scale + bias.of_self();
    const float s = sigmoid(x), weight = x * s;
    const float gradient = dot(grad, v, values_) * (s + weight * (1.0f - s));
    tables.add_self(gradient);
    const float factor = gradient * problem_.scale * problem_.inverse_divisor;
    const int64_t at = (sequence.rows_begin + row) * problem_.heads + head;
    float* dq = dq_row(sequence, head, 0, row);
    for (int64_t c = 0; c < width_; ++c) dq[c] += factor * static_cast<float>(k[c]);
    for (int64_t c = 0; c < width_; ++c) outputs_.dk[at * width_ + c] = static_cast<T>(factor * static_cast<float>(q[c]));
    for (int64_t c = 0; c < values_; ++c) {
      outputs_.dv[at * values_ + c] = static_cast<T>(weight * problem_.inverse_divisor * static_cast<float>(grad[c]));
    }
  }

  const Problem& problem_;
  const BackwardInputs<T>& inputs_;
  const BackwardOutputs<T>& outputs_;
  std::vector<BiasGradient>& slots_;
  const int64_t width_, values_;
  std::vector<RowBlock> rows_;
  std::vector<KeyBlock> group_;
  Scratch<float> scores_{0}, gradient_{1}, biases_{2}, dk_{3}, dv_{4}, dq_memory_{5};
  Scratch<T> key_memory_{6}, value_memory_{7}, transposed_memory_{8}, rounded_{9}, q_memory_{10}, grad_memory_{11};
  Scratch<int32_t> buckets_{12};
};

}  // namespace hypercast
