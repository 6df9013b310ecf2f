// Biases of scores by distance and by time, and their gradients, for blocks of rows and keys.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "activation.h"
#include "operand.h"
#include "pattern.h"

namespace hypercast {

// Finds a time's bucket, the number of thresholds that are not above it, without a search: a float's exponent and its
// two highest mantissa bits name a cell no wider than a factor of 1.25, which holds one threshold at most.
class TimeBuckets {
 public:
  static constexpr int64_t kCells = 1024;

  TimeBuckets(const float* thresholds, int64_t count) {
    int32_t bucket = 0;
    for (int64_t cell = 0; cell < kCells; ++cell) {
      const float begin = as_float(static_cast<uint32_t>(cell) << 21);
      while (bucket < count && thresholds[bucket] <= begin) ++bucket;
      bucket_[cell] = bucket;
      threshold_[cell] = bucket < count ? thresholds[bucket] : std::numeric_limits<float>::infinity();
    }
  }

  // Bucket of a time in microseconds, exact in double, and rounded to float as in semantics.py.
  HYPERCAST_INLINE int32_t of(double apart_exact) const {
    const float apart = static_cast<float>(apart_exact);
    const int32_t cell = static_cast<int32_t>(as_bits(apart) >> 21);
    return bucket_[cell] + (apart >= threshold_[cell] ? 1 : 0);
  }

  // Buckets of |time - others[c]|.
  void find(double time, const double* others, int64_t count, int32_t* buckets) const {
#pragma omp simd
    for (int64_t c = 0; c < count; ++c) buckets[c] = of(std::fabs(time - others[c]));
  }

 private:
  float threshold_[kCells];
  int32_t bucket_[kCells];
};

constexpr int32_t kSeveral = -1;

struct BiasTables {
  const float* position = nullptr;
  int64_t positions = 0;
  const float* time = nullptr;
  int64_t times = 0;
  const TimeBuckets* buckets = nullptr;

  bool any() const { return position || time; }
};

// What one sequence needs to look biases up by contiguous loads.
class SequenceBias {
 public:
  // `stored_time` holds the times of tokens before sequence.first_row, `fresh_time` those from there on.
  SequenceBias(const BiasTables& tables, const Sequence& sequence, const int64_t* stored_time,
               const int64_t* fresh_time)
      : tables_(tables), sequence_(sequence) {
    const int64_t span = sequence.history_end;
    if (tables.position) {
      // Rows that only fill a tile up lie past the last one: their biases are read, and mean nothing.
      by_key_.resize(kTile + 2 * span + 1 + kBlock);
      by_row_.resize(kTile + 2 * span + 1 + kBlock);
      for (int64_t x = 0; x < static_cast<int64_t>(by_key_.size()); ++x) {
        by_key_[x] = tables.position[clamped(kTile + span - x)];
        by_row_[x] = tables.position[clamped(x - kTile - span)];
      }
    }
    if (tables.time) {
      time_.assign(round_up(sequence.length, kBlock), 0.0);
      const int64_t stored = sequence.first_row;
      const int64_t origin = stored > 0 ? stored_time[0] : (sequence.length > 0 ? fresh_time[0] : 0);
      for (int64_t i = 0; i < sequence.length; ++i) {
        time_[i] = static_cast<double>((i < stored ? stored_time[i] : fresh_time[i - stored]) - origin);
      }
      for (int64_t begin = 0; begin < sequence.length; begin += kBlock) {
        const auto [least, most] =
            std::minmax_element(time_.begin() + begin, time_.begin() + std::min(begin + kBlock, sequence.length));
        least_.push_back(*least);
        most_.push_back(*most);
      }
    }
  }

  bool any() const { return tables_.any(); }

  // Biases of a block where they lie, without time: `data` are those of the first row (or key), each next one's begin
  // `stride` further on. Null where they must be put together.
  struct InPlace {
    const float* data = nullptr;
    int64_t stride = 0;
  };

