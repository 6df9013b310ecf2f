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
  bool contiguous(int64_t begin, int64_t end) const { return end <= stored_count || begin >= stored_count; }
  int64_t stride(int64_t index) const { return index < stored_count ? stored_stride : fresh_stride; }
};

template <typename T>
struct Operand {
  const T* data;
  int64_t stride;
};

// Rows [begin, end) as a row-major [rounded rows, width] matrix: in place if they are a whole block, else copied.
template <typename T>
Operand<T> as_rows(const Rows<T>& rows, int64_t begin, int64_t end, int64_t width, T* scratch) {
  const int64_t count = end - begin, padded = inner<T>(width);
  if (count % kTile == 0 && padded == width && rows.contiguous(begin, end)) return {rows.row(begin), rows.stride(begin)};
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

// The transpose of a block of up to kTile rows, each `stride` wide in the result; rows past `count` become zeros.
template <typename Word>
void transpose_tile(const Word* const* source, int64_t count, int64_t width, Word* out, int64_t stride) {
  if (count == kTile) {
    for (int64_t c = 0; c < width; ++c, out += stride) {
      for (int64_t r = 0; r < kTile; ++r) out[r] = source[r][c];
    }
    return;
  }
  for (int64_t c = 0; c < width; ++c, out += stride) {
    for (int64_t r = 0; r < kTile; ++r) out[r] = r < count ? source[r][c] : Word(0);
  }
}

// Rows as [width, kBlock], their transpose, row-major: the left operand whose inner extent runs over the rows.
template <typename T>
Operand<T> as_left_transposed(const Rows<T>& rows, int64_t begin, int64_t end, int64_t width, T* scratch) {
  for (int64_t r0 = begin; r0 < end; r0 += kTile) {
    const int64_t count = std::min(kTile, end - r0);
    const T* source[kTile];
    for (int64_t r = 0; r < count; ++r) source[r] = rows.row(r0 + r);
    transpose_tile(source, count, width, scratch + (r0 - begin), kBlock);
  }
  return {scratch, kBlock};
}

// Rows as B[width, kBlock], their transpose: the inner extent runs over the width.
inline Operand<float> as_right_transposed(const Rows<float>& rows, int64_t begin, int64_t end, int64_t width,
                                          float* scratch) {
  return as_left_transposed(rows, begin, end, width, scratch);
}

inline Operand<at::BFloat16> as_right_transposed(const Rows<at::BFloat16>& rows, int64_t begin, int64_t end,
                                                 int64_t width, at::BFloat16* scratch) {
  // Two neighbours in a row form one word of the interleaved layout, so this is a transpose of 32-bit words.
  const int64_t words = width / 2;
  auto* out = reinterpret_cast<at::BFloat16*>(scratch);
  for (int64_t r = 0; r < round_up(end - begin, kTile); ++r) {
    const bool filled = begin + r < end;
    const at::BFloat16* row = filled ? rows.row(begin + r) : nullptr;
    for (int64_t w = 0; w < words; ++w) {
      out[(w * kBlock + r) * 2] = filled ? row[2 * w] : at::BFloat16(0);
      out[(w * kBlock + r) * 2 + 1] = filled ? row[2 * w + 1] : at::BFloat16(0);
    }
    if (width % 2) {
      out[(words * kBlock + r) * 2] = filled ? row[width - 1] : at::BFloat16(0);
      out[(words * kBlock + r) * 2 + 1] = at::BFloat16(0);
    }
  }
  return {scratch, kBlock};
}

}  // namespace hypercast
