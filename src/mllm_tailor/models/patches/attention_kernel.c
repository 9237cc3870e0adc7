/* Attention in float32 on one thread: of one sample, forward and backward, and of a decoding step; see
   attention_kernel.py. */

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef float vec __attribute__((vector_size(32), aligned(4)));
typedef int32_t ivec __attribute__((vector_size(32), aligned(4)));

enum { LANES = 8, PANEL = 16, ROWS = 6, FORWARD_ROWS = 24, QUERIES = 48, KEYS = 96 };

/* Where a side of (tokens, heads, width) lies: its first number, and the steps between tokens and between heads. */
typedef struct {
    float *first;
    int64_t token, head;
} side;

typedef struct {
    int64_t heads, groups, queries, keys, width;
    float scale;
    int64_t causal;
} shape;

static inline vec load(const float *from) { return *(const vec *)from; }
static inline void store(float *to, vec value) { *(vec *)to = value; }
static inline vec all(float value) { return (vec){value, value, value, value, value, value, value, value}; }
static inline vec larger(vec left, vec right) {
    ivec mask = left > right;
    return (vec)(((ivec)left & mask) | ((ivec)right & ~mask));
}

/* exp with a relative error under 2e-7; 0 below -87. 2^n times a polynomial on half an octave around 0. */
static inline vec exponential(vec x) {
    ivec alive = x > all(-87.0f);
    x = larger(x, all(-87.0f));
    vec n = (x * all(1.44269504f) + all(12582912.0f)) - all(12582912.0f);
    vec r = (x - n * all(0.693359375f)) + n * all(2.12194440e-4f);
    vec p = all(1.9875691500e-4f);
    p = p * r + all(1.3981999507e-3f);
    p = p * r + all(8.3334519073e-3f);
    p = p * r + all(4.1665795894e-2f);
    p = p * r + all(1.6666665459e-1f);
    p = p * r + all(5.0000001201e-1f);
    p = p * r * r + r + all(1.0f);
    ivec power = (__builtin_convertvector(n, ivec) + 127) << 23;
    return (vec)((ivec)(p * (vec)power) & alive);
}

/* C (rows, 16) = or += A (rows, depth) B (depth, 16), rows at most ROWS. */
#define PRODUCT(M)                                                                                                     \
    static void product_##M(int64_t depth, const float *a, int64_t row, int64_t column, const float *b, int64_t down,  \
                            float *c, int64_t across, int adds) {                                                      \
        vec sum[M][2];                                                                                                 \
        _Pragma("GCC unroll 6") for (int i = 0; i < M; i++) {                                                          \
            sum[i][0] = adds ? load(c + i * across) : all(0);                                                          \
            sum[i][1] = adds ? load(c + i * across + LANES) : all(0);                                                  \
        }                                                                                                              \
        for (int64_t k = 0; k < depth; k++) {                                                                          \
            vec first = load(b), second = load(b + LANES);                                                             \
            _Pragma("GCC unroll 6") for (int i = 0; i < M; i++) {                                                      \
                vec factor = all(a[i * row]);                                                                          \
                sum[i][0] += factor * first;                                                                           \
                sum[i][1] += factor * second;                                                                          \
            }                                                                                                          \
            a += column;                                                                                               \
            b += down;                                                                                                 \
        }                                                                                                              \
        _Pragma("GCC unroll 6") for (int i = 0; i < M; i++) {                                                          \
            store(c + i * across, sum[i][0]);                                                                          \
            store(c + i * across + LANES, sum[i][1]);                                                                  \
        }                                                                                                              \
    }

PRODUCT(1)
PRODUCT(2)
PRODUCT(3)
PRODUCT(4)
PRODUCT(5)
PRODUCT(6)

typedef void (*product)(int64_t, const float *, int64_t, int64_t, const float *, int64_t, float *, int64_t, int);
static const product PRODUCTS[] = {0, product_1, product_2, product_3, product_4, product_5, product_6};

/* The same for any number of rows and for columns that are a multiple of 16; `panels` apart in B. */
static void multiply(int64_t rows, int64_t columns, int64_t depth, const float *a, int64_t row, int64_t column,
                     const float *b, int64_t down, int64_t panels, float *c, int64_t across, int adds) {
    for (int64_t j = 0; j < columns; j += PANEL)
        for (int64_t i = 0; i < rows; i += ROWS) {
            int64_t some = rows - i < ROWS ? rows - i : ROWS;
            PRODUCTS[some](depth, a + i * row, row, column, b + j / PANEL * panels, down, c + i * across + j, across,
                           adds);
        }
}

