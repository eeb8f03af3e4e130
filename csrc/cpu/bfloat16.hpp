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

// One of the `count` bfloat16 numbers whose sum a float32 is, to 8 bits each: three of them are all 24. An operand's
// first parts lie together, then its second ones. They are nearest numbers, so that a later part may be negative.
template <int count> struct Part {
  uint16_t bits;
};
template <int count> inline float number(Part<count> part) { return number(bfloat16{part.bits}); }

template <int count> inline void split(float value, Part<count> *to, int64_t plane) {
  for (int part = 0; part < count; ++part) {
    const bfloat16 nearest = rounded(value);
    to[part * plane] = {nearest.bits};
    value -= number(nearest);
  }
}

}  // namespace SIMMIM_ISA
