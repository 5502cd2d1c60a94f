// Sums over rows of numbers, called by row_sums.py, whose NumPy gives the same bits: each product and each sum is
// rounded, and the order of a sum depends neither on the processor nor on how many numbers are added at once.

#include <algorithm>
#include <cstdint>

// The numbers of a row in turn belong to so many sums.
constexpr int LANES = 32;
// Columns that are summed at once, so that the sums stay in a core's cache.
constexpr std::int64_t COLUMNS = 1024;

namespace {

using std::int64_t;

template <class T> struct Rows {
    const T* first;
    int64_t length, num, num_columns;

    const T* operator[](int64_t row) const { return first + row * length; }
};

// The products of each row's distance from the origin and a vector, or itself: a sum for each lane, and then of halves.
template <class T> void multiply(const Rows<T>& rows, const T* origin, const double* vector, double* to) {
    for (int64_t i = 0; i < rows.num; i++) {
        const T* row = rows[i];
        double sums[LANES] = {};
        auto add = [&](int64_t at, int lane) {
            double moved = double(row[at + lane]) - double(origin[at + lane]);
            sums[lane] += moved * (vector ? vector[at + lane] : moved);
        };
        int64_t at = 0;
        for (; at + LANES <= rows.num_columns; at += LANES)
#pragma GCC unroll 32
            for (int lane = 0; lane < LANES; lane++) add(at, lane);
        for (int lane = 0; at + lane < rows.num_columns; lane++) add(at, lane);
        for (int half = LANES / 2; half; half /= 2)
            for (int lane = 0; lane < half; lane++) sums[lane] += sums[half + lane];
        to[i] = sums[0];
    }
}

// Adds the rows' distances from the origin times factors (NUM, num) to totals (NUM, num_columns). A row whose factors are
// 0 is not read, for it may not be finite.
template <int NUM, class T> void add_moved(const Rows<T>& rows, const T* origin, const double* factors, double* totals) {
    for (int64_t start = 0; start < rows.num_columns; start += COLUMNS) {
        int64_t stop = std::min(start + COLUMNS, rows.num_columns);
        for (int64_t i = 0; i < rows.num; i++) {
            const T* row = rows[i];
            double own[NUM];
            for (int t = 0; t < NUM; t++) own[t] = factors[t * rows.num + i];
            if (std::all_of(own, own + NUM, [](double factor) { return factor == 0; })) continue;
            for (int64_t j = start; j < stop; j++) {
                double moved = double(row[j]) - double(origin[j]);
                for (int t = 0; t < NUM; t++) totals[t * rows.num_columns + j] += moved * own[t];
            }
        }
    }
}

// Adds the rows times their shares to the mean, or sets it if it is new.
template <class T> void add_weighted(const Rows<T>& rows, const T* shares, bool is_new, T* mean) {
    for (int64_t start = 0; start < rows.num_columns; start += COLUMNS) {
        int64_t stop = std::min(start + COLUMNS, rows.num_columns);
        for (int64_t i = 0; i < rows.num; i++) {
            const T *row = rows[i], share = shares[i];
            if (is_new && i == 0) for (int64_t j = start; j < stop; j++) mean[j] = row[j] * share;
            else for (int64_t j = start; j < stop; j++) mean[j] += row[j] * share;
        }
    }
}

}  // namespace

#define FUNCTIONS(T) \
    extern "C" void multiply_##T(const T* first, int64_t length, int64_t num, int64_t num_columns, const T* origin, const double* vector, double* to) { \
        multiply<T>({first, length, num, num_columns}, origin, vector, to); \
    } \
    extern "C" void add_moved_##T(const T* first, int64_t length, int64_t num, int64_t num_columns, const T* origin, const double* factors, int64_t num_totals, double* totals) { \
        (num_totals == 1 ? add_moved<1, T> : add_moved<2, T>)({first, length, num, num_columns}, origin, factors, totals); \
    } \
    extern "C" void add_weighted_##T(const T* first, int64_t length, int64_t num, int64_t num_columns, const T* shares, int64_t is_new, T* mean) { \
        add_weighted<T>({first, length, num, num_columns}, shares, is_new, mean); \
    }

FUNCTIONS(float)
FUNCTIONS(double)
