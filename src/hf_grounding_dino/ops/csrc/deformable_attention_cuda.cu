// Multi-scale deformable attention on CUDA; the schema and the plain definition are in deformable.py.
//
// Shapes: B batch, S image tokens, N queries, H heads, L levels, P points, C width of a head.
// `value` may be of any floating type T and is never copied; locations, weights and sums are of the type A.
// A row is one head of one query of one image. Its channels are dealt out in vectors of V, 16 bytes where the layout
// allows and one channel where not.

#include <ATen/Context.h>
#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <tuple>
#include <type_traits>

#include "bilinear.h"

namespace hf_grounding_dino {
namespace {

constexpr int kThreads = 256;
constexpr int kWarp = 32;
constexpr int kMaxLevels = 16;
constexpr int kVectorBytes = 16;
constexpr int kPointsInFlight = 2;

template <typename T>
using Accumulator = std::conditional_t<std::is_same_v<T, double>, double, float>;

// A sum of gradients in fixed point: integers may be added in any order.
using Fixed = unsigned long long;

struct Level {
  int32_t height, width;
  int64_t start;
};

struct Shape {
  int64_t batch, tokens, queries, heads, points, width;
  int64_t image_stride, token_stride;
  int32_t level_count = 0;
  Level levels[kMaxLevels];

  Shape(const at::Tensor& value, at::IntArrayRef spatial_shapes, const at::Tensor& locations)
      : batch(value.size(0)),
        tokens(value.size(1)),
        queries(locations.size(1)),
        heads(value.size(2)),
        points(locations.size(4)),
        width(value.size(3)),
        image_stride(value.stride(0)),
        token_stride(value.stride(1)) {
    TORCH_CHECK(spatial_shapes.size() <= 2 * kMaxLevels, "At most ", kMaxLevels, " levels are supported on CUDA.");
    int64_t start = 0;
    for (size_t i = 0; i + 1 < spatial_shapes.size(); i += 2) {
      levels[level_count++] = {
          static_cast<int32_t>(spatial_shapes[i]), static_cast<int32_t>(spatial_shapes[i + 1]), start};
      start += spatial_shapes[i] * spatial_shapes[i + 1];
    }
    TORCH_CHECK(start == tokens, "`spatial_shapes` do not add up to the ", tokens, " of `value`.");
  }

  HFGD_INLINE int64_t rows() const {
    return batch * queries * heads;
  }

  HFGD_INLINE int64_t samples() const {
    return level_count * points;
  }

  HFGD_INLINE int64_t image(int64_t row) const {
    return row / (queries * heads);
  }

  HFGD_INLINE int64_t first_channel(int64_t row) const {
    return row % heads * width;
  }
};

template <typename T, int V>
struct alignas(sizeof(T) * V) Vector {
  T of[V];
};

template <int V, typename T>
__device__ __forceinline__ Vector<T, V> load(const T* from) {
  return *reinterpret_cast<const Vector<T, V>*>(from);
}

// The four cells around a location and their shares: top left, top right, bottom left, bottom right.
template <typename A>
struct Sample {
  Axis<A> x, y;
  int64_t cell[4];
  A share[4];
  bool inside;

