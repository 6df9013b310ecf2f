// Who sees whom in one sequence: the C++ side of semantics.py.
//
// Tokens are [context, history, targets]. Every row sees the context; a history row sees history up to itself, a target
// row all of it, both from `first_seen` on; a target also sees itself, which is no matter of blocks but of one product.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

namespace hypercast {

constexpr int64_t kUnlimited = -1;

struct Pattern {
  int64_t contextual_len;
  int64_t max_distance;  // kUnlimited or a number of positions
  int64_t full_tail;
};

struct Sequence {
  int64_t rows_begin;   // of its queries among all queries
  int64_t length;       // tokens, stored ones included
  int64_t first_row;    // tokens before it are stored: they have keys and values, but no queries here
  int64_t history_end;  // tokens from here on are targets
  int64_t context_end;
  int64_t limited_end;  // positions below it look back by max_distance only
  int64_t max_distance;

  Sequence(int64_t begin, int64_t stored, int64_t fresh, int64_t targets, const Pattern& pattern)
      : rows_begin(begin), length(stored + fresh), first_row(stored), history_end(stored + fresh - targets) {
    context_end = std::min(pattern.contextual_len, history_end);
    max_distance = pattern.max_distance;
    limited_end = 0;
    if (max_distance != kUnlimited) {
      limited_end = pattern.full_tail > 0 ? std::max<int64_t>(history_end - pattern.full_tail, 0) : history_end + 1;
    }
  }

  // All targets stand right after the history.
  int64_t position(int64_t row) const { return std::min(row, history_end); }

  // History keys seen by a row, beside the context: [first_seen, seen_end).
  int64_t first_seen(int64_t row) const {
    const int64_t at = position(row);
    return at < limited_end ? std::max(context_end, at - max_distance) : context_end;
  }
  int64_t seen_end(int64_t row) const {
    return row < context_end ? context_end : std::min(row + 1, history_end);
  }

  // Does any of rows [r0, r1) see any of the history or context keys [k0, k1)?
  bool any_seen(int64_t r0, int64_t r1, int64_t k0, int64_t k1) const {
    if (k0 < context_end) return true;
    if (k0 >= seen_end(r1 - 1)) return false;
    // first_seen grows with the row up to the end of the limited rows, then falls back to the context's end.
    return std::min(first_seen(r0), first_seen(r1 - 1)) < k1;
  }

  // Does every one of rows [r0, r1) see every one of keys [k0, k1)?
  bool all_seen(int64_t r0, int64_t r1, int64_t k0, int64_t k1) const {
    if (k1 <= context_end) return true;
    if (k1 > seen_end(r0)) return false;
    if (position(r0) >= limited_end) return true;
    const int64_t last_limited = std::min(r1, limited_end) - 1;
    const int64_t furthest = std::max(first_seen(r0), first_seen(std::max(r0, last_limited)));
    return furthest <= std::max(k0, context_end);
  }

  // Rows that do not see history key k, apart from those before it: [hidden_begin, hidden_end).
  int64_t hidden_begin(int64_t k) const {
    return limited_end == 0 || k + max_distance >= history_end ? length : k + max_distance + 1;
  }
  int64_t hidden_end() const { return limited_end > history_end ? length : limited_end; }
};

}  // namespace hypercast
