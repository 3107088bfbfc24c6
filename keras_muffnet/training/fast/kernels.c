/* What PyTorch lacks on a CPU to train small networks at its speed.

   All tensors are float32 with the channels last, seen as rows of channels.
   Sums run over the rows: float32 within a block of rows, double among the
   blocks. They are joined in the order of the threads, so that the same number
   of threads gives the same result to the last bit. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifdef _OPENMP
#include <omp.h>
#else
#define omp_get_max_threads() 1
#define omp_get_thread_num() 0
#endif

#define BLOCK 128

typedef float *restrict out;
typedef const float *restrict in;

/* How many rows are seen as one, so that they fill whole vectors. */
static int64_t rows_at_once(int64_t rows, int64_t channels)
{
    int64_t count = 1;
    while (count < 16 && count * channels % 16)
        count *= 2;
    return rows % count || channels > 512 ? 1 : count;
}

/* The values of the channels, once for each row that is seen as one. */
static void repeat(in values, int64_t channels, int64_t width, out result)
{
    for (int64_t c = 0; c < width; c++)
        result[c] = values[c % channels];
}

static int64_t end_of_block(int64_t block, int64_t rows)
{
    int64_t end = (block + 1) * BLOCK;
    return end < rows ? end : rows;
}

/* Mean and biased variance of each channel. Returns 0, or 1 without memory. */
int moments(in x, int64_t rows, int64_t channels, out mean, out variance)
{
    int threads = omp_get_max_threads();
    int64_t joined = rows_at_once(rows, channels), width = joined * channels;
    rows /= joined;
    int64_t blocks = (rows + BLOCK - 1) / BLOCK;
    /* For each thread and channel: the mean of the thread's first block; the
       sums of the deviations from it, and of their squares. */
    double *parts = calloc((size_t)threads * 3 * width, sizeof(double));
    double *counts = calloc(threads, sizeof(double));
    if (!parts || !counts) {
        free(parts);
        free(counts);
        return 1;
    }
#pragma omp parallel num_threads(threads)
    {
        int thread = omp_get_thread_num();
        double *first = parts + (int64_t)thread * 3 * width;
        double *sum = first + width, *squares = sum + width, count = 0;
        float near[width], a[width], b[width];
#pragma omp for schedule(static) nowait
        for (int64_t k = 0; k < blocks; k++) {
            int64_t begin = k * BLOCK, end = end_of_block(k, rows);
            memset(a, 0, sizeof a);
            memset(b, 0, sizeof b);
            if (count == 0) {
                for (int64_t r = begin; r < end; r++)
                    for (int64_t c = 0; c < width; c++)
                        a[c] += x[r * width + c];
                for (int64_t c = 0; c < width; c++) {
                    near[c] = a[c] / (end - begin);
                    first[c] = near[c];
                    a[c] = 0;
                }
            }
            for (int64_t r = begin; r < end; r++) {
                in p = x + r * width;
                for (int64_t c = 0; c < width; c++) {
                    float d = p[c] - near[c];
                    a[c] += d;
                    b[c] += d * d;
                }
            }
            for (int64_t c = 0; c < width; c++) {
                sum[c] += a[c];
                squares[c] += b[c];
            }
            count += end - begin;
        }
        counts[thread] = count;
    }
    for (int64_t c = 0; c < channels; c++) {
        double m = 0, s = 0, count = 0;
        for (int t = 0; t < threads; t++)
            for (int64_t k = c; counts[t] && k < width; k += channels) {
                double *part = parts + (int64_t)t * 3 * width + k;
                double n = counts[t], all = count + n, away = part[width] / n;
                double d = part[0] + away - m;
                m += d * n / all;
                s += part[2 * width] - n * away * away;
                s += d * d * count * n / all;
                count = all;
            }
        mean[c] = m;
        variance[c] = s < 0 ? 0 : s / count;
    }
    free(parts);
    free(counts);
    return 0;
}

static float clipped(float v, float limit)
{
    v = v < 0 ? 0 : v;
    return v > limit ? limit : v;
}

/* y = x * scale + shift, to which `add` is added if it is not null, and ReLU up
   to `limit` is applied if that is not 0. A NaN stays one. */
void normalize(in x, in add, int64_t rows, int64_t channels, in scale,
               in shift, float limit, out y)
{
    int64_t joined = rows_at_once(rows, channels), width = joined * channels;
    float a[width], b[width];
    repeat(scale, channels, width, a);
    repeat(shift, channels, width, b);
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < rows / joined; r++) {
        in p = x + r * width;
        out q = y + r * width;
        if (add && limit) {
            in s = add + r * width;
            for (int64_t c = 0; c < width; c++)
                q[c] = clipped(p[c] * a[c] + b[c] + s[c], limit);
        } else if (add) {
            in s = add + r * width;
            for (int64_t c = 0; c < width; c++)
                q[c] = p[c] * a[c] + b[c] + s[c];
        } else if (limit) {
            for (int64_t c = 0; c < width; c++)
                q[c] = clipped(p[c] * a[c] + b[c], limit);
        } else {
            for (int64_t c = 0; c < width; c++)
                q[c] = p[c] * a[c] + b[c];
        }
    }
}

