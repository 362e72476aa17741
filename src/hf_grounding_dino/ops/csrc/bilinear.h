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

// The cell of one axis below a position, the share of that cell and of the next one; a bilinear weight is the product of
// a row's share and a column's. `position` is in [0, 1] inside the map, cell centres lie at half integers, and a cell
// outside has no share. A position far outside, infinite or NaN has no share in anything, its cell is 0, and the
// function returns false. There is no branch in it, so that a loop over samples becomes vector code.
template <typename A>
HFGD_INLINE bool share(A position, A size, A& low, A& low_share, A& high_share) {
  const A at = position * size - A(0.5);
  const bool near = (at > A(-1)) & (at < size);
  const A x = near ? at : A(0);
  low = std::floor(x);
  const A beyond = x - low;
  low_share = near & (low >= A(0)) ? A(1) - beyond : A(0);
  high_share = near & (low + A(1) < size) ? beyond : A(0);
  return near;
}

// The same with the numbers of both cells, and how the shares change as the position moves by the whole length of the
// axis. The number of a cell outside is that of the nearest inside, so that nothing is read which the sample does not
// touch.
template <typename A>
struct Axis {
  int32_t low, high;
  A low_share, high_share;
  A low_slope, high_slope;
};

template <typename A>
HFGD_INLINE Axis<A> interpolate(A position, int32_t size) {
  A at, low_share, high_share;
  const bool near = share(position, A(size), at, low_share, high_share);
  const int32_t low = static_cast<int32_t>(at);
  return {
      low < 0 ? 0 : low,
      low + 1 < size ? low + 1 : size - 1,
      low_share,
      high_share,
      near & (low >= 0) ? -A(size) : A(0),
      near & (low + 1 < size) ? A(size) : A(0),
  };
}

}  // namespace hf_grounding_dino
