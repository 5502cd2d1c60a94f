// Trains whole clients of chains of convolutions, Linear and ReLU by SGD or Adam: one call for a cohort, called by dense.py.
//
// A client is trained by one thread, and its sums have an order that follows from its own batches and the model alone.
// So its bits depend neither on the other clients, nor on their order, nor on the number of threads.
//
// Layout: a layer's weights are (in + 1, columns), the transpose of torch's. The last row is the bias, and inputs end
// in a constant 1 for it. Columns are the outputs, padded with zeros to whole vectors. A large batch is computed in
// parts whose gradients are added, so that memory does not grow with the batch.
//
// Convolutions come first, each with ReLU and max pooling. Their weights keep torch's layout. A sample's channels are
// planes, and vectors are pixels that follow each other in a plane, from the end of a row into the next one: so what a
// weight is multiplied with is the plane itself, moved by the weight's offset. The pixels of a row that an unpadded
// convolution has no output for are computed too, and left out; their gradients are zero.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>
#include <system_error>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

// Floats in a vector, and rows of a block whose sums fit the registers.
#if defined(__AVX512F__)
constexpr int WIDTH = 16, ROWS = 12;
#elif defined(__AVX__)
constexpr int WIDTH = 8, ROWS = 6;
#elif defined(__aarch64__)
constexpr int WIDTH = 4, ROWS = 12;
#else
constexpr int WIDTH = 4, ROWS = 6;
#endif
// Samples of a batch that are computed together.
constexpr int PART = 64;
// Samples of a part whose gradients of a convolution's weights are summed together, while they stay in the cache.
constexpr int GROUP = 4;
// Numbers that describe a convolution.
constexpr int CONV_NUMBERS = 9;
constexpr int MAX_POOL = 3;
// Rows and taps of a block of a convolution's gradients whose sums fit the registers.
constexpr int GRADIENT_ROWS = ROWS / 2, TAPS = ROWS / 3;
// From one more on, torch.randperm draws in another way.
constexpr int64_t MAX_SAMPLES = (int64_t(1) << 32) / 20 - 1;

typedef float vec __attribute__((vector_size(4 * WIDTH)));
typedef int32_t ivec __attribute__((vector_size(4 * WIDTH)));

// The arguments, as in dense.py.
struct Job {
    int64_t num_clients, num_samples, num_layers, epochs, max_steps, batch_size, threads, numbers_a_thread, num_params;
    int64_t is_bytes, squared_error, own_params, own_shift, nesterov, num_convs, num_inputs, adam, decoupled;
    double lr, momentum, dampening, weight_decay, mu, beta1, beta2, eps;
    const int64_t *convs, *widths, *starts, *sizes;
    const uint64_t* seeds;
    const double* shares;
    const void *x, *y;
    const float *scale, *offset, *params, *anchor, *shift;
    float* out;
    double* losses;
    int64_t* steps;
};

enum Status { TRAINED = 0, NO_MEMORY = 1, WRONG_LABEL = 2, WRONG_ROWS = 3 };