/* What of g passes a ReLU up to `limit` whose output, or input, is v. */
static float passed(float g, float v, float limit)
{
    return v > 0 && v < limit ? g : 0;
}

/* For each channel the sum of g, and of g * (x - mean). If `limit` is not 0, a
   ReLU followed, and g counts where its output is between 0 and the limit: that
   is `y`, or without it x * scale + shift. Returns 0, or 1 without memory. */
int gradient_sums(in g, in x, in y, int64_t rows, int64_t channels, in mean,
                  in scale, in shift, float limit, out sum, out product)
{
    int threads = omp_get_max_threads();
    int64_t joined = rows_at_once(rows, channels), width = joined * channels;
    rows /= joined;
    int64_t blocks = (rows + BLOCK - 1) / BLOCK;
    double *parts = calloc((size_t)threads * 2 * width, sizeof(double));
    if (!parts)
        return 1;
    float m[width], k[width], s[width];
    repeat(mean, channels, width, m);
    repeat(scale, channels, width, k);
    repeat(shift, channels, width, s);
#pragma omp parallel num_threads(threads)
    {
        double *mine = parts + (int64_t)omp_get_thread_num() * 2 * width;
        float a[width], b[width];
#pragma omp for schedule(static) nowait
        for (int64_t block = 0; block < blocks; block++) {
            memset(a, 0, sizeof a);
            memset(b, 0, sizeof b);
            for (int64_t r = block * BLOCK; r < end_of_block(block, rows);
                 r++) {
                in p = x + r * width, q = g + r * width;
                if (limit && y) {
                    in z = y + r * width;
                    for (int64_t c = 0; c < width; c++) {
                        float v = passed(q[c], z[c], limit);
                        a[c] += v;
                        b[c] += v * (p[c] - m[c]);
                    }
                } else if (limit) {
                    for (int64_t c = 0; c < width; c++) {
                        float v = passed(q[c], p[c] * k[c] + s[c], limit);
                        a[c] += v;
                        b[c] += v * (p[c] - m[c]);
                    }
                } else {
                    for (int64_t c = 0; c < width; c++) {
                        a[c] += q[c];
                        b[c] += q[c] * (p[c] - m[c]);
                    }
                }
            }
            for (int64_t c = 0; c < width; c++) {
                mine[c] += a[c];
                mine[width + c] += b[c];
            }
        }
    }
    for (int64_t c = 0; c < channels; c++) {
        double a = 0, b = 0;
        for (int t = 0; t < threads; t++)
            for (int64_t i = c; i < width; i += channels) {
                a += parts[(int64_t)t * 2 * width + i];
                b += parts[((int64_t)t * 2 + 1) * width + i];
            }
        sum[c] = a;
        product[c] = b;
    }
    free(parts);
    return 0;
}

/* dx = k0 * g - k1 * (x - mean) - k2, where g counts as above. What counts of
   g goes to `masked` where that is given; then `y` is, too. */
void gradient(in g, in x, in y, int64_t rows, int64_t channels, in mean,
              in scale, in shift, float limit, in k0, in k1, in k2, out dx,
              out masked)
{
    int64_t joined = rows_at_once(rows, channels), width = joined * channels;
    float m[width], k[width], s[width], a[width], b[width], e[width];
    repeat(mean, channels, width, m);
    repeat(scale, channels, width, k);
    repeat(shift, channels, width, s);
    repeat(k0, channels, width, a);
    repeat(k1, channels, width, b);
    repeat(k2, channels, width, e);
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < rows / joined; r++) {
        in p = x + r * width, q = g + r * width;
        out d = dx + r * width;
        if (masked) {
            in z = y + r * width;
            out f = masked + r * width;
#pragma omp simd
            for (int64_t c = 0; c < width; c++) {
                float v = passed(q[c], z[c], limit);
                f[c] = v;
                d[c] = a[c] * v - b[c] * (p[c] - m[c]) - e[c];
            }
        } else if (limit) {
            for (int64_t c = 0; c < width; c++) {
                float v = passed(q[c], p[c] * k[c] + s[c], limit);
                d[c] = a[c] * v - b[c] * (p[c] - m[c]) - e[c];
            }
        } else {
            for (int64_t c = 0; c < width; c++)
                d[c] = a[c] * q[c] - b[c] * (p[c] - m[c]) - e[c];
        }
    }
}

