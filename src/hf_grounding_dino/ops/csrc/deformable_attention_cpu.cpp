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

constexpr int64_t kQueriesPerTask = 64;

template <typename T>
using Accumulator = std::conditional_t<std::is_same_v<T, double>, double, float>;

struct Level {
  int32_t height, width;
  int64_t start;
};

struct Shape {
  int64_t batch, queries, heads, points, width;
  std::vector<Level> levels;
  // The height, width and start of the level of each sample of a query, for vector code.
  std::vector<float> heights, widths;
  std::vector<int32_t> starts;

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
      heights.insert(heights.end(), points, spatial_shapes[i]);
      widths.insert(widths.end(), points, spatial_shapes[i + 1]);
      starts.insert(starts.end(), points, start);
      start += spatial_shapes[i] * spatial_shapes[i + 1];
    }
    TORCH_CHECK(start == value.size(1), "`spatial_shapes` do not add up to the ", value.size(1), " of `value`.");
  }

  int64_t samples() const {
    return static_cast<int64_t>(levels.size()) * points;
  }
};

// The samples of one query and head: the tokens that they read and their bilinear weight times the attention weight,
// first of all top left corners, then top right, bottom left, bottom right.
template <typename A>
struct Plan {
  std::vector<int32_t> tokens;
  std::vector<A> shares;

  explicit Plan(const Shape& shape) : tokens(4 * shape.samples()), shares(4 * shape.samples()) {}

  void make(const Shape& shape, const A* locations, const A* weights) {
    const int64_t n = shape.samples();
    const float* heights = shape.heights.data();
    const float* widths = shape.widths.data();
    const int32_t* starts = shape.starts.data();
    int32_t* token = tokens.data();
    A* weight = shares.data();
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i) {
      const A height = heights[i], width = widths[i];
      A left, left_share, right_share, top, top_share, bottom_share;
      share(locations[2 * i], width, left, left_share, right_share);
      share(locations[2 * i + 1], height, top, top_share, bottom_share);
      const A right = left + A(1) < width ? left + A(1) : left;
      const A bottom = top + A(1) < height ? top + A(1) : top;
      left = left < A(0) ? A(0) : left;
      top = top < A(0) ? A(0) : top;
      const int32_t row_length = static_cast<int32_t>(width);
      const int32_t above = starts[i] + static_cast<int32_t>(top) * row_length;
      const int32_t below = starts[i] + static_cast<int32_t>(bottom) * row_length;
      token[i] = above + static_cast<int32_t>(left);
      token[n + i] = above + static_cast<int32_t>(right);
      token[2 * n + i] = below + static_cast<int32_t>(left);
      token[3 * n + i] = below + static_cast<int32_t>(right);
      weight[i] = weights[i] * top_share * left_share;
      weight[n + i] = weights[i] * top_share * right_share;
      weight[2 * n + i] = weights[i] * bottom_share * left_share;
      weight[3 * n + i] = weights[i] * bottom_share * right_share;
    }
  }
};

// WIDTH is the width of a head where it is known at compile time, else 0.
template <typename T, typename A, int WIDTH>
void forward_queries(
    const Shape& shape, const T* value, int64_t token_stride, const A* locations, const A* weights, T* output,
    int64_t first, int64_t last) {
  const int64_t width = WIDTH ? WIDTH : shape.width;
  const int64_t n = shape.samples();
  const int64_t step = shape.heads * n;
  Plan<A> plan(shape), next(shape);
  next.make(shape, locations + first * step * 2, weights + first * step);
  std::vector<A> any_width(WIDTH ? 0 : width);
  A known_width[WIDTH ? WIDTH : 1];
  A* sum = WIDTH ? known_width : any_width.data();
  for (int64_t query = first; query < last; ++query) {
    std::swap(plan, next);
    const int64_t following = std::min(query + 1, last - 1);
    next.make(shape, locations + following * step * 2, weights + following * step);
    const int32_t* token = plan.tokens.data();
    const A* weight = plan.shares.data();
    std::fill(sum, sum + width, A(0));
    for (int64_t i = 0; i < n; ++i) {
      for (int corner = 0; corner < 4; ++corner) {
        const char* soon = reinterpret_cast<const char*>(value + next.tokens[corner * n + i] * token_stride);
        __builtin_prefetch(soon);
        __builtin_prefetch(soon + 64);
      }
      const A a = weight[i], b = weight[n + i], c = weight[2 * n + i], d = weight[3 * n + i];
      if (a == 0 && b == 0 && c == 0 && d == 0) {
        continue;
      }
      const T* top_left = value + token[i] * token_stride;
      const T* top_right = value + token[n + i] * token_stride;
      const T* bottom_left = value + token[2 * n + i] * token_stride;
      const T* bottom_right = value + token[3 * n + i] * token_stride;
#pragma omp simd
      for (int64_t j = 0; j < width; ++j) {
        sum[j] += a * static_cast<A>(top_left[j]) + b * static_cast<A>(top_right[j]) +
            c * static_cast<A>(bottom_left[j]) + d * static_cast<A>(bottom_right[j]);
      }
    }
    T* row = output + query * shape.heads * width;
    for (int64_t j = 0; j < width; ++j) {
      row[j] = static_cast<T>(sum[j]);
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
          // Heads take turns over a few queries, because their channels of a token lie side by side.
          const int64_t head = task % shape.heads;
          const int64_t first = task / shape.heads % blocks * kQueriesPerTask;
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