namespace {

using std::int64_t;
using std::size_t;

inline int padded(int64_t n) { return int((n + WIDTH - 1) / WIDTH * WIDTH); }

inline vec load(const float* from) {
    vec v;
    std::memcpy(&v, from, sizeof v);
    return v;
}

inline void store(float* to, vec v) { std::memcpy(to, &v, sizeof v); }

inline vec root(vec v) {
    for (int i = 0; i < WIDTH; i++) v[i] = std::sqrt(v[i]);
    return v;
}

inline vec all(float value) { return value - vec{}; }

using Lanes = std::make_integer_sequence<int, WIDTH>;

template <int... I> inline ivec lanes(std::integer_sequence<int, I...>) { return ivec{I...}; }

// Lanes of two vectors; a number of at least WIDTH is a lane of the second one.
#if defined(__clang__) || __GNUC__ >= 12
#define PICK(a, b, lane) __builtin_shufflevector(a, b, (lane)...)
#else
#define PICK(a, b, lane) __builtin_shuffle(a, b, ivec{(lane)...})
#endif

template <int STEP, int... I> inline vec exchanged(vec v, std::integer_sequence<int, I...>) { return PICK(v, v, I ^ STEP); }

template <int STEP = WIDTH / 2> inline float largest(vec v) {
    vec other = exchanged<STEP>(v, Lanes());
    v = other > v ? other : v;
    if constexpr (STEP == 1) return v[0];
    else return largest<STEP / 2>(v);
}

template <int STEP = WIDTH / 2> inline float total(vec v) {
    v += exchanged<STEP>(v, Lanes());
    if constexpr (STEP == 1) return v[0];
    else return total<STEP / 2>(v);
}

template <int... I> inline vec even(vec a, vec b, std::integer_sequence<int, I...>) { return PICK(a, b, 2 * I); }

// Every STEP-th number, from the first one on.
template <int STEP> inline vec every(const float* from) {
    if constexpr (STEP == 1) return load(from);
    if constexpr (STEP == 2) return even(load(from), load(from + WIDTH), Lanes());
    vec v;
    for (int i = 0; i < WIDTH; i++) v[i] = from[i * STEP];
    return v;
}

// Transposes a square of vectors: first its quarters of STEP rows, then those of each quarter.
template <int STEP, int... I> inline void transpose_square(vec* square, std::integer_sequence<int, I...> lanes) {
    for (int i = 0; i < WIDTH; i++) {
        if (i & STEP) continue;
        vec upper = square[i], lower = square[i + STEP];
        square[i] = PICK(upper, lower, (I & STEP) ? I - STEP + WIDTH : I);
        square[i + STEP] = PICK(upper, lower, (I & STEP) ? I + WIDTH : I + STEP);
    }
    if constexpr (STEP > 1) transpose_square<STEP / 2>(square, lanes);
}

// to (columns, rows) = from (rows, columns) transposed; nothing else is read or written.
void transpose(int rows, int columns, const float* from, size_t from_row, float* to, size_t to_row) {
    for (int row = 0; row < rows; row += WIDTH) {
        int num_rows = std::min(WIDTH, rows - row);
        for (int column = 0; column < columns; column += WIDTH) {
            int num_columns = std::min(WIDTH, columns - column);
            vec square[WIDTH] = {};
            const float* source = from + row * from_row + column;
            for (int i = 0; i < num_rows; i++) {
                if (num_columns == WIDTH) square[i] = load(source + i * from_row);
                else std::memcpy(square + i, source + i * from_row, num_columns * sizeof(float));
            }
            transpose_square<WIDTH / 2>(square, Lanes());
            float* target = to + column * to_row + row;
            for (int i = 0; i < num_columns; i++) {
                if (num_rows == WIDTH) store(target + i * to_row, square[i]);
                else std::memcpy(target + i * to_row, square + i, num_rows * sizeof(float));
            }
        }
    }
}

// exp(x) for x <= 0 to 1e-7: 2^n e^r with |r| <= log(2) / 2, by Taylor's series. Below exp(-80) it is 0, so that no
// gradient is a denormal number, with which processors are slow.
inline vec exponential(vec x) {
    ivec tiny = x < -80.0f;
    x = tiny ? all(-80.0f) : x;
    vec shifted = x * 1.44269504f + 0x1.8p23f;  // its last bits are the nearest integer
    vec n = shifted - 0x1.8p23f;
    vec r = x - n * 0x1.62e4p-1f;  // log(2) in two parts, so that n times the first one is exact
    r = r - n * 1.42860677e-6f;
    vec p = r * (1.0f / 5040) + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    ivec exponent = (__builtin_convertvector(n, ivec) + 127) << 23;
    return tiny ? vec{} : p * (vec)exponent;
}

template <int N> using Number = std::integral_constant<int, N>;

template <int ROWS_, class Body> inline void with_rows(int rows, Body body) {
    if constexpr (ROWS_ > 1) {
        if (rows < ROWS_) return with_rows<ROWS_ - 1>(rows, body);
    }
    body(Number<ROWS_>());
}

// Calls tile(R, V, row, column) for blocks of R rows and V vectors that cover a matrix.
template <class Tile> inline void tiles(int rows, int columns, Tile tile) {
    int blocks = (rows + ROWS - 1) / ROWS;
    for (int i = 0, row = 0; i < blocks; i++) {
        int next = int(int64_t(rows) * (i + 1) / blocks);
        with_rows<ROWS>(next - row, [&](auto r) {
            int column = 0;
            for (; column + 2 * WIDTH <= columns; column += 2 * WIDTH) tile(r, Number<2>(), row, column);
            if (column < columns) tile(r, Number<1>(), row, column);
        });
        row = next;
    }
}

// sum (R, V) += a (R, depth) b (depth, V); if ACROSS, a is stored as (depth, R).
template <int R, int V, bool ACROSS>
inline void multiply(const float* a, size_t a_row, const float* b, size_t b_row, int depth, vec (&sum)[R][V]) {
    for (int k = 0; k < depth; k++, b += b_row) {
        vec column[V];
        for (int v = 0; v < V; v++) column[v] = load(b + v * WIDTH);
        for (int r = 0; r < R; r++) {
            vec factor = all(ACROSS ? a[k * a_row + r] : a[r * a_row + k]);
            for (int v = 0; v < V; v++) sum[r][v] += factor * column[v];
        }
    }
}

// to (rows, columns) = a (rows, depth) b (depth, columns), without its negative values if it is rectified.
void product(int rows, int columns, int depth, const float* a, size_t a_row, const float* b, size_t b_row, float* to,
             size_t to_row, bool rectified = false) {
    tiles(rows, columns, [=](auto r, auto v, int row, int column) {
        constexpr int R = decltype(r)::value, V = decltype(v)::value;
        vec sum[R][V] = {};
        multiply<R, V, false>(a + row * a_row, a_row, b + column, b_row, depth, sum);
        for (int i = 0; i < R; i++)
            for (int j = 0; j < V; j++) {
                vec value = sum[i][j];
                if (rectified) value = value < 0.0f ? vec{} : value;  // NaN stays
                store(to + (row + i) * to_row + column + j * WIDTH, value);
            }
    });
}

// torch's CPU generator: MT19937 (Matsumoto and Nishimura 1998).
class Generator {
    uint32_t state[624];
    int at = 624;

    void refill() {
        auto twist = [this](int k, int next, int far) {
            uint32_t y = (state[k] & 0x80000000u) | (state[next] & 0x7fffffffu);
            state[k] = state[far] ^ (y >> 1) ^ (-(y & 1) & 0x9908b0dfu);
        };
        for (int k = 0; k < 227; k++) twist(k, k + 1, k + 397);
        for (int k = 227; k < 623; k++) twist(k, k + 1, k - 227);
        twist(623, 0, 396);
        at = 0;
    }

public:
    explicit Generator(uint64_t seed) {
        state[0] = uint32_t(seed);
        for (uint32_t k = 1; k < 624; k++) state[k] = 1812433253u * (state[k - 1] ^ (state[k - 1] >> 30)) + k;
    }

