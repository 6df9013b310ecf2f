// Operands of block products in the layouts that brgemm wants.
//
// A block product is C[M, N] (+)= A[M, K] B[K, N], accumulated in float32. A is row-major. B is row-major for float32,
// and for bfloat16 pairs of rows are interleaved: element (k, n) lies at [k / 2][n][k % 2] (oneDNN's VNNI layout).
// Extents are rounded up to a multiple of kTile and filled with zeros, because brgemm generates code for each shape.
#pragma once

#include <ATen/ATen.h>
#include <ATen/native/CPUBlas.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace hypercast {

constexpr int64_t kBlock = 64;
constexpr int64_t kTile = 16;
// Blocks that stay in the cache while the other side's blocks pass by, once for all of them.
constexpr int64_t kGroup = 4;

inline int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// The inner extent of products over a head's width: pairs of bfloat16 go together.
template <typename T>
int64_t inner(int64_t width) {
  return std::is_same_v<T, float> ? width : round_up(width, 2);
}

inline void product(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb, float* c,
                    int64_t ldc, bool add) {
  at::native::cpublas::brgemm(m, n, k, lda, ldb, ldc, add, a, b, c, /*is_vnni=*/false);
}

inline void product(int64_t m, int64_t n, int64_t k, const at::BFloat16* a, int64_t lda, const at::BFloat16* b,
                    int64_t ldb, float* c, int64_t ldc, bool add) {
  at::native::cpublas::brgemm(m, n, k, lda, ldb, ldc, add, a, b, c, /*is_vnni=*/true);
}

inline void release_products() { at::native::cpublas::brgemm_release(); }

// Rows of one head, from up to two places: tokens stored earlier, then fresh ones.
template <typename T>
struct Rows {
  const T* stored = nullptr;
  int64_t stored_stride = 0;
  int64_t stored_count = 0;
  const T* fresh = nullptr;
  int64_t fresh_stride = 0;

  const T* row(int64_t index) const {
    return index < stored_count ? stored + index * stored_stride : fresh + (index - stored_count) * fresh_stride;
  }
};

template <typename T>
struct Operand {
  const T* data;
  int64_t stride;
};

// Rows [begin, end) as a row-major [rounded rows, width] matrix. Always copied: rows of several heads lie a power of two
// apart, where they would crowd one another out of the cache.
template <typename T>
Operand<T> as_rows(const Rows<T>& rows, int64_t begin, int64_t end, int64_t width, T* scratch) {
  const int64_t count = end - begin, padded = inner<T>(width);
  for (int64_t r = 0; r < round_up(count, kTile); ++r) {
    T* out = scratch + r * padded;
    const int64_t filled = r < count ? width : 0;
    if (filled) std::memcpy(out, rows.row(begin + r), width * sizeof(T));
    std::fill(out + filled, out + padded, T(0));
  }
  return {scratch, padded};
}

// Rows as B[rows, width]: the inner extent runs over the rows.
inline Operand<float> as_right(const Rows<float>& rows, int64_t begin, int64_t end, int64_t width, float* scratch) {
  return as_rows(rows, begin, end, width, scratch);
}

inline Operand<at::BFloat16> as_right(const Rows<at::BFloat16>& rows, int64_t begin, int64_t end, int64_t width,
                                      at::BFloat16* scratch) {
  const int64_t count = end - begin;
  for (int64_t r = 0; r < round_up(count, kTile); r += 2) {
    at::BFloat16* out = scratch + r * width;
    const at::BFloat16* even = r < count ? rows.row(begin + r) : nullptr;
    const at::BFloat16* odd = r + 1 < count ? rows.row(begin + r + 1) : nullptr;
    for (int64_t c = 0; c < width; ++c) {
      out[2 * c] = even ? even[c] : at::BFloat16(0);
      out[2 * c + 1] = odd ? odd[c] : at::BFloat16(0);
    }
  }
  return {scratch, width};
}

