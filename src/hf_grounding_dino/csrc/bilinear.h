// Bilinear interpolation, one axis at a time, shared by the CPU and the CUDA kernel.
#pragma once

#include <cmath>
#include <cstdint>

#ifdef __CUDACC__
#define HFGD_INLINE __host__ __device__ __forceinline__
#else
#define HFGD_INLINE inline __attribute__((always_inline))
#endif

namespace hf_grounding_dino {

// The two cells of one axis on either side of a position, the share of each, and how the shares change as the position
// moves by the whole length of the axis. A cell outside the map has share and slope 0, and its number is that of the
// nearest inside, so that nothing is read which the sample does not touch. A bilinear weight is the product of a row's
// share and a column's.
template <typename A>
struct Axis {
  int32_t low, high;
  A low_share, high_share;
  A low_slope, high_slope;
};

// `position` is in [0, 1] inside the map, and cell centres lie at half integers; a position far outside, infinite or NaN
// has no share in anything.
template <typename A>
HFGD_INLINE Axis<A> interpolate(A position, int32_t size) {
  const A at = position * size - A(0.5);
  const bool near = (at > A(-1)) & (at < A(size));
  const A x = near ? at : A(0);
  const A floor = std::floor(x);
  const A beyond = x - floor;
  const int32_t low = static_cast<int32_t>(floor);
  const bool has_low = near & (low >= 0);
  const bool has_high = near & (low + 1 < size);
  return {
      low < 0 ? 0 : low,
      low + 1 < size ? low + 1 : size - 1,
      has_low ? A(1) - beyond : A(0),
      has_high ? beyond : A(0),
      has_low ? -A(size) : A(0),
      has_high ? A(size) : A(0),
  };
}

}  // namespace hf_grounding_dino