    uint32_t draw() {
        if (at == 624) refill();
        uint32_t y = state[at++];
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c5680u;
        y ^= (y << 15) & 0xefc60000u;
        return y ^ (y >> 18);
    }

    // The first entries of torch.randperm(n), which draws so below 2^32 / 20.
    void order(uint32_t n, uint32_t first, uint32_t* to) {
        for (uint32_t i = 0; i < n; i++) to[i] = i;
        for (uint32_t i = 0; i < std::min(n - 1, first); i++) std::swap(to[i], to[i + draw() % (n - i)]);
    }
};

struct Layer {
    int in, out, columns;
    size_t at;         // of its weights, in our layout
    size_t weight_at;  // and in torch's, where its bias follows
};

// A convolution of stride 1, then ReLU and max pooling by windows of `pool` pixels a side.
struct Conv {
    int in, height, width;  // of the inputs, with their padding
    int out, kernel_height, kernel_width, pad_height, pad_width, pool;
    int pooled_height, pooled_width;
    int plane, num_pixels;    // pixels of an input's channel; of an output's, from the first one to the last
    int pitch;                // floats from a channel's gradients to the next one's, where zeros follow each of them
    int margin;               // zeros before the first channel's gradients
    size_t at, weight_at;     // as a layer's; weights (out, taps), then biases
    std::vector<int> offset;  // of the inputs that a tap multiplies

    Conv(const int64_t* numbers, size_t at, size_t weight_at) : at(at), weight_at(weight_at) {
        for (int* to : {&in, &height, &width, &out, &kernel_height, &kernel_width, &pad_height, &pad_width, &pool}) *to = int(*numbers++);
        height += 2 * pad_height;
        width += 2 * pad_width;
        pooled_height = (height - kernel_height + 1) / pool;
        pooled_width = (width - kernel_width + 1) / pool;
        plane = height * width;
        margin = (kernel_height - 1) * width + kernel_width - 1;
        num_pixels = plane - margin;
        pitch = std::max(plane, padded(num_pixels));
        for (int c = 0; c < in; c++)
            for (int i = 0; i < kernel_height; i++)
                for (int j = 0; j < kernel_width; j++) offset.push_back(c * plane + i * width + j);
    }

    // The first pixel of the inputs that is no padding; and from it to the last one, in whole vectors.
    int inside() const { return pad_height * width + pad_width; }
    int inside_columns() const { return padded(plane - 2 * inside()); }
    int taps() const { return int(offset.size()); }
    size_t num_params() const { return size_t(out) * (taps() + 1); }
    // Vectors may read beyond the last channel, but must not find another sample.
    size_t inputs_size() const { return padded(size_t(in) * plane + WIDTH); }
    size_t gradients_size() const { return padded(margin + size_t(out) * pitch + WIDTH); }
    size_t pooled_plane() const { return size_t(pooled_height) * pooled_width; }
    size_t pooled_size() const { return out * pooled_plane(); }
};

struct Chain {
    std::vector<Conv> convs;
    std::vector<Layer> layers;
    size_t size = 0, widest = 0;

    explicit Chain(const Job& job) {
        size_t weight_at = 0;
        for (int64_t l = 0; l < job.num_convs; l++) {
            convs.emplace_back(job.convs + l * CONV_NUMBERS, size, weight_at);
            size += padded(convs.back().num_params());
            weight_at += convs.back().num_params();
        }
        for (int64_t l = 0; l < job.num_layers; l++) {
            int in = int(job.widths[l]), out = int(job.widths[l + 1]);
            layers.push_back({in, out, padded(out), size, weight_at});
            size += size_t(in + 1) * padded(out);
            weight_at += size_t(in + 1) * out;
            widest = std::max({widest, size_t(padded(in + 1)), size_t(padded(out + 1))});
        }
    }

    size_t convs_size() const { return layers[0].at; }

    // From torch's layout to ours, whose padding must be zero.
    void read(const float* from, float* to) const {
        for (const Conv& conv : convs) std::memcpy(to + conv.at, from + conv.weight_at, conv.num_params() * sizeof(float));
        for (const Layer& layer : layers) {
            const float* weight = from + layer.weight_at;
            transpose(layer.out, layer.in, weight, layer.in, to + layer.at, layer.columns);
            std::memcpy(to + layer.at + size_t(layer.in) * layer.columns, weight + size_t(layer.in) * layer.out, layer.out * sizeof(float));
        }
    }

    void write(const float* from, float* to) const {
        for (const Conv& conv : convs) std::memcpy(to + conv.weight_at, from + conv.at, conv.num_params() * sizeof(float));
        for (const Layer& layer : layers) {
            float* weight = to + layer.weight_at;
            transpose(layer.in, layer.out, from + layer.at, layer.columns, weight, layer.in);
            std::memcpy(weight + size_t(layer.in) * layer.out, from + layer.at + size_t(layer.in) * layer.columns, layer.out * sizeof(float));
        }
    }
};

// Zeros, aligned to vectors.
class Memory {
    std::vector<float> floats;
    float* next = nullptr;

public:
    explicit Memory(size_t size) : floats(size + WIDTH) {
        size_t beyond = reinterpret_cast<uintptr_t>(floats.data()) / sizeof(float) % WIDTH;
        next = floats.data() + (beyond ? WIDTH - beyond : 0);
    }

