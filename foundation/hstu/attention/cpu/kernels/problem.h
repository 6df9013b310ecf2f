// One call's arguments, and how its work is cut: into items that write apart from one another, and items into slots.
//
// Slots depend on the arguments alone, never on the number of threads, and so do all sums: the same bits on any number.
#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>
#include <vector>

#include "bias.h"
#include "operand.h"
#include "pattern.h"

namespace hypercast {

constexpr int64_t kSlots = 64;
constexpr int64_t kChunk = 2048;        // query rows of one forward item, and about as many keys of a backward one
constexpr int64_t kMaximumChunks = 4;  // each holds sums of dQ of its own, so memory stays linear in tokens

// A [tokens, heads, width] tensor with contiguous rows, for reading.
template <typename T>
struct Heads {
  const T* data = nullptr;
  int64_t token_stride = 0;
  int64_t head_stride = 0;

  Heads() = default;
  explicit Heads(const at::Tensor& tensor)
      : data(tensor.const_data_ptr<T>()), token_stride(tensor.stride(0)), head_stride(tensor.stride(1)) {}

  const T* row(int64_t token, int64_t head) const { return data + token * token_stride + head * head_stride; }
};

struct Problem {
  Pattern pattern;
  float scale;
  float inverse_divisor;
  int64_t sequences;
  int64_t heads;
  int64_t width;        // of queries and keys
  int64_t value_width;
  const int64_t* offsets;
  const int64_t* cache_offsets;  // null without a cache
  const int64_t* num_targets;
  const int64_t* timestamps;        // null without a table of time
  const int64_t* cache_timestamps;  // null without a cache
  BiasTables tables;

  int64_t stored(int64_t b) const { return cache_offsets ? cache_offsets[b + 1] - cache_offsets[b] : 0; }

  Sequence sequence(int64_t b) const {
    return Sequence(offsets[b], stored(b), offsets[b + 1] - offsets[b], num_targets[b], pattern);
  }

  SequenceBias bias(int64_t b, const Sequence& sequence) const {
    return SequenceBias(tables, sequence, cache_timestamps ? cache_timestamps + cache_offsets[b] : nullptr,
                        timestamps ? timestamps + offsets[b] : nullptr);
  }

  // One head of one sequence; `cache` is empty where nothing is stored, as for queries.
  template <typename T>
  Rows<T> rows(const Heads<T>& fresh, const Heads<T>& cache, int64_t b, int64_t head) const {
    Rows<T> made;
    made.fresh = fresh.row(offsets[b], head);
    made.fresh_stride = fresh.token_stride;
    if (cache.data) {
      made.stored = cache.row(cache_offsets[b], head);
      made.stored_stride = cache.token_stride;
      made.stored_count = stored(b);
    }
    return made;
  }
};

// Rows (forward) or keys (backward) [begin, end) of one head of one sequence.
struct Item {
  int64_t sequence;
  int64_t head;
  int64_t begin;
  int64_t end;
  int64_t chunk;
  double cost;
};

inline std::vector<Item> forward_items(const Problem& problem) {
  std::vector<Item> items;
  for (int64_t b = 0; b < problem.sequences; ++b) {
    const Sequence sequence = problem.sequence(b);
    for (int64_t head = 0; head < problem.heads; ++head) {
      for (int64_t begin = sequence.first_row; begin < sequence.length; begin += kChunk) {
        const int64_t end = std::min(begin + kChunk, sequence.length);
        const double seen = 0.5 * static_cast<double>(sequence.seen_end(begin) + sequence.seen_end(end - 1));
        items.push_back({b, head, begin, end, 0, static_cast<double>(end - begin) * (seen + kBlock)});
      }
    }
  }
  return items;
}

// Key ranges of about equal work under a causal mask: early keys are seen by more rows.
inline std::vector<Item> backward_items(const Problem& problem, int64_t chunks) {
  std::vector<Item> items;
  for (int64_t b = 0; b < problem.sequences; ++b) {
    const Sequence sequence = problem.sequence(b);
    if (sequence.length == 0) continue;
    const auto length = static_cast<double>(sequence.length);
    for (int64_t head = 0; head < problem.heads; ++head) {
      int64_t begin = 0;
      for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        const double share = 1.0 - std::sqrt(1.0 - static_cast<double>(chunk + 1) / static_cast<double>(chunks));
        const auto bound = static_cast<int64_t>(length * share) / kBlock * kBlock;
        const int64_t end = chunk + 1 == chunks ? sequence.history_end : std::min(bound, sequence.history_end);
        items.push_back({b, head, begin, end, chunk, length * (length / 2 + kBlock) / static_cast<double>(chunks)});
        begin = end;
      }
    }
  }
  return items;
}

// Runs all items on all threads, in slots: runs of items of about equal cost. `make()` gives each thread a worker with
// memory of its own, and `worker.run(item, slot)` is called for one slot's items in their order.
template <typename Make>
void for_each_slot(const std::vector<Item>& items, const Make& make) {
  double total = 0;
  for (const Item& item : items) total += item.cost;
  std::vector<int64_t> bounds{0};
  const int64_t slots = std::min<int64_t>(kSlots, items.size());
  double sum = 0;
  for (size_t i = 0; i < items.size(); ++i) {
    sum += items[i].cost;
    const auto made = static_cast<int64_t>(bounds.size());
    if (made < slots && sum >= total * static_cast<double>(made) / static_cast<double>(slots)) {
      bounds.push_back(static_cast<int64_t>(i) + 1);
    }
  }
  if (bounds.back() != static_cast<int64_t>(items.size())) bounds.push_back(static_cast<int64_t>(items.size()));
  at::parallel_for(0, static_cast<int64_t>(bounds.size()) - 1, 1, [&](int64_t first, int64_t last) {
    auto worker = make();
    for (int64_t slot = first; slot < last; ++slot) {
      for (int64_t item = bounds[slot]; item < bounds[slot + 1]; ++item) worker.run(items[item], slot);
    }
    release_products();
  });
}

// Memory of one thread, aligned for the widest loads; grows, never shrinks, and is not initialised. Each of a worker's has
// a `phase` of its own: blocks that start at the same place of a 4 KiB page make loads wait for unrelated stores.
template <typename T>
class Scratch {
 public:
  explicit Scratch(int64_t phase) : phase_(phase) {}

  // A block of kBlock x kBlock, zeros at first.
  T* block() {
    const bool fresh = count_ < 0;
    T* memory = at_least(kBlock * kBlock);
    if (fresh) std::fill(memory, memory + kBlock * kBlock, T(0));
    return memory;
  }

  T* at_least(int64_t count) {
    if (count > count_) {
      memory_ = at::empty({count * static_cast<int64_t>(sizeof(T)) + 2 * kPage}, at::kByte);
      count_ = count;
      const auto begin = reinterpret_cast<uintptr_t>(memory_.data_ptr());
      aligned_ = reinterpret_cast<T*>((begin + kPage - 1) / kPage * kPage + phase_ * kSkew % kPage);
    }
    return aligned_;
  }

 private:
  static constexpr int64_t kPage = 4096, kSkew = 5 * 64;

  int64_t phase_;
  at::Tensor memory_;
  T* aligned_ = nullptr;
  int64_t count_ = -1;
};

}  // namespace hypercast
