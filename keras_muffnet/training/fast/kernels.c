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

static int64_t end_of_block(int64_t block, int64_t rows)
{
    int64_t end = (block + 1) * BLOCK;
    return end < rows ? end : rows;
}

/* Mean and biased variance of each channel. Returns 0, or 1 without memory. */
int moments(in x, int64_t rows, int64_t channels, out mean, out variance)
{
    int threads = omp_get_max_threads();
    int64_t blocks = (rows + BLOCK - 1) / BLOCK;
    /* For each thread and channel its mean and sum of squared deviations. */
    double *parts = calloc((size_t)threads * 2 * channels, sizeof(double));
    double *counts = calloc(threads, sizeof(double));
    if (!parts || !counts) {
        free(parts);
        free(counts);
        return 1;
    }
#pragma omp parallel num_threads(threads)
    {
        int thread = omp_get_thread_num();
        double *m = parts + (int64_t)thread * 2 * channels, *s = m + channels;
        double count = 0;
        float a[channels], b[channels];
#pragma omp for schedule(static) nowait
        for (int64_t k = 0; k < blocks; k++) {
            int64_t begin = k * BLOCK, end = end_of_block(k, rows);
            double n = end - begin, all = count + n;
            memset(a, 0, sizeof a);
            memset(b, 0, sizeof b);
            for (int64_t r = begin; r < end; r++) {
                in p = x + r * channels;
                for (int64_t c = 0; c < channels; c++)
                    a[c] += p[c];
            }
            for (int64_t c = 0; c < channels; c++)
                a[c] /= n;
            for (int64_t r = begin; r < end; r++) {
                in p = x + r * channels;
                for (int64_t c = 0; c < channels; c++)
                    b[c] += (p[c] - a[c]) * (p[c] - a[c]);
            }
            for (int64_t c = 0; c < channels; c++) {
                double d = a[c] - m[c];
                m[c] += d * n / all;
                s[c] += b[c] + d * d * count * n / all;
            }
            count = all;
        }
        counts[thread] = count;
    }
    for (int64_t c = 0; c < channels; c++) {
        double m = 0, s = 0, count = 0;
        for (int t = 0; t < threads; t++) {
            double *part = parts + (int64_t)t * 2 * channels;
            double n = counts[t], all = count + n, d = part[c] - m;
            if (n == 0)
                continue;
            m += d * n / all;
            s += part[channels + c] + d * d * count * n / all;
            count = all;
        }
        mean[c] = m;
        variance[c] = s / rows;
    }
    free(parts);
    free(counts);
    return 0;
}

/* y = x * scale + shift, to which `add` is added and ReLU applied, each if
   wanted; `add` may be null. A NaN stays one. */
void normalize(in x, in add, int64_t rows, int64_t channels, in scale,
               in shift, int relu, out y)
{
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        in p = x + r * channels;
        out q = y + r * channels;
        if (add && relu) {
            in s = add + r * channels;
            for (int64_t c = 0; c < channels; c++) {
                float v = p[c] * scale[c] + shift[c] + s[c];
                q[c] = v < 0 ? 0 : v;
            }
        } else if (add) {
            in s = add + r * channels;
            for (int64_t c = 0; c < channels; c++)
                q[c] = p[c] * scale[c] + shift[c] + s[c];
        } else if (relu) {
            for (int64_t c = 0; c < channels; c++) {
                float v = p[c] * scale[c] + shift[c];
                q[c] = v < 0 ? 0 : v;
            }
        } else {
            for (int64_t c = 0; c < channels; c++)
                q[c] = p[c] * scale[c] + shift[c];
        }
    }
}

/* For each channel the sum of g, and of g * (x - mean). Where `y`, the output
   of a ReLU, is given, g counts where it is positive. Returns 0, or 1 without
   memory. */
int gradient_sums(in g, in x, in y, int64_t rows, int64_t channels, in mean,
                  out sum, out product)
{
    int threads = omp_get_max_threads();
    int64_t blocks = (rows + BLOCK - 1) / BLOCK;
    double *parts = calloc((size_t)threads * 2 * channels, sizeof(double));
    if (!parts)
        return 1;
#pragma omp parallel num_threads(threads)
    {
        double *m = parts + (int64_t)omp_get_thread_num() * 2 * channels;
        float a[channels], b[channels];
#pragma omp for schedule(static) nowait
        for (int64_t k = 0; k < blocks; k++) {
            memset(a, 0, sizeof a);
            memset(b, 0, sizeof b);
            for (int64_t r = k * BLOCK; r < end_of_block(k, rows); r++) {
                in p = x + r * channels, q = g + r * channels;
                if (y) {
                    in z = y + r * channels;
                    for (int64_t c = 0; c < channels; c++) {
                        float v = z[c] > 0 ? q[c] : 0;
                        a[c] += v;
                        b[c] += v * (p[c] - mean[c]);
                    }
                } else {
                    for (int64_t c = 0; c < channels; c++) {
                        a[c] += q[c];
                        b[c] += q[c] * (p[c] - mean[c]);
                    }
                }
            }
            for (int64_t c = 0; c < channels; c++) {
                m[c] += a[c];
                m[channels + c] += b[c];
            }
        }
    }
    for (int64_t c = 0; c < channels; c++) {
        double a = 0, b = 0;
        for (int t = 0; t < threads; t++) {
            a += parts[(int64_t)t * 2 * channels + c];
            b += parts[((int64_t)t * 2 + 1) * channels + c];
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
              in k0, in k1, in k2, out dx, out masked)
{
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        in p = x + r * channels, q = g + r * channels;
        out d = dx + r * channels;
        if (masked) {
            in z = y + r * channels;
            out e = masked + r * channels;
            for (int64_t c = 0; c < channels; c++) {
                float v = z[c] > 0 ? q[c] : 0;
                e[c] = v;
                d[c] = k0[c] * v - k1[c] * (p[c] - mean[c]) - k2[c];
            }
        } else if (y) {
            in z = y + r * channels;
            for (int64_t c = 0; c < channels; c++) {
                float v = z[c] > 0 ? q[c] : 0;
                d[c] = k0[c] * v - k1[c] * (p[c] - mean[c]) - k2[c];
            }
        } else {
            for (int64_t c = 0; c < channels; c++)
                d[c] = k0[c] * q[c] - k1[c] * (p[c] - mean[c]) - k2[c];
        }
    }
}

/* Puts groups of channels side by side. Group k has `widths[k]` channels, and
   its rows lie `strides[k]` numbers apart; a null group is zeros. */
void join(const float *const *groups, const int64_t *strides,
          const int64_t *widths, int64_t count, int64_t rows,
          int64_t channels, out y)
{
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        out q = y + r * channels;
        for (int64_t k = 0; k < count; k++) {
            if (groups[k]) {
                in p = groups[k] + r * strides[k];
                for (int64_t c = 0; c < widths[k]; c++)
                    q[c] = p[c];
            } else {
                for (int64_t c = 0; c < widths[k]; c++)
                    q[c] = 0;
            }
            q += widths[k];
        }
    }
}

/* Numbers that are computed at once; they may lie anywhere. */
typedef float four __attribute__((vector_size(16), aligned(4)));
typedef float sixteen __attribute__((vector_size(64), aligned(4)));

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