    float* take(size_t size) { return std::exchange(next, next + size); }
};

// What all clients share, in our layout; null if there is none or each has its own.
struct Shared {
    Memory memory;
    float *start = nullptr, *anchor = nullptr, *shift = nullptr;

    Shared(const Job& job, const Chain& chain)
        : memory((!job.own_params + !!job.anchor + (job.shift && !job.own_shift)) * chain.size) {
        auto read = [&](const float* from) {
            float* to = memory.take(chain.size);
            chain.read(from, to);
            return to;
        };
        if (!job.own_params) start = read(job.params);
        if (job.anchor) anchor = read(job.anchor);
        if (job.shift && !job.own_shift) shift = read(job.shift);
    }
};

// to (rows, columns) = bias (rows, 1), if there is one, + a (taps, rows) across times from, moved by each tap's offset.
void correlate(int rows, int columns, const std::vector<int>& offset, const float* a, const float* bias, const float* from, float* to) {
    const int taps = int(offset.size());
    const int* offsets = offset.data();
    tiles(rows, columns, [=](auto r, auto v, int row, int column) {
        constexpr int R = decltype(r)::value, V = decltype(v)::value;
        vec sum[R][V];
        for (int i = 0; i < R; i++)
            for (int j = 0; j < V; j++) sum[i][j] = all(bias ? bias[row + i] : 0.0f);
        const float* factors = a + row;
        for (int k = 0; k < taps; k++, factors += rows) {
            const float* moved = from + offsets[k] + column;
            vec pixels[V];
            for (int j = 0; j < V; j++) pixels[j] = load(moved + j * WIDTH);
            for (int i = 0; i < R; i++) {
                vec factor = all(factors[i]);
                for (int j = 0; j < V; j++) sum[i][j] += factor * pixels[j];
            }
        }
        for (int i = 0; i < R; i++)
            for (int j = 0; j < V; j++) store(to + size_t(row + i) * columns + column + j * WIDTH, sum[i][j]);
    });
}

// The convolutions of one thread. Of their gradients nothing is summed in an order that depends on other clients.
class Convolutions {
    const std::vector<Conv>& convs;
    std::vector<float*> inputs;                 // of each convolution, (sample, channel, pixel)
    std::vector<std::vector<int32_t>> largest;  // the pixel that each pooled output is, (sample, channel, pixel)
    std::vector<std::vector<int>> back;         // where the gradients are that a tap brings back
    std::vector<float*> across, turned;         // weights (taps, out), and (out, height, width, in)
    const float* weights = nullptr;
    float *outputs, *gradients, *below;

    template <class Size> static size_t most(const std::vector<Conv>& convs, Size size) {
        size_t found = 0;
        for (const Conv& conv : convs) found = std::max(found, size_t(padded(size(conv))));
        return found;
    }
    static size_t outputs_size(const Conv& conv) {  // pooling reads beyond their end
        return std::max(size_t(conv.out) * padded(conv.num_pixels) + MAX_POOL * WIDTH, size_t(conv.in) * conv.inside_columns());
    }
    static size_t weights_size(const Conv& conv) { return size_t(conv.out) * conv.taps(); }

    // Pools one channel with ReLU, into rows of a width. Beyond a row it writes zeros, where later rows or nothing stands.
    template <int POOL> static void pool(const Conv& conv, const float* from, int32_t* index, float* to, int to_width) {
        for (int y = 0; y < conv.pooled_height; y++, index += conv.pooled_width, to += to_width)
            for (int x = 0; x < conv.pooled_width; x += WIDTH) {
                int at = y * POOL * conv.width + x * POOL;
                ivec first = lanes(Lanes()) * POOL + at, chosen = first;
                vec best = every<POOL>(from + at);
                for (int i = 0; i < POOL; i++)
                    for (int j = i == 0; j < POOL; j++) {
                        vec value = every<POOL>(from + at + i * conv.width + j);
                        ivec better = (value > best) | (value != value);  // NaN stays, as in torch
                        best = better ? value : best;
                        chosen = better ? first + (i * conv.width + j) : chosen;
                    }
                std::memcpy(index + x, &chosen, sizeof chosen);
                store(to + x, (best < 0.0f) | (lanes(Lanes()) >= conv.pooled_width - x) ? vec{} : best);
            }
    }

public:
    static size_t size_of(const std::vector<Conv>& convs, int part) {
        size_t size = most(convs, outputs_size) + GROUP * most(convs, [](const Conv& c) { return c.gradients_size(); });
        size += GROUP * most(convs, [](const Conv& c) { return c.pooled_size(); });
        for (const Conv& conv : convs) size += part * conv.inputs_size() + 2 * padded(weights_size(conv));
        return size;
    }

    Convolutions(const std::vector<Conv>& convs, int part, Memory& memory) : convs(convs) {
        for (const Conv& conv : convs) {
            inputs.push_back(memory.take(part * conv.inputs_size()));
            across.push_back(memory.take(padded(weights_size(conv))));
            turned.push_back(memory.take(padded(weights_size(conv))));
            largest.emplace_back(part * conv.pooled_size() + WIDTH);
            back.emplace_back();
            for (int o = 0; o < conv.out; o++)
                for (int i = 0; i < conv.kernel_height; i++)
                    for (int j = 0; j < conv.kernel_width; j++) back.back().push_back(o * conv.pitch - i * conv.width - j);
        }
        outputs = memory.take(most(convs, outputs_size));
        gradients = memory.take(GROUP * most(convs, [](const Conv& c) { return c.gradients_size(); }));
        below = memory.take(GROUP * most(convs, [](const Conv& c) { return c.pooled_size(); }));
    }

