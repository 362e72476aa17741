// Multi-scale deformable attention on the CPU; the schema and the plain definition are in deformable.py.
//
// Shapes: B batch, S image tokens, N queries, H heads, L levels, P points, C width of a head.
// `value` may be of any floating type T and is never copied; locations, weights and sums are of the type A.

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>
#include <type_traits>
#include <vector>

#include "bilinear.h"

namespace hf_grounding_dino {
namespace {

constexpr int64_t kQueriesPerTask = 256;

template <typename T>
using Accumulator = std::conditional_t<std::is_same_v<T, double>, double, float>;

struct Level {
  int32_t height, width;
  int64_t start;
};

struct Shape {
  int64_t batch, queries, heads, points, width;
  std::vector<Level> levels;

  Shape(const at::Tensor& value, at::IntArrayRef spatial_shapes, const at::Tensor& locations)
      : batch(value.size(0)),
        queries(locations.size(1)),
        heads(value.size(2)),
        points(locations.size(4)),
        width(value.size(3)) {
    int64_t start = 0;
    for (size_t i = 0; i + 1 < spatial_shapes.size(); i += 2) {
      levels.push_back(
          {static_cast<int32_t>(spatial_shapes[i]), static_cast<int32_t>(spatial_shapes[i + 1]), start});
      start += spatial_shapes[i] * spatial_shapes[i + 1];
    }
    TORCH_CHECK(start == value.size(1), "`spatial_shapes` do not add up to the ", value.size(1), " of `value`.");
  }