static int64_t least(int64_t left, int64_t right) { return left < right ? left : right; }
static int64_t rounded(int64_t count) { return (count + PANEL - 1) / PANEL * PANEL; }

/* The rows of a head side by side, times a factor; zeros up to `padded`. */
static void gather(side from, int64_t head, int64_t count, int64_t padded, int64_t width, float factor, float *to) {
    for (int64_t i = 0; i < count; i++) {
        const float *row = from.first + i * from.token + head * from.head;
        for (int64_t d = 0; d < width; d += LANES) store(to + i * width + d, load(row + d) * all(factor));
    }
    memset(to + count * width, 0, (size_t)((padded - count) * width) * sizeof(float));
}

/* Sixteen rows at a time, transposed: (panel, width, 16). */
static void turn(const float *rows, int64_t padded, int64_t width, float *to) {
    for (int64_t i = 0; i < padded; i++)
        for (int64_t d = 0; d < width; d++) to[(i / PANEL * width + d) * PANEL + i % PANEL] = rows[i * width + d];
}

static void scatter(const float *from, side to, int64_t head, int64_t start, int64_t count, int64_t width) {
    for (int64_t i = 0; i < count; i++)
        memcpy(to.first + (start + i) * to.token + head * to.head, from + i * width, (size_t)width * sizeof(float));
}

/* Scores become exponentials of what they are below the largest, `most`; zeros from `count` on. Returns their sum. */
static float exponentials(float *row, int64_t count, int64_t padded, float *most) {
    for (int64_t j = count; j < padded; j++) row[j] = -INFINITY;
    vec high = load(row), sum = all(0);
    for (int64_t j = LANES; j < padded; j += LANES) high = larger(load(row + j), high);
    float total = 0;
    *most = high[0];
    for (int lane = 1; lane < LANES; lane++) *most = high[lane] > *most ? high[lane] : *most;
    for (int64_t j = 0; j < padded; j += LANES) {
        vec share = exponential(load(row + j) - all(*most));
        store(row + j, share);
        sum += share;
    }
    for (int lane = 0; lane < LANES; lane++) total += sum[lane];
    return total;
}

/* Numbers of scratch memory that either function needs. */
int64_t scratch_size(int64_t queries, int64_t keys, int64_t width) {
    int64_t forward = rounded(keys) * (2 * width + FORWARD_ROWS) + FORWARD_ROWS * 2 * width;
    int64_t backward = rounded(keys) * 4 * width + queries * (3 * width + 1) + 2 * QUERIES * KEYS + 2 * KEYS * width;
    return (forward > backward ? forward : backward) + 64;
}

/* `sums` (heads, queries): the logarithm of the sum of each query's exponentials. */
void attention_forward(side query, side key, side value, side out, float *sums, shape of, float *scratch) {
    int64_t width = of.width, padded = rounded(of.keys), offset = of.keys - of.queries;
    float *values = scratch, *turned = values + padded * width, *scores = turned + padded * width;
    float *rows = scores + FORWARD_ROWS * padded, *result = rows + FORWARD_ROWS * width;
    for (int64_t head = 0; head < of.heads; head++) {
        int64_t shared = head / of.groups;
        if (head % of.groups == 0) {
            gather(key, shared, of.keys, padded, width, of.scale, values);
            turn(values, padded, width, turned);
            gather(value, shared, of.keys, padded, width, 1, values);
        }
        for (int64_t start = 0; start < of.queries; start += FORWARD_ROWS) {
            int64_t count = least(FORWARD_ROWS, of.queries - start);
            int64_t seen = rounded(of.causal ? least(of.keys, start + count + offset) : of.keys);
            side block = {query.first + start * query.token, query.token, query.head};
            gather(block, head, count, count, width, 1, rows);
            multiply(count, seen, width, rows, width, 1, turned, PANEL, width * PANEL, scores, padded, 0);
            for (int64_t i = 0; i < count; i++) {
                int64_t own = of.causal ? least(of.keys, start + i + offset + 1) : of.keys;
                float most, total = exponentials(scores + i * padded, own, seen, &most);
                sums[head * of.queries + start + i] = most + logf(total);
                for (int64_t d = 0; d < width; d++) rows[i * width + d] = 1 / total;
            }
            multiply(count, width, seen, scores, padded, 1, values, width, PANEL, result, width, 0);
            for (int64_t i = 0; i < count * width; i += LANES) store(result + i, load(result + i) * load(rows + i));
            scatter(result, out, head, start, count, width);
        }
    }
}