    float* input(int sample) { return inputs[0] + sample * convs[0].inputs_size(); }

    // Takes the weights of a step.
    void begin(const float* from) {
        weights = from;
        for (size_t l = 0; l < convs.size(); l++) {
            const Conv& conv = convs[l];
            const int taps = conv.taps(), own = taps / conv.in;
            transpose(conv.out, taps, weights + conv.at, taps, across[l], conv.out);
            for (int o = 0; o < conv.out; o++)
                transpose(conv.in, own, weights + conv.at + size_t(o) * taps, own, turned[l] + size_t(o) * taps, conv.in);
        }
    }

    // Sets the features of a sample, whose inputs are in place.
    void forward(int sample, float* features) {
        for (size_t l = 0; l < convs.size(); l++) {
            const Conv& conv = convs[l];
            int columns = padded(conv.num_pixels);
            const float* bias = weights + conv.at + weights_size(conv);
            correlate(conv.out, columns, conv.offset, across[l], bias, inputs[l] + sample * conv.inputs_size(), outputs);
            const Conv* next = l + 1 < convs.size() ? &convs[l + 1] : nullptr;
            float* to = next ? inputs[l + 1] + sample * next->inputs_size() + next->inside() : features;
            for (int o = 0; o < conv.out; o++) {
                int32_t* index = largest[l].data() + sample * conv.pooled_size() + o * conv.pooled_plane();
                float* channel = to + o * (next ? size_t(next->plane) : conv.pooled_plane());
                with_rows<MAX_POOL>(conv.pool, [&](auto pool_) {
                    pool<decltype(pool_)::value>(conv, outputs + size_t(o) * columns, index, channel, next ? next->width : conv.pooled_width);
                });
            }
        }
    }

    // Adds a part's gradients of the weights. Those at the features, with which it begins, are zero where ReLU was.
    void backward(int num, const float* features, size_t features_row, float* gradient) {
        for (int first = 0; first < num; first += GROUP) {
            int group = std::min(GROUP, num - first);
            for (size_t l = convs.size(); l-- > 0;) {
                const Conv& conv = convs[l];
                bool last = l + 1 == convs.size();
                for (int s = 0; s < group; s++)
                    spread(l, first + s, last ? features + (first + s) * features_row : below + s * conv.pooled_size(), s);
                add_gradients(conv, group, inputs[l] + first * conv.inputs_size(), gradient + conv.at);
                for (int s = 0; l > 0 && s < group; s++) bring_back(l, first + s, s);
                for (int s = 0; s < group; s++) spread(l, first + s, nullptr, s);
            }
        }
    }

private:
    // Puts gradients at pooled outputs where these come from; null puts zeros back.
    void spread(size_t l, int sample, const float* from, int s) {
        const Conv& conv = convs[l];
        const int32_t* index = largest[l].data() + sample * conv.pooled_size();
        float* to = gradients + s * conv.gradients_size() + conv.margin;
        for (int o = 0; o < conv.out; o++, to += conv.pitch)
            for (size_t i = 0; i < conv.pooled_plane(); i++, index++) to[*index] = from ? *from++ : 0.0f;
    }

    void add_gradients(const Conv& conv, int group, const float* from, float* to) const {
        const int taps = conv.taps(), columns = padded(conv.num_pixels);
        const float* own = gradients + conv.margin;
        auto block = [&](auto r, auto t, int row, int tap) {
            constexpr int R = decltype(r)::value, T = decltype(t)::value;
            vec sum[R][T] = {};
            for (int s = 0; s < group; s++) {
                const float* moved[T];
                for (int j = 0; j < T; j++) moved[j] = from + s * conv.inputs_size() + conv.offset[tap + j];
                const float* g = own + s * conv.gradients_size() + size_t(row) * conv.pitch;
                for (int p = 0; p < columns; p += WIDTH) {
                    vec pixels[T];
                    for (int j = 0; j < T; j++) pixels[j] = load(moved[j] + p);
                    for (int i = 0; i < R; i++) {
                        vec factor = load(g + size_t(i) * conv.pitch + p);
                        for (int j = 0; j < T; j++) sum[i][j] += factor * pixels[j];
                    }
                }
            }
            for (int i = 0; i < R; i++)
                for (int j = 0; j < T; j++) to[size_t(row + i) * taps + tap + j] += total(sum[i][j]);
        };
        for (int row = 0; row < conv.out; row += GRADIENT_ROWS)
            with_rows<GRADIENT_ROWS>(std::min(GRADIENT_ROWS, conv.out - row), [&](auto r) {
                int tap = 0;
                for (; tap + TAPS <= taps; tap += TAPS) block(r, Number<TAPS>(), row, tap);
                for (; tap < taps; tap++) block(r, Number<1>(), row, tap);
            });
        for (int o = 0; o < conv.out; o++) {
            vec sum = {};
            for (int s = 0; s < group; s++)
                for (int p = 0; p < columns; p += WIDTH) sum += load(own + s * conv.gradients_size() + size_t(o) * conv.pitch + p);
            to[weights_size(conv) + o] += total(sum);
        }
    }