  int64_t samples() const {
    return static_cast<int64_t>(levels.size()) * points;
  }
};

// WIDTH is the width of a head where it is known at compile time, else 0.
template <typename T, typename A, int WIDTH>
void forward_queries(
    const Shape& shape, const T* value, int64_t token_stride, const A* locations, const A* weights, T* output,
    int64_t first, int64_t last) {
  const int64_t width = WIDTH ? WIDTH : shape.width;
  std::vector<A> any_width(WIDTH ? 0 : width);
  A known_width[WIDTH ? WIDTH : 1];
  A* sum = WIDTH ? known_width : any_width.data();
  for (int64_t query = first; query < last; ++query) {
    const A* location = locations + query * shape.heads * shape.samples() * 2;
    const A* weight = weights + query * shape.heads * shape.samples();
    std::fill(sum, sum + width, A(0));
    for (const Level& level : shape.levels) {
      const T* cells = value + level.start * token_stride;
      for (int64_t point = 0; point < shape.points; ++point, location += 2, ++weight) {
        const Axis<A> x = interpolate(location[0], level.width);
        const Axis<A> y = interpolate(location[1], level.height);
        const A top = *weight * y.low_share, bottom = *weight * y.high_share;
        const A a = top * x.low_share, b = top * x.high_share, c = bottom * x.low_share, d = bottom * x.high_share;
        if (a == 0 && b == 0 && c == 0 && d == 0) {
          continue;
        }
        const T* above = cells + y.low * level.width * token_stride;
        const T* below = cells + y.high * level.width * token_stride;
        const T* top_left = above + x.low * token_stride;
        const T* top_right = above + x.high * token_stride;
        const T* bottom_left = below + x.low * token_stride;
        const T* bottom_right = below + x.high * token_stride;
#pragma omp simd
        for (int64_t i = 0; i < width; ++i) {
          sum[i] += a * static_cast<A>(top_left[i]) + b * static_cast<A>(top_right[i]) +
              c * static_cast<A>(bottom_left[i]) + d * static_cast<A>(bottom_right[i]);
        }
      }
    }
    T* row = output + query * shape.heads * width;
    for (int64_t i = 0; i < width; ++i) {
      row[i] = static_cast<T>(sum[i]);
    }
  }
}

// One head of one image: it owns its channels of `grad_value`, so that nothing has to be atomic.
template <typename T, typename A, int WIDTH>
void backward_head(
    const Shape& shape, const T* grad_output, const T* value, int64_t token_stride, const A* locations,
    const A* weights, A* grad_value, A* grad_locations, A* grad_weights) {
  const int64_t width = WIDTH ? WIDTH : shape.width;
  const int64_t grad_stride = shape.heads * width;
  std::vector<A> gradient(width);
  A* g = gradient.data();
  for (int64_t query = 0; query < shape.queries; ++query) {
    const int64_t skip = query * shape.heads * shape.samples();
    const T* row = grad_output + query * shape.heads * width;
    for (int64_t i = 0; i < width; ++i) {
      g[i] = static_cast<A>(row[i]);
    }
    int64_t at = skip;
    for (const Level& level : shape.levels) {
      for (int64_t point = 0; point < shape.points; ++point, ++at) {
        const Axis<A> x = interpolate(locations[2 * at], level.width);
        const Axis<A> y = interpolate(locations[2 * at + 1], level.height);
        A by_weight = 0, by_x = 0, by_y = 0;
        for (int corner = 0; corner < 4; ++corner) {
          const bool right = corner & 1, bottom = corner >> 1;
          const A across = right ? x.high_share : x.low_share;
          const A down = bottom ? y.high_share : y.low_share;
          if (across == 0 && down == 0) {
            continue;
          }
          const int64_t cell =
              level.start + (bottom ? y.high : y.low) * static_cast<int64_t>(level.width) + (right ? x.high : x.low);
          const T* from = value + cell * token_stride;
          A* to = grad_value + cell * grad_stride;
          const A share = weights[at] * across * down;
          A product = 0;
#pragma omp simd reduction(+ : product)
          for (int64_t i = 0; i < width; ++i) {
            product += g[i] * static_cast<A>(from[i]);
            to[i] += share * g[i];
          }
          by_weight += product * across * down;
          by_x += product * down * (right ? x.high_slope : x.low_slope);
          by_y += product * across * (bottom ? y.high_slope : y.low_slope);
        }
        grad_weights[at] = by_weight;
        grad_locations[2 * at] = by_x * weights[at];
        grad_locations[2 * at + 1] = by_y * weights[at];
      }
    }
  }
}

template <typename Function>
void with_width(int64_t width, const Function& function) {
  switch (width) {
    case 16:
      return function(std::integral_constant<int, 16>());
    case 32:
      return function(std::integral_constant<int, 32>());
    case 64:
      return function(std::integral_constant<int, 64>());
    default:
      return function(std::integral_constant<int, 0>());
  }
}

// Heads and channels side by side, as a linear layer leaves them; anything else is brought into this form.
at::Tensor with_packed_heads(const at::Tensor& value) {
  return value.stride(3) == 1 && value.stride(2) == value.size(3) ? value : value.contiguous();
}

at::Tensor forward(
    const at::Tensor& any_value, at::IntArrayRef spatial_shapes, const at::Tensor& any_locations,
    const at::Tensor& any_weights) {
  const at::Tensor value = with_packed_heads(any_value);
  const at::Tensor locations = any_locations.contiguous();
  const at::Tensor weights = any_weights.contiguous();
  const Shape shape(value, spatial_shapes, locations);
  at::Tensor output = at::empty({shape.batch, shape.queries, shape.heads * shape.width}, value.options());
  const int64_t blocks = (shape.queries + kQueriesPerTask - 1) / kQueriesPerTask;
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, value.scalar_type(), "deformable_attention", [&] {
    using A = Accumulator<scalar_t>;
    const scalar_t* from = value.const_data_ptr<scalar_t>();
    const A* location = locations.const_data_ptr<A>();
    const A* weight = weights.const_data_ptr<A>();
    scalar_t* to = output.mutable_data_ptr<scalar_t>();
    with_width(shape.width, [&](auto known_width) {
      at::parallel_for(0, shape.batch * shape.heads * blocks, 1, [&](int64_t begin, int64_t end) {
        for (int64_t task = begin; task < end; ++task) {
          const int64_t first = task % blocks * kQueriesPerTask;
          const int64_t head = task / blocks % shape.heads;
          const int64_t image = task / blocks / shape.heads;
          const int64_t row = image * shape.queries * shape.heads + head;
          forward_queries<scalar_t, A, decltype(known_width)::value>(
              shape, from + image * value.stride(0) + head * shape.width, value.stride(1),
              location + row * shape.samples() * 2, weight + row * shape.samples(), to + row * shape.width, first,
              std::min(first + kQueriesPerTask, shape.queries));
        }
      });
    });
  });
  return output;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> backward(
    const at::Tensor& any_grad_output, const at::Tensor& any_value, at::IntArrayRef spatial_shapes,
    const at::Tensor& any_locations, const at::Tensor& any_weights) {
  const at::Tensor grad_output = any_grad_output.contiguous();
  const at::Tensor value = with_packed_heads(any_value);
  const at::Tensor locations = any_locations.contiguous();
  const at::Tensor weights = any_weights.contiguous();
  const Shape shape(value, spatial_shapes, locations);
  at::Tensor grad_value = at::zeros(value.sizes(), value.options().dtype(locations.scalar_type()));
  at::Tensor grad_locations = at::empty(locations.sizes(), locations.options());
  at::Tensor grad_weights = at::empty(weights.sizes(), weights.options());
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, value.scalar_type(), "deformable_attention_backward", [&] {
    using A = Accumulator<scalar_t>;
    const scalar_t* gradient = grad_output.const_data_ptr<scalar_t>();
    const scalar_t* from = value.const_data_ptr<scalar_t>();
    const A* location = locations.const_data_ptr<A>();
    const A* weight = weights.const_data_ptr<A>();
    A* to_value = grad_value.mutable_data_ptr<A>();
    A* to_location = grad_locations.mutable_data_ptr<A>();
    A* to_weight = grad_weights.mutable_data_ptr<A>();
    with_width(shape.width, [&](auto known_width) {
      at::parallel_for(0, shape.batch * shape.heads, 1, [&](int64_t begin, int64_t end) {
        for (int64_t task = begin; task < end; ++task) {
          const int64_t head = task % shape.heads;
          const int64_t image = task / shape.heads;
          const int64_t row = image * shape.queries * shape.heads + head;
          backward_head<scalar_t, A, decltype(known_width)::value>(
              shape, gradient + row * shape.width, from + image * value.stride(0) + head * shape.width,
              value.stride(1), location + row * shape.samples() * 2, weight + row * shape.samples(),
              to_value + image * value.size(1) * shape.heads * shape.width + head * shape.width,
              to_location + row * shape.samples() * 2, to_weight + row * shape.samples());
        }
      });
    });
  });
  return {grad_value.to(value.scalar_type()), grad_locations, grad_weights};
}

}  // namespace
}  // namespace hf_grounding_dino

TORCH_LIBRARY_IMPL(hf_grounding_dino, CPU, m) {
  m.impl("deformable_attention", &hf_grounding_dino::forward);
  m.impl("deformable_attention_backward", &hf_grounding_dino::backward);
}