/* Gradients of query, key and value; keys that several heads share get the sum over these. */
void attention_backward(side gradient, side query, side key, side value, side out, const float *sums, side to_query,
                        side to_key, side to_value, shape of, float *scratch) {
    int64_t width = of.width, padded = rounded(of.keys), offset = of.keys - of.queries;
    float *keys = scratch, *turned_keys = keys + padded * width, *values = turned_keys + padded * width;
    float *turned_values = values + padded * width, *rows = turned_values + padded * width;
    float *outputs = rows + of.queries * width, *totals = outputs + of.queries * width;
    float *deltas = totals + of.queries * width, *shares = deltas + of.queries;
    float *scores = shares + QUERIES * KEYS, *key_sums = scores + QUERIES * KEYS, *value_sums = key_sums + KEYS * width;
    for (int64_t head = 0; head < of.heads; head++) {
        int64_t shared = head / of.groups, adds = head % of.groups;
        if (!adds) {
            gather(key, shared, of.keys, padded, width, 1, keys);
            turn(keys, padded, width, turned_keys);
            gather(key, shared, of.keys, padded, width, of.scale, keys);
            gather(value, shared, of.keys, padded, width, 1, values);
            turn(values, padded, width, turned_values);
        }
        gather(query, head, of.queries, of.queries, width, of.scale, rows);
        gather(gradient, head, of.queries, of.queries, width, 1, outputs);
        for (int64_t i = 0; i < of.queries; i++) {
            const float *seen = out.first + i * out.token + head * out.head;
            float delta = 0;
            for (int64_t d = 0; d < width; d++) delta += seen[d] * outputs[i * width + d];
            deltas[i] = delta;
        }
        memset(totals, 0, (size_t)(of.queries * width) * sizeof(float));
        for (int64_t left = 0; left < padded; left += KEYS) {
            int64_t across = least(KEYS, padded - left);
            memset(key_sums, 0, (size_t)(KEYS * width) * sizeof(float));
            memset(value_sums, 0, (size_t)(KEYS * width) * sizeof(float));
            for (int64_t start = 0; start < of.queries; start += QUERIES) {
                int64_t count = least(QUERIES, of.queries - start);
                if (of.causal && left > start + count - 1 + offset) continue;
                multiply(count, across, width, rows + start * width, width, 1, turned_keys + left * width, PANEL,
                         width * PANEL, shares, KEYS, 0);
                multiply(count, across, width, outputs + start * width, width, 1, turned_values + left * width, PANEL,
                         width * PANEL, scores, KEYS, 0);
                for (int64_t i = 0; i < count; i++) {
                    float *share = shares + i * KEYS, *score = scores + i * KEYS;
                    int64_t own = of.causal ? least(of.keys, start + i + offset + 1) : of.keys;
                    vec sum = all(sums[head * of.queries + start + i]), delta = all(deltas[start + i]);
                    for (int64_t j = own > left ? own - left : 0; j < across; j++) share[j] = -INFINITY;
                    for (int64_t j = 0; j < across; j += LANES) {
                        vec part = exponential(load(share + j) - sum);
                        store(share + j, part);
                        store(score + j, part * (load(score + j) - delta));
                    }
                }
                multiply(across, width, count, shares, 1, KEYS, outputs + start * width, width, PANEL, value_sums,
                         width, 1);
                multiply(across, width, count, scores, 1, KEYS, rows + start * width, width, PANEL, key_sums, width, 1);
                multiply(count, width, across, scores, KEYS, 1, keys + left * width, width, PANEL,
                         totals + start * width, width, 1);
            }
            for (int64_t i = 0; i < least(across, of.keys - left); i++) {
                float *first = to_key.first + (left + i) * to_key.token + shared * to_key.head;
                float *second = to_value.first + (left + i) * to_value.token + shared * to_value.head;
                for (int64_t d = 0; d < width; d++) {
                    first[d] = (adds ? first[d] : 0) + key_sums[i * width + d];
                    second[d] = (adds ? second[d] : 0) + value_sums[i * width + d];
                }
            }
        }
        scatter(totals, to_query, head, 0, of.queries, width);
    }
}