    // Sets below to a sample's gradients at the outputs of the convolution before.
    void bring_back(size_t l, int sample, int s) {
        const Conv &conv = convs[l], &previous = convs[l - 1];
        const int columns = conv.inside_columns(), inside = conv.inside();
        correlate(conv.in, columns, back[l], turned[l], nullptr, gradients + s * conv.gradients_size() + conv.margin + inside, outputs);
        float* to = below + s * previous.pooled_size();
        for (int c = 0; c < conv.in; c++)
            for (int y = 0; y < previous.pooled_height; y++) {
                const float* h = inputs[l] + sample * conv.inputs_size() + size_t(c) * conv.plane + inside + y * conv.width;
                const float* g = outputs + size_t(c) * columns + y * conv.width;
                for (int x = 0; x < previous.pooled_width; x++) *to++ = h[x] <= 0.0f ? 0.0f : g[x];
            }
    }
};

// Trains one client after another.
class Trainer {
    const Job& job;
    const Chain& chain;
    const Shared& shared;
    Memory memory;
    Convolutions convolutions;
    float *weights, *start, *shift, *momentum, *square, *gradient, *conv_gradient, *delta, *below, *across, *product_across;
    std::vector<float*> inputs;  // of each layer, and the outputs
    std::vector<uint32_t> order;
    float adam_step = 0, adam_root = 0;  // the corrections of Adam's bias

    static size_t size_of(const Job& job, const Chain& chain, int part, bool parted) {
        size_t vectors = 1 + !!job.own_params + !!job.own_shift + (job.momentum != 0) + 2 * !!job.adam + parted;
        size_t dense = vectors * chain.size + ((job.num_layers + 3) * part + 2 * padded(part)) * chain.widest;
        return dense + chain.convs_size() + Convolutions::size_of(chain.convs, part);
    }

    size_t row_of(size_t layer) const { return padded(job.widths[layer] + 1); }

    // Copies a number of a sample's values, from one on.
    template <class Value> void copy(const Value* from, int at, int num, float* to) const {
        if (job.scale)
            for (int i = 0; i < num; i++) to[i] = float(from[at + i]) * job.scale[at + i] + job.offset[at + i];
        else
            for (int i = 0; i < num; i++) to[i] = float(from[at + i]);
    }

    template <class Value> void copy_sample(const Value* from, int b) {
        if (chain.convs.empty()) return copy(from, 0, int(job.num_inputs), inputs[0] + b * row_of(0));
        const Conv& conv = chain.convs[0];
        int height = conv.height - 2 * conv.pad_height, width = conv.width - 2 * conv.pad_width;
        float* to = convolutions.input(b) + conv.inside();
        for (int c = 0; c < conv.in; c++)
            for (int y = 0; y < height; y++) copy(from, (c * height + y) * width, width, to + c * conv.plane + y * conv.width);
        convolutions.forward(b, inputs[0] + b * row_of(0));
    }

    void copy_samples(int64_t first, const uint32_t* rows, int num) {
        for (int b = 0; b < num; b++) {
            size_t at = size_t(first + rows[b]) * job.num_inputs;
            if (job.is_bytes) copy_sample(static_cast<const uint8_t*>(job.x) + at, b);
            else copy_sample(static_cast<const float*>(job.x) + at, b);
            inputs[0][b * row_of(0) + job.widths[0]] = 1.0f;
        }
    }

    void forward(int num) {
        for (size_t l = 0; l < chain.layers.size(); l++) {
            const Layer& layer = chain.layers[l];
            bool hidden = l + 1 < chain.layers.size();
            size_t row = row_of(l + 1);
            product(num, layer.columns, layer.in + 1, inputs[l], row_of(l), weights + layer.at, layer.columns, inputs[l + 1], row, hidden);
            for (int b = 0; b < num; b++) inputs[l + 1][b * row + layer.out] = 1.0f;
        }
    }

    // Sets delta to the gradient at the outputs of the batch's mean loss; returns the sum of losses.
    double cross_entropy(int64_t first, const uint32_t* rows, int num, float share, bool& wrong) {
        const Layer& layer = chain.layers.back();
        const int last = layer.columns - WIDTH;
        const ivec padding = lanes(Lanes()) >= layer.out - last;
        double loss = 0, factor = 1;  // the logarithm of a product of sums is cheaper than theirs
        for (int b = 0; b < num; b++) {
            float *z = inputs.back() + b * row_of(job.num_layers), *to = delta + size_t(b) * layer.columns;
            int64_t label = static_cast<const int64_t*>(job.y)[first + rows[b]];
            if (label < 0 || label >= layer.out) {
                wrong = true;
                return 0;
            }
            auto outputs = [&](int o) {  // without the padding
                vec v = load(z + o);
                return o == last ? (padding ? all(-INFINITY) : v) : v;
            };
            vec best = outputs(0);
            for (int o = WIDTH; o < layer.columns; o += WIDTH) best = outputs(o) > best ? outputs(o) : best;
            float top = largest(best);
            vec sums = {};
            for (int o = 0; o < layer.columns; o += WIDTH) {
                vec e = exponential(outputs(o) - top);
                store(to + o, e);
                sums += e;
            }
            float sum = total(sums);
            loss += top - z[label];
            factor *= sum;
            if (factor > 1e250) {
                loss += std::log(factor);
                factor = 1;
            }
            for (int o = 0; o < last; o += WIDTH) store(to + o, load(to + o) * (share / sum));
            store(to + last, padding ? vec{} : load(to + last) * (share / sum));
            to[label] -= share;
        }
        return loss + std::log(factor);
    }