  InPlace of_rows(int64_t r0, int64_t r1, int64_t k0) const {
    if (tables_.time || !in_history(r1)) return {};
    return {by_key_.data() + kTile + sequence_.history_end - r0 + k0, -1};
  }

  InPlace of_keys(int64_t k0, int64_t r0, int64_t r1) const {
    if (tables_.time || !in_history(r1)) return {};
    return {by_row_.data() + kTile + sequence_.history_end + r0 - k0, -1};
  }

  // Biases of a row for `count` history keys from k0 on, a multiple of kBlock.
  void of_row(int64_t row, int64_t k0, int64_t count, float* out) const {
    if (tables_.position) {
      const float* from = by_key_.data() + kTile + sequence_.history_end - sequence_.position(row) + k0;
      std::copy(from, from + count, out);
    } else {
      std::fill(out, out + count, 0.0f);
    }
    int32_t buckets[kBlock];
    add_time(row, k0, count, out, buckets);
  }

  // Biases of a history key for `count` rows from r0 on, a multiple of kBlock. For the gradient, leaves the buckets of
  // time and returns their common value, or kSeveral.
  int32_t of_key(int64_t key, int64_t r0, int64_t count, float* out, int32_t* buckets) const {
    if (tables_.position) {
      const int64_t history = std::clamp<int64_t>(sequence_.history_end - r0, 0, count);
      const float* from = by_row_.data() + kTile + sequence_.history_end + r0 - key;
      std::copy(from, from + history, out);
      std::fill(out + history, out + count, by_row_[kTile + 2 * sequence_.history_end - key]);
    } else {
      std::fill(out, out + count, 0.0f);
    }
    return add_time(key, r0, count, out, buckets);
  }

  // Bias of a token for itself.
  float of_self() const {
    return (tables_.position ? tables_.position[0] : 0.0f) + (tables_.time ? tables_.time[0] : 0.0f);
  }

 private:
  // Adds the bias by time of a token and the `count` tokens from `begin` on. Away from a token, whole blocks share one
  // bucket, as the ends of the block's time tell; only where they differ is each token looked at.
  int32_t add_time(int64_t token, int64_t begin, int64_t count, float* out, int32_t* buckets) const {
    if (!tables_.time) return kSeveral;
    const double time = time_[token], least = least_[begin / kBlock], most = most_[begin / kBlock];
    if (time <= least || time >= most) {
      const int32_t one = tables_.buckets->of(std::fabs(time - least));
      if (one == tables_.buckets->of(std::fabs(time - most))) {
        const float bias = tables_.time[one];
#pragma omp simd
        for (int64_t c = 0; c < count; ++c) out[c] += bias;
        return one;
      }
    }
    tables_.buckets->find(time, time_.data() + begin, count, buckets);
#pragma omp simd
    for (int64_t c = 0; c < count; ++c) out[c] += tables_.time[buckets[c]];
    return kSeveral;
  }

  bool in_history(int64_t end) const { return end <= sequence_.history_end; }

  int64_t clamped(int64_t distance) const { return std::clamp<int64_t>(distance, 0, tables_.positions - 1); }

  const BiasTables& tables_;
  const Sequence& sequence_;
  std::vector<float> by_key_, by_row_;
  std::vector<double> time_, least_, most_;  // of tokens; of blocks of kBlock tokens
};

// Gradients of both tables, summed over the items of one slot.
class BiasGradient {
 public:
  static constexpr int64_t kLanes = 16;

  explicit BiasGradient(const BiasTables& tables) : tables_(tables) {
    if (tables.position) position_.assign(tables.positions, 0.0);
    if (tables.time) time_.assign(tables.times * kCopies, 0.0);
  }

  void begin(const Sequence& sequence) {
    span_ = sequence.history_end;
    if (tables_.position) by_row_.assign(2 * span_ + 1 + kBlock, 0.0f);
  }