// The transpose of 8 x 8 words in three rounds of shuffles, each of which swaps the off-diagonal quarters of all squares
// of one size.
inline void transpose_8x8(const uint32_t* const* source, uint32_t* out, int64_t stride) {
  typedef uint32_t Row __attribute__((vector_size(32)));
  Row rows[8], swapped[8];
  for (int r = 0; r < 8; ++r) std::memcpy(&rows[r], source[r], sizeof(Row));
  for (int r = 0; r < 8; r += 2) {
    swapped[r] = __builtin_shuffle(rows[r], rows[r + 1], Row{0, 8, 2, 10, 4, 12, 6, 14});
    swapped[r + 1] = __builtin_shuffle(rows[r], rows[r + 1], Row{1, 9, 3, 11, 5, 13, 7, 15});
  }
  for (int r : {0, 1, 4, 5}) {
    rows[r] = __builtin_shuffle(swapped[r], swapped[r + 2], Row{0, 1, 8, 9, 4, 5, 12, 13});
    rows[r + 2] = __builtin_shuffle(swapped[r], swapped[r + 2], Row{2, 3, 10, 11, 6, 7, 14, 15});
  }
  for (int r = 0; r < 4; ++r) {
    swapped[r] = __builtin_shuffle(rows[r], rows[r + 4], Row{0, 1, 2, 3, 8, 9, 10, 11});
    swapped[r + 4] = __builtin_shuffle(rows[r], rows[r + 4], Row{4, 5, 6, 7, 12, 13, 14, 15});
  }
  for (int r = 0; r < 8; ++r) std::memcpy(out + r * stride, &swapped[r], sizeof(Row));
}

// The transpose of `count` rows of `width` words, each column's words kBlock apart; rows up to the next multiple of
// kTile become zeros.
inline void transpose_words(const uint32_t* const* source, int64_t count, int64_t width, uint32_t* out) {
  const int64_t whole_rows = count / 8 * 8, whole_columns = width / 8 * 8;
  for (int64_t r = 0; r < whole_rows; r += 8) {
    for (int64_t c = 0; c < whole_columns; c += 8) {
      const uint32_t* corner[8];
      for (int64_t i = 0; i < 8; ++i) corner[i] = source[r + i] + c;
      transpose_8x8(corner, out + c * kBlock + r, kBlock);
    }
  }
  for (int64_t c = 0; c < width; ++c) {
    for (int64_t r = c < whole_columns ? whole_rows : 0; r < count; ++r) out[c * kBlock + r] = source[r][c];
    for (int64_t r = count; r < round_up(count, kTile); ++r) out[c * kBlock + r] = 0;
  }
}

template <typename T>
void word_rows(const Rows<T>& rows, int64_t begin, int64_t end, const uint32_t** words) {
  for (int64_t r = begin; r < end; ++r) words[r - begin] = reinterpret_cast<const uint32_t*>(rows.row(r));
}

// Rows as [width, kBlock], their transpose, row-major: the left operand whose inner extent runs over the rows.
inline Operand<float> as_left_transposed(const Rows<float>& rows, int64_t begin, int64_t end, int64_t width,
                                         float* scratch) {
  const uint32_t* words[kBlock] = {};
  word_rows(rows, begin, end, words);
  transpose_words(words, end - begin, width, reinterpret_cast<uint32_t*>(scratch));
  return {scratch, kBlock};
}

inline Operand<at::BFloat16> as_left_transposed(const Rows<at::BFloat16>& rows, int64_t begin, int64_t end,
                                                int64_t width, at::BFloat16* scratch) {
  for (int64_t r = begin; r < end; ++r) {
    const at::BFloat16* row = rows.row(r);
    for (int64_t c = 0; c < width; ++c) scratch[c * kBlock + r - begin] = row[c];
  }
  for (int64_t c = 0; c < width; ++c) {
    for (int64_t r = end - begin; r < round_up(end - begin, kTile); ++r) scratch[c * kBlock + r] = at::BFloat16(0);
  }
  return {scratch, kBlock};
}

// Rows as B[width, kBlock], their transpose: the inner extent runs over the width.
inline Operand<float> as_right_transposed(const Rows<float>& rows, int64_t begin, int64_t end, int64_t width,
                                          float* scratch) {
  return as_left_transposed(rows, begin, end, width, scratch);
}

// Two neighbours in a row form one word of the interleaved layout: a transpose of 32-bit words.
inline Operand<at::BFloat16> as_right_transposed(const Rows<at::BFloat16>& rows, int64_t begin, int64_t end,
                                                 int64_t width, at::BFloat16* scratch) {
  const uint32_t* words[kBlock] = {};
  word_rows(rows, begin, end, words);
  transpose_words(words, end - begin, width / 2, reinterpret_cast<uint32_t*>(scratch));
  if (width % 2) {
    at::BFloat16* last = scratch + (width - 1) * kBlock;
    std::fill(last, last + 2 * kBlock, at::BFloat16(0));
    for (int64_t r = begin; r < end; ++r) last[2 * (r - begin)] = rows.row(r)[width - 1];
  }
  return {scratch, kBlock};
}

}  // namespace hypercast