    double squared_error(int64_t first, const uint32_t* rows, int num, float share) {
        const Layer& layer = chain.layers.back();
        double loss = 0;
        for (int b = 0; b < num; b++) {
            const float *z = inputs.back() + b * row_of(job.num_layers), *y = static_cast<const float*>(job.y) + size_t(first + rows[b]) * layer.out;
            float* to = delta + size_t(b) * layer.columns;
            for (int o = 0; o < layer.out; o++) {
                float error = z[o] - y[o];
                loss += double(error) * error / layer.out;
                to[o] = error * (2.0f * share / layer.out);
            }
            for (int o = layer.out; o < layer.columns; o++) to[o] = 0.0f;
        }
        return loss;
    }

    // Sets delta to the gradient at the inputs of a layer, which are outputs of a ReLU.
    void backward(size_t l, int num) {
        const Layer& layer = chain.layers[l];
        const int row = padded(layer.in);
        size_t columns = padded(num);
        transpose(num, layer.out, delta, layer.columns, across, columns);
        product(layer.in, int(columns), layer.out, weights + layer.at, layer.columns, across, columns, product_across, columns);
        transpose(layer.in, num, product_across, columns, below, row);
        for (int b = 0; b < num; b++) {
            const float* h = inputs[l] + b * row_of(l);
            float* to = below + size_t(b) * row;
            for (int i = layer.in; i < row; i++) to[i] = 0.0f;
            for (int i = 0; i < row; i += WIDTH) store(to + i, load(h + i) <= 0.0f ? vec{} : load(to + i));
        }
    }

    // A step of the optimizer, torch.optim.SGD or Adam, for one vector of a gradient.
    template <bool PLAIN> inline void descend(size_t at, vec g, bool first_step) {
        vec w = load(weights + at);
        if constexpr (!PLAIN) {
            if (shift) g += load(shift + at);
            if (job.mu != 0) g += float(job.mu) * (w - load((shared.anchor ? shared.anchor : start) + at));
            if (job.weight_decay != 0 && !job.decoupled) g += float(job.weight_decay) * w;
            if (job.adam) {
                vec m = float(1 - job.beta1) * g, v = float(1 - job.beta2) * g * g;
                if (!first_step) {
                    vec before = load(momentum + at);
                    m = before + float(1 - job.beta1) * (g - before);
                    v += float(job.beta2) * load(square + at);
                }
                store(momentum + at, m);
                store(square + at, v);
                if (job.decoupled) w *= float(1 - job.lr * job.weight_decay);
                return store(weights + at, w - adam_step * (m / (root(v) / adam_root + float(job.eps))));
            }
            if (job.momentum != 0) {
                vec m = first_step ? g : float(job.momentum) * load(momentum + at) + float(1 - job.dampening) * g;
                store(momentum + at, m);
                g = job.nesterov ? g + float(job.momentum) * m : m;
            }
        }
        store(weights + at, w - float(job.lr) * g);
    }

    // Adds a part's gradients of a layer's weights, and takes the step after the last part.
    template <bool PLAIN> void update(size_t l, int num, bool first_part, bool last_part, bool first_step) {
        const Layer& layer = chain.layers[l];
        const float* h = inputs[l];
        size_t h_row = row_of(l);
        tiles(layer.in + 1, layer.columns, [&, this](auto r, auto v, int row, int column) {
            constexpr int R = decltype(r)::value, V = decltype(v)::value;
            vec sum[R][V] = {};
            multiply<R, V, true>(h + row, h_row, delta + column, layer.columns, num, sum);
            size_t at = layer.at + size_t(row) * layer.columns + column;
            for (int i = 0; i < R; i++)
                for (int j = 0; j < V; j++) {
                    size_t here = at + size_t(i) * layer.columns + j * WIDTH;
                    vec g = first_part ? sum[i][j] : sum[i][j] + load(gradient + here);
                    if (last_part) descend<PLAIN>(here, g, first_step);
                    else store(gradient + here, g);
                }
        });
    }