/* Neighbouring rows of a batch that share a prompt: its keys (heads, width, tokens) and values (heads, tokens, width). */
typedef struct {
    const float *keys, *values;
    int64_t tokens, start, rows;
} prompt;

/* The keys or values that each row has of its own, (rows, heads, columns, width), and the steps between them. */
typedef struct {
    const float *first;
    int64_t row, head, column;
} cache;

int64_t step_scratch_size(int64_t queries, int64_t tokens, int64_t columns, int64_t width) {
    return queries * (2 * width + rounded(tokens + columns) + PANEL);
}

/* C (rows, columns) = A (rows, depth) B (depth, columns): the last panel begins where it ends with the columns. */
static void multiply_any(int64_t rows, int64_t columns, int64_t depth, const float *a, int64_t row, const float *b,
                         int64_t down, float *c, int64_t across) {
    int64_t whole = columns / PANEL * PANEL, last = columns - PANEL;
    multiply(rows, whole, depth, a, row, 1, b, down, PANEL, c, across, 0);
    if (whole < columns && last >= 0)
        multiply(rows, PANEL, depth, a, row, 1, b + last, down, PANEL, c + last, across, 0);
    else if (whole < columns)
        for (int64_t i = 0; i < rows; i++)
            for (int64_t j = 0; j < columns; j++) {
                float sum = 0;
                for (int64_t k = 0; k < depth; k++) sum += a[i * row + k] * b[k * down + j];
                c[i * across + j] = sum;
            }
}

/* One query of each row and head: over the row's prompt, then over its own `of.keys` columns. `visible` (rows, columns),
   or null: all. `out` (rows, heads, width). */
void attention_step(const prompt *prompts, int64_t count, side query, cache key, cache value, const uint8_t *visible,
                    float *out, shape of, float *scratch) {
    int64_t width = of.width, columns = of.keys;
    for (const prompt *own = prompts; own < prompts + count; own++) {
        int64_t tokens = own->tokens, seen = tokens + columns, padded = rounded(seen), queries = own->rows * of.groups;
        float *rows = scratch, *result = rows + queries * width, *scores = result + queries * width;
        for (int64_t shared = 0; shared < of.heads / of.groups; shared++) {
            for (int64_t i = 0; i < queries; i++) {
                const float *from = query.first + (own->start + i / of.groups) * query.token +
                                    (shared * of.groups + i % of.groups) * query.head;
                for (int64_t d = 0; d < width; d += LANES)
                    store(rows + i * width + d, load(from + d) * all(of.scale));
            }
            multiply_any(queries, tokens, width, rows, width, own->keys + shared * width * tokens, tokens, scores,
                         padded);
            for (int64_t i = 0; i < queries; i++) {
                int64_t row = own->start + i / of.groups;
                const float *keys = key.first + row * key.row + shared * key.head;
                float *score = scores + i * padded + tokens;
                for (int64_t j = 0; j < columns; j++) {
                    vec sum = all(0), second = all(0);
                    for (int64_t d = 0; d < width; d += PANEL) {
                        const float *left = rows + i * width + d, *right = keys + j * key.column + d;
                        sum += load(left) * load(right);
                        second += load(left + LANES) * load(right + LANES);
                    }
                    sum += second;
                    score[j] = (sum[0] + sum[4]) + (sum[1] + sum[5]) + ((sum[2] + sum[6]) + (sum[3] + sum[7]));
                    if (visible && !visible[row * columns + j]) score[j] = -INFINITY;
                }
            }
            for (int64_t i = 0; i < queries; i++) {
                float most, total = exponentials(scores + i * padded, seen, padded, &most);
                rows[i * width] = 1 / total;
            }
            multiply(queries, width, tokens, scores, padded, 1, own->values + shared * tokens * width, width, PANEL,
                     result, width, 0);
            for (int64_t i = 0; i < queries; i++) {
                int64_t row = own->start + i / of.groups, head = shared * of.groups + i % of.groups;
                const float *values = value.first + row * value.row + shared * value.head;
                const float *share = scores + i * padded + tokens;
                multiply(1, width, columns, share, 0, 1, values, value.column, PANEL, result + i * width, width, 1);
                for (int64_t d = 0; d < width; d += LANES)
                    store(out + (row * of.heads + head) * width + d,
                          load(result + i * width + d) * all(rows[i * width]));
            }
        }
    }
}