  __device__ __forceinline__ Sample(const Level& level, const A* location)
      : x(interpolate(location[0], level.width)), y(interpolate(location[1], level.height)) {
    const int64_t above = level.start + static_cast<int64_t>(y.low) * level.width;
    const int64_t below = level.start + static_cast<int64_t>(y.high) * level.width;
    cell[0] = above + x.low, cell[1] = above + x.high;
    cell[2] = below + x.low, cell[3] = below + x.high;
    share[0] = y.low_share * x.low_share, share[1] = y.low_share * x.high_share;
    share[2] = y.high_share * x.low_share, share[3] = y.high_share * x.high_share;
    inside = x.low_share + x.high_share > 0 && y.low_share + y.high_share > 0;
  }
};

__device__ __forceinline__ int64_t thread_index() {
  return static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
}

// Each thread sums up one vector of one row. The cells of several points are requested before the first is used.
template <typename T, typename A, int V>
__global__ void __launch_bounds__(kThreads) sum_samples(
    const __grid_constant__ Shape shape, const T* __restrict__ value, const A* __restrict__ locations,
    const A* __restrict__ weights, T* __restrict__ output) {
  const int64_t vectors = shape.width / V;
  const int64_t index = thread_index();
  if (index >= shape.rows() * vectors) {
    return;
  }
  const int64_t row = index / vectors;
  value += shape.image(row) * shape.image_stride + shape.first_channel(row) + index % vectors * V;
  locations += row * shape.samples() * 2;
  weights += row * shape.samples();
  A sum[V] = {};
  for (int32_t i = 0; i < shape.level_count; ++i, locations += 2 * shape.points, weights += shape.points) {
    for (int64_t first = 0; first < shape.points; first += kPointsInFlight) {
      Vector<T, V> cells[kPointsInFlight][4] = {};
      A shares[kPointsInFlight][4] = {};
#pragma unroll
      for (int k = 0; k < kPointsInFlight; ++k) {
        const int64_t point = first + k;
        if (point < shape.points) {
          const Sample<A> sample(shape.levels[i], locations + 2 * point);
          const A weight = weights[point];
          const bool counts = sample.inside && weight != 0;
#pragma unroll
          for (int corner = 0; corner < 4; ++corner) {
            shares[k][corner] = weight * sample.share[corner];
            if (counts) {
              cells[k][corner] = load<V>(value + sample.cell[corner] * shape.token_stride);
            }
          }
        }
      }
#pragma unroll
      for (int k = 0; k < kPointsInFlight; ++k) {
#pragma unroll
        for (int corner = 0; corner < 4; ++corner) {
#pragma unroll
          for (int c = 0; c < V; ++c) {
            sum[c] += shares[k][corner] * static_cast<A>(cells[k][corner].of[c]);
          }
        }
      }
    }
  }
  Vector<T, V> result;
#pragma unroll
  for (int c = 0; c < V; ++c) {
    result.of[c] = static_cast<T>(sum[c]);
  }
  *reinterpret_cast<Vector<T, V>*>(output + index * V) = result;
}

template <typename A, int V>
__device__ __forceinline__ void add(A* to, A share, const A (&gradient)[V], double) {
#if __CUDA_ARCH__ >= 900
  if constexpr (std::is_same_v<A, float> && V % 4 == 0) {
#pragma unroll
    for (int c = 0; c < V; c += 4) {
      const float4 step = make_float4(
          share * gradient[c], share * gradient[c + 1], share * gradient[c + 2], share * gradient[c + 3]);
      atomicAdd(reinterpret_cast<float4*>(to + c), step);
    }
  } else
#endif
  {
#pragma unroll
    for (int c = 0; c < V; ++c) {
      atomicAdd(to + c, share * gradient[c]);
    }
  }
}

template <typename A, int V>
__device__ __forceinline__ void add(Fixed* to, A share, const A (&gradient)[V], double scale) {
#pragma unroll
  for (int c = 0; c < V; ++c) {
    atomicAdd(to + c, static_cast<Fixed>(llrint(static_cast<double>(share * gradient[c]) * scale)));
  }
}

// Neighbouring lanes, a power of two of them, share a row and sum its dot products among them; a sum over channels
// needs no atomics then. Lanes without a row go along for the shuffles. `Sum` is A, or Fixed with a scale per image.
template <typename T, typename A, int V, typename Sum>
__global__ void __launch_bounds__(kThreads) differentiate_samples(
    const __grid_constant__ Shape shape, int lanes, const T* __restrict__ grad_output, const T* __restrict__ value,
    const A* __restrict__ locations, const A* __restrict__ weights, const double* __restrict__ scales,
    Sum* __restrict__ grad_value, A* __restrict__ grad_locations, A* __restrict__ grad_weights) {
  const int64_t lane = thread_index() % lanes;
  const bool has_row = thread_index() / lanes < shape.rows();
  const int64_t row = has_row ? thread_index() / lanes : 0;
  const int64_t image = shape.image(row);
  const int64_t vectors = has_row ? shape.width / V : 0;
  const int64_t grad_stride = shape.heads * shape.width;
  const double scale = scales ? scales[image] : 1;
  grad_output += row * shape.width;
  value += image * shape.image_stride + shape.first_channel(row);
  grad_value += image * shape.tokens * grad_stride + shape.first_channel(row);
  const Vector<T, V> first = lane < vectors ? load<V>(grad_output + lane * V) : Vector<T, V>{};
  for (int32_t i = 0; i < shape.level_count; ++i) {
    for (int64_t point = 0; point < shape.points; ++point) {
      const int64_t at = row * shape.samples() + i * shape.points + point;
      const Sample<A> sample(shape.levels[i], locations + 2 * at);
      const A weight = weights[at];
      A product[4] = {};
      for (int64_t vector = lane; sample.inside && vector < vectors; vector += lanes) {
        const Vector<T, V> from = vector == lane ? first : load<V>(grad_output + vector * V);
        Vector<T, V> cells[4];
        A gradient[V];
#pragma unroll
        for (int corner = 0; corner < 4; ++corner) {
          cells[corner] = load<V>(value + sample.cell[corner] * shape.token_stride + vector * V);
        }
#pragma unroll
        for (int c = 0; c < V; ++c) {
          gradient[c] = static_cast<A>(from.of[c]);
        }
#pragma unroll
        for (int corner = 0; corner < 4; ++corner) {
#pragma unroll
          for (int c = 0; c < V; ++c) {
            product[corner] += gradient[c] * static_cast<A>(cells[corner].of[c]);
          }
          const A share = weight * sample.share[corner];
          if (share != 0) {
            add(grad_value + sample.cell[corner] * grad_stride + vector * V, share, gradient, scale);
          }
        }
      }
      const Axis<A>&x = sample.x, &y = sample.y;
      const A top = x.low_share * product[0] + x.high_share * product[1];
      const A bottom = x.low_share * product[2] + x.high_share * product[3];
      A by_weight = y.low_share * top + y.high_share * bottom;
      A by_y = y.low_slope * top + y.high_slope * bottom;
      A by_x = y.low_share * (x.low_slope * product[0] + x.high_slope * product[1]) +
          y.high_share * (x.low_slope * product[2] + x.high_slope * product[3]);
      for (int step = lanes / 2; step > 0; step /= 2) {
        by_weight += __shfl_xor_sync(0xffffffff, by_weight, step);
        by_x += __shfl_xor_sync(0xffffffff, by_x, step);
        by_y += __shfl_xor_sync(0xffffffff, by_y, step);
      }
      if (has_row && lane == 0) {
        grad_weights[at] = by_weight;
        grad_locations[2 * at] = by_x * weight;
        grad_locations[2 * at + 1] = by_y * weight;
      }
    }
  }
}

// Heads and channels side by side, as a linear layer leaves them; anything else is brought into this form.
at::Tensor with_packed_heads(const at::Tensor& value) {
  return value.stride(3) == 1 && value.stride(2) == value.size(3) ? value : value.contiguous();
}

// Calls `function` with V: a whole vector where every head of every cell starts at a multiple of its size, else 1.
template <typename T, typename Function>
void with_vectors(const Shape& shape, const T* value, const T* rows, const Function& function) {
  constexpr int whole = kVectorBytes / sizeof(T);
  const auto splits = [](int64_t count) { return count % whole == 0; };
  const auto starts = [](const T* at) { return reinterpret_cast<uintptr_t>(at) % kVectorBytes == 0; };
  if (splits(shape.width) && splits(shape.token_stride) && splits(shape.image_stride) && starts(value) &&
      starts(rows)) {
    function(std::integral_constant<int, whole>());
  } else {
    function(std::integral_constant<int, 1>());
  }
}

unsigned int blocks_of(int64_t threads) {
  return static_cast<unsigned int>((threads + kThreads - 1) / kThreads);
}

// Per image, a power of two that takes the largest sum possible in one cell, every point of every query having all its
// share there, to about 2^61. It is not finite where a gradient is not, and then nor is what is divided by it.
at::Tensor fixed_point_scales(const Shape& shape, const at::Tensor& grad_output, const at::Tensor& weights) {
  const at::Tensor gradient = grad_output.abs().amax({1, 2}).to(at::kDouble);
  const at::Tensor weight = weights.abs().amax({1, 2, 3, 4}).to(at::kDouble);
  const at::Tensor largest = gradient.mul(weight).mul(static_cast<double>(shape.queries * shape.points));
  return largest.clamp_min(1e-280).log2().ceil().neg().add(61).exp2();
}

at::Tensor forward(
    const at::Tensor& any_value, at::IntArrayRef spatial_shapes, const at::Tensor& any_locations,
    const at::Tensor& any_weights) {
  const c10::cuda::CUDAGuard guard(any_value.device());
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
  const at::Tensor value = with_packed_heads(any_value);
  const at::Tensor locations = any_locations.contiguous();
  const at::Tensor weights = any_weights.contiguous();
  const Shape shape(value, spatial_shapes, locations);
  at::Tensor output = at::empty({shape.batch, shape.queries, shape.heads * shape.width}, value.options());
  if (output.numel() == 0) {
    return output;
  }
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, value.scalar_type(), "deformable_attention", [&] {
    using A = Accumulator<scalar_t>;
    const scalar_t* from = value.const_data_ptr<scalar_t>();
    scalar_t* to = output.mutable_data_ptr<scalar_t>();
    with_vectors(shape, from, to, [&](auto channels) {
      constexpr int V = decltype(channels)::value;
      const unsigned int blocks = blocks_of(output.numel() / V);
      sum_samples<scalar_t, A, V><<<blocks, kThreads, 0, stream>>>(
          shape, from, locations.const_data_ptr<A>(), weights.const_data_ptr<A>(), to);
      C10_CUDA_KERNEL_LAUNCH_CHECK();
    });
  });
  return output;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> backward(
    const at::Tensor& any_grad_output, const at::Tensor& any_value, at::IntArrayRef spatial_shapes,
    const at::Tensor& any_locations, const at::Tensor& any_weights) {
  const c10::cuda::CUDAGuard guard(any_value.device());
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
  const at::Tensor grad_output = any_grad_output.contiguous();
  const at::Tensor value = with_packed_heads(any_value);
  const at::Tensor locations = any_locations.contiguous();
  const at::Tensor weights = any_weights.contiguous();
  const Shape shape(value, spatial_shapes, locations);
  at::Tensor grad_locations = at::empty(locations.sizes(), locations.options());
  at::Tensor grad_weights = at::empty(weights.sizes(), weights.options());
  if (weights.numel() == 0) {
    return {at::zeros(value.sizes(), value.options()), grad_locations, grad_weights};
  }
  const bool fixed = at::globalContext().deterministicAlgorithms() && shape.width > 0;
  const at::Tensor scales = fixed ? fixed_point_scales(shape, grad_output, weights) : at::Tensor();
  at::Tensor grad_value = at::zeros(value.sizes(), weights.options().dtype(fixed ? at::kLong : weights.scalar_type()));
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, value.scalar_type(), "deformable_attention_backward", [&] {
    using A = Accumulator<scalar_t>;
    const scalar_t* gradient = grad_output.const_data_ptr<scalar_t>();
    const scalar_t* from = value.const_data_ptr<scalar_t>();
    const double* scale = fixed ? scales.const_data_ptr<double>() : nullptr;
    with_vectors(shape, from, gradient, [&](auto channels) {
      constexpr int V = decltype(channels)::value;
      int lanes = 1;
      while (lanes < kWarp && lanes * V < shape.width) {
        lanes *= 2;
      }
      const auto launch = [&](auto* to) {
        differentiate_samples<scalar_t, A, V><<<blocks_of(shape.rows() * lanes), kThreads, 0, stream>>>(
            shape, lanes, gradient, from, locations.const_data_ptr<A>(), weights.const_data_ptr<A>(), scale, to,
            grad_locations.mutable_data_ptr<A>(), grad_weights.mutable_data_ptr<A>());
        C10_CUDA_KERNEL_LAUNCH_CHECK();
      };
      if (fixed) {
        launch(reinterpret_cast<Fixed*>(grad_value.mutable_data_ptr<int64_t>()));
      } else {
        launch(grad_value.mutable_data_ptr<A>());
      }
    });
  });
  if (fixed) {
    grad_value = grad_value.div(scales.view({-1, 1, 1, 1}));
  }
  return {grad_value.to(value.scalar_type()), grad_locations, grad_weights};
}

}  // namespace
}  // namespace hf_grounding_dino

TORCH_LIBRARY_IMPL(hf_grounding_dino, CUDA, m) {
  m.impl("deformable_attention", &hf_grounding_dino::forward);
  m.impl("deformable_attention_backward", &hf_grounding_dino::backward);
}