    // One step on a batch; returns its mean loss.
    double step(int64_t first, const uint32_t* rows, int64_t size, int64_t number, bool& wrong) {
        bool first_step = number == 1;
        bool plain = !shift && job.mu == 0 && job.weight_decay == 0 && job.momentum == 0 && !job.adam;
        adam_step = float(job.lr / (1 - std::pow(job.beta1, number)));
        adam_root = float(std::sqrt(1 - std::pow(job.beta2, number)));
        double loss = 0;
        int64_t parts = (size + PART - 1) / PART;
        convolutions.begin(weights);
        for (int64_t p = 0, at = 0; p < parts; p++) {
            int64_t next = size * (p + 1) / parts;
            int num = int(next - at);
            float share = 1.0f / size;
            copy_samples(first, rows + at, num);
            forward(num);
            loss += job.squared_error ? squared_error(first, rows + at, num, share) : cross_entropy(first, rows + at, num, share, wrong);
            if (wrong) return 0;
            for (size_t l = chain.layers.size(); l-- > 0;) {
                if (l > 0 || !chain.convs.empty()) backward(l, num);
                if (plain) update<true>(l, num, p == 0, next == size, first_step);
                else update<false>(l, num, p == 0, next == size, first_step);
                std::swap(delta, below);
            }
            if (!chain.convs.empty()) {
                if (p == 0) std::memset(conv_gradient, 0, chain.convs_size() * sizeof(float));
                convolutions.backward(num, delta, padded(job.widths[0]), conv_gradient);
            }
            at = next;
        }
        for (size_t at = 0; at < chain.convs_size(); at += WIDTH) {
            if (plain) descend<true>(at, load(conv_gradient + at), first_step);
            else descend<false>(at, load(conv_gradient + at), first_step);
        }
        return loss / size;
    }

public:
    // Batches have at most part samples, or are computed in parts of so many.
    Trainer(const Job& job, const Chain& chain, const Shared& shared, int part, bool parted)
        : job(job), chain(chain), shared(shared), memory(size_of(job, chain, part, parted)), convolutions(chain.convs, part, memory) {
        weights = memory.take(chain.size);
        start = job.own_params ? memory.take(chain.size) : shared.start;
        shift = job.own_shift ? memory.take(chain.size) : shared.shift;
        momentum = job.momentum != 0 || job.adam ? memory.take(chain.size) : nullptr;
        square = job.adam ? memory.take(chain.size) : nullptr;
        gradient = parted ? memory.take(chain.size) : nullptr;
        conv_gradient = memory.take(chain.convs_size());
        for (int64_t l = 0; l <= job.num_layers; l++) inputs.push_back(memory.take(part * chain.widest));
        delta = memory.take(part * chain.widest);
        below = memory.take(part * chain.widest);
        across = memory.take(padded(part) * chain.widest);
        product_across = memory.take(padded(part) * chain.widest);
    }

    Status operator()(int64_t client) {
        if (job.own_params) chain.read(job.params + client * job.num_params, start);
        if (job.own_shift) chain.read(job.shift + client * job.num_params, shift);
        std::memcpy(weights, start, chain.size * sizeof(float));
        int64_t n = job.sizes[client], batch = job.batch_size ? std::min(job.batch_size, n) : n, left = job.steps[client];
        Generator generator(job.seeds[client]);
        order.resize(n);
        if (batch == n) generator.order(uint32_t(n), 0, order.data());
        double loss = 0;
        bool wrong = false;
        while (left > 0) {
            if (batch < n) generator.order(uint32_t(n), uint32_t(std::min(n, left * batch)), order.data());
            for (int64_t at = 0; at < n && left > 0; at += batch, left--)
                loss += step(job.starts[client], order.data() + at, std::min(batch, n - at), job.steps[client] - left + 1, wrong);
            if (wrong) return WRONG_LABEL;
        }
        chain.write(weights, job.out + client * job.num_params);
        job.losses[client] = loss / job.steps[client];
        return TRAINED;
    }
};

// A client's number of steps, as LocalWork.orders.
int64_t num_steps(const Job& job, int64_t client, int64_t batch) {
    int64_t total = job.max_steps < 0 ? job.epochs * ((job.sizes[client] + batch - 1) / batch) : job.max_steps;
    double share = job.shares ? job.shares[client] : 1;
    return std::min(total, std::max<int64_t>(1, int64_t(std::ceil(share * total - 1e-9))));
}

Status train_all(const Job& job) {
    int64_t largest = 1, num_trained = 0;
    std::vector<std::pair<int64_t, int64_t>> queue;  // the most samples first, so that the threads end together
    for (int64_t c = 0; c < job.num_clients; c++) {
        int64_t start = job.starts[c], size = job.sizes[c];
        if (size < 1 || size > MAX_SAMPLES || start < 0 || start > job.num_samples - size) return WRONG_ROWS;
        int64_t batch = job.batch_size ? std::min(job.batch_size, size) : size;
        job.steps[c] = num_steps(job, c, batch);
        queue.push_back({-job.steps[c] * batch, c});
        largest = std::max(largest, batch);
        num_trained += job.steps[c] * batch;  // or a few less
    }
    std::sort(queue.begin(), queue.end());
    int64_t threads = std::min({job.threads, job.num_clients, 1 + num_trained * job.num_params / job.numbers_a_thread});
    Chain chain(job);
    Shared shared(job, chain);
    std::atomic<int64_t> next(0);
    std::atomic<int> status(TRAINED);
    auto work = [&] {
        try {
            Trainer trainer(job, chain, shared, int(std::min<int64_t>(largest, PART)), largest > PART);
            for (int64_t i; status == TRAINED && (i = next++) < job.num_clients;)
                if (Status own = trainer(queue[i].second)) status = own;
        } catch (const std::bad_alloc&) {
            status = NO_MEMORY;
        }
    };
    std::vector<std::thread> others;
    others.reserve(threads);
    try {
        for (int64_t t = 1; t < threads; t++) others.emplace_back(work);
    } catch (const std::system_error&) {
        // The system allows no more threads; those that run do all the work.
    }
    work();
    for (std::thread& other : others) other.join();
    return Status(status.load());
}

}  // namespace

extern "C" int train(const Job* job) {
    try {
        return train_all(*job);
    } catch (const std::exception&) {  // bad_alloc, or length_error of a size beyond all memory
        return NO_MEMORY;
    }
}

// The first epochs' orders of n samples, for a comparison with torch.
extern "C" void draw_orders(uint64_t seed, int64_t n, int64_t epochs, uint32_t* to) {
    Generator generator(seed);
    for (int64_t e = 0; e < epochs; e++) generator.order(uint32_t(n), uint32_t(n), to + e * n);
}
