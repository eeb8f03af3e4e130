// bfloat16: the upper half of a float32.
#pragma once

#include <cstdint>
#include <cstring>

namespace SIMMIM_ISA {

struct bfloat16 {
  uint16_t bits;
};

inline float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline float number(bfloat16 value) { return from_bits(uint32_t(value.bits) << 16); }

// The nearest one, of two the even; NaN stays NaN.
inline bfloat16 rounded(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint32_t quiet = bits >> 16 | 0x40, nearest = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  return {uint16_t(value == value ? nearest : quiet)};
}

}  // namespace SIMMIM_ISA