  // Adds the gradients of a key's scores in `count` rows from r0 on; `common` and `buckets` are of_key's.
  void add(int64_t key, int64_t r0, int64_t count, const float* gradient, int32_t common, const int32_t* buckets) {
    if (tables_.position) {
      const int64_t history = std::clamp<int64_t>(span_ - r0, 0, count);
      float* to = by_row_.data() + span_ + r0 - key;
#pragma omp simd
      for (int64_t c = 0; c < history; ++c) to[c] += gradient[c];
      float targets = 0.0f;
      for (int64_t c = history; c < count; ++c) targets += gradient[c];
      by_row_[2 * span_ - key] += targets;
    }
    if (tables_.time) add_time(count, gradient, common, buckets);
  }

  // The same for a whole block without time and targets, kBlock apart. Keys and rows equally far apart share a bias, and
  // lie on a diagonal: each is summed before it is added, where one key after the other would wait for what the last one
  // stored. Reads kLanes past both ends of the block, and heeds nothing but the rows asked for.
  void add_block(int64_t k0, int64_t keys, int64_t r0, int64_t rows, const float* gradient) {
    uint32_t inside[kLanes + kBlock + kLanes] = {};  // from row -kLanes on
    std::fill(inside + kLanes, inside + kLanes + rows, ~uint32_t{0});
    float* to = by_row_.data() + span_ + r0 - k0;
    for (int64_t d0 = -round_up(keys - 1, kLanes); d0 < rows; d0 += kLanes) {
      const int64_t first = std::max<int64_t>(0, -d0 - kLanes + 1), last = std::min(keys, rows - d0);
      float sums[kLanes] = {};
      for (int64_t j = first; j < last; ++j) {
        const int64_t row = d0 + j;
#pragma omp simd
        for (int64_t lane = 0; lane < kLanes; ++lane) {
          sums[lane] += as_float(as_bits(gradient[j * kBlock + row + lane]) & inside[kLanes + row + lane]);
        }
      }
      const int64_t least = std::max<int64_t>(0, 1 - keys - d0), most = std::min(kLanes, rows - d0);
      for (int64_t lane = least; lane < most; ++lane) to[d0 + lane] += sums[lane];
    }
  }

  void add_self(float gradient) {
    if (tables_.position) position_[0] += gradient;
    if (tables_.time) time_[0] += gradient;
  }

  // Folds what was added since begin() into the tables.
  void end() {
    if (!tables_.position) return;
    for (int64_t x = 0; x < static_cast<int64_t>(by_row_.size()); ++x) {
      position_[std::clamp<int64_t>(x - span_, 0, tables_.positions - 1)] += by_row_[x];
    }
  }

  void add_to(double* position, double* time) const {
    for (size_t p = 0; p < position_.size(); ++p) position[p] += position_[p];
    for (int64_t b = 0; tables_.time && b < tables_.times; ++b) {
      for (int64_t copy = 0; copy < kCopies; ++copy) time[b] += time_[copy * tables_.times + b];
    }
  }

 private:
  static constexpr int64_t kCopies = 4;  // neighbours often share a bucket: four sums do not wait for one another

  void add_time(int64_t count, const float* gradient, int32_t common, const int32_t* buckets) {
    if (common != kSeveral) {
      float total = 0.0f;
#pragma omp simd reduction(+ : total)
      for (int64_t c = 0; c < count; ++c) total += gradient[c];
      time_[common] += total;
      return;
    }
    double* copies[kCopies];
    for (int64_t copy = 0; copy < kCopies; ++copy) copies[copy] = time_.data() + copy * tables_.times;
    int64_t c = 0;
    for (; c + kCopies <= count; c += kCopies) {
      for (int64_t copy = 0; copy < kCopies; ++copy) copies[copy][buckets[c + copy]] += gradient[c + copy];
    }
    for (; c < count; ++c) copies[0][buckets[c]] += gradient[c];
  }

  const BiasTables& tables_;
  int64_t span_ = 0;
  std::vector<float> by_row_;
  std::vector<double> position_, time_;
};

}  // namespace hypercast