/* Numbers that are computed at once; they may lie anywhere. */
typedef float four __attribute__((vector_size(16), aligned(4)));
typedef float sixteen __attribute__((vector_size(64), aligned(4)));

/* Copies numbers, the last four of them maybe twice. */
static void copy(const float *from, int64_t count, float *to)
{
    if (count < 4) {
        for (int64_t c = 0; c < count; c++)
            to[c] = from[c];
        return;
    }
    for (int64_t c = 0; c + 4 <= count; c += 4)
        *(four *)(to + c) = *(const four *)(from + c);
    *(four *)(to + count - 4) = *(const four *)(from + count - 4);
}

/* Puts groups of channels side by side. Group k has `widths[k]` channels, and
   its rows lie `strides[k]` numbers apart; a null group is zeros. */
void join(const float *const *groups, const int64_t *strides,
          const int64_t *widths, int64_t count, int64_t rows,
          int64_t channels, out y)
{
    int64_t blocks = (rows + BLOCK - 1) / BLOCK;
#pragma omp parallel for schedule(static)
    for (int64_t block = 0; block < blocks; block++) {
        int64_t begin = block * BLOCK, end = end_of_block(block, rows);
        float *q = y + begin * channels;
        for (int64_t k = 0; k < count; k++) {
            for (int64_t r = 0; r < end - begin; r++) {
                if (groups[k])
                    copy(groups[k] + (begin + r) * strides[k], widths[k],
                         q + r * channels);
                else
                    memset(q + r * channels, 0, widths[k] * sizeof(float));
            }
            q += widths[k];
        }
    }
}

/* Adds the products of two rows of pixels to some channels' sums, in steps of
   a vector. The sums stay in a register over the row. */
#define ADD_PRODUCTS(vector)                                                   \
    for (; c + width_of(vector) <= channels; c += width_of(vector)) {          \
        vector v = *(vector *)(sums + c);                                      \
        for (int64_t q = 0; q < pixels; q++)                                   \
            v += *(const vector *)(a + q * step + c) *                         \
                 *(const vector *)(b + q * channels + c);                      \
        *(vector *)(sums + c) = v;                                             \
    }
#define width_of(vector) ((int64_t)(sizeof(vector) / sizeof(float)))

static void add_products(const float *a, const float *b, int64_t pixels,
                         int64_t step, int64_t channels, float *sums)
{
    int64_t c = 0;
    ADD_PRODUCTS(sixteen)
    ADD_PRODUCTS(four)
    ADD_PRODUCTS(float)
}

/* Gradient of a depthwise convolution by its kernel. `x` is (batch, height,
   width, channels), `g` (batch, out_height, out_width, channels), the result
   (size, size, channels); top and left are what was padded there. Returns 0,
   or 1 without memory. */
int depthwise_kernel_gradient(in x, in g, int64_t batch, int64_t height,
                              int64_t width, int64_t out_height,
                              int64_t out_width, int64_t channels,
                              int64_t size, int64_t stride, int64_t top,
                              int64_t left, out result)
{
    int threads = omp_get_max_threads();
    int64_t count = size * size * channels;
    double *parts = calloc((size_t)threads * count, sizeof(double));
    if (!parts)
        return 1;
#pragma omp parallel num_threads(threads)
    {
        double *mine = parts + omp_get_thread_num() * count;
        float sums[count];
#pragma omp for schedule(static) nowait
        for (int64_t n = 0; n < batch; n++) {
            memset(sums, 0, sizeof sums);
            for (int64_t p = 0; p < out_height; p++)
                for (int64_t i = 0; i < size; i++) {
                    int64_t h = p * stride + i - top;
                    if (h < 0 || h >= height)
                        continue;
                    in from = x + (n * height + h) * width * channels;
                    in to = g + (n * out_height + p) * out_width * channels;
                    for (int64_t j = 0; j < size; j++) {
                        int64_t shift = j - left, q0 = 0, q1 = out_width;
                        while (q0 < q1 && q0 * stride + shift < 0)
                            q0++;
                        while (q1 > q0 && (q1 - 1) * stride + shift >= width)
                            q1--;
                        add_products(from + (q0 * stride + shift) * channels,
                                     to + q0 * channels, q1 - q0,
                                     stride * channels, channels,
                                     sums + (i * size + j) * channels);
                    }
                }
            for (int64_t k = 0; k < count; k++)
                mine[k] += sums[k];
        }
    }
    for (int64_t k = 0; k < count; k++) {
        double sum = 0;
        for (int t = 0; t < threads; t++)
            sum += parts[t * count + k];
        result[k] = sum;
    }
    free(parts);
    return 0;
}
