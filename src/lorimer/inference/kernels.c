/* What torch has no call for, or only one that costs more than the work: adapters for a few rows, norms, attention over blocks.
 *
 * Every row is computed by the same operations in the same order whatever else is in the batch and however many threads there are, so a row
 * of a mixed batch is bit for bit the row alone. Threads are those that torch has (GOMP_parallel, handed over by the caller): a second pool
 * would fight them for the same processors. Tensors are bfloat16 or float32, sums float32. kernels.py compiles and calls this.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512BF16__) && defined(__AVX512F__)
#include <immintrin.h>
#endif

typedef struct {
    void (*parallel)(void (*)(void *), void *, unsigned, unsigned);
    int (*thread_num)(void);
    int (*num_threads)(void);
} OpenMP;

enum { BLOCK = 128 };

#define INLINE static inline __attribute__((always_inline))

INLINE float widen(uint16_t x) {
    uint32_t bits = (uint32_t)x << 16;
    float wide;
    memcpy(&wide, &bits, 4);
    return wide;
}

INLINE uint16_t narrow(float x) { /* to nearest, ties to even, as torch does it; what is not a number stays so */
    uint32_t bits;
    memcpy(&bits, &x, 4);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return (uint16_t)((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);
}

INLINE float read_at(const void *x, int64_t i, int is_bf16) {
    return is_bf16 ? widen(((const uint16_t *)x)[i]) : ((const float *)x)[i];
}

INLINE void write_at(void *y, int64_t i, float value, int is_bf16) {
    if (is_bf16) ((uint16_t *)y)[i] = narrow(value);
    else ((float *)y)[i] = value;
}

typedef float Floats __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));
enum { LANES = 16 };

INLINE Floats load(const void *x, int64_t i, int is_bf16) {
    Floats wide;
    if (is_bf16) {
        Halves half;
        memcpy(&half, (const uint16_t *)x + i, sizeof half);
        Words bits = __builtin_convertvector(half, Words) << 16;
        memcpy(&wide, &bits, sizeof wide);
    } else memcpy(&wide, (const float *)x + i, sizeof wide);
    return wide;
}

INLINE const void *at(const void *x, int64_t i, int is_bf16) { return (const char *)x + i * (is_bf16 ? 2 : 4); }

/* ---- adapters: y[row] += scale (x[row] a^T) b for the layers that read the same input ---------------------------------------------- */

typedef struct {
    const void *a; /* (rank, in); null where the adapter leaves the layer alone */
    const void *b; /* (out / BLOCK, rank, BLOCK), the last block filled up */
    int32_t rank;
    float scale;
} Weights;

typedef struct {
    const Weights *weights; /* of one adapter, by layer */
    int32_t row;
    float scale;
} Part; /* one adapter of one row; the parts of a row stand together */

typedef struct {
    const Part *parts;
    int64_t num_parts, max_rank, is_bf16, num_threads;
    float *low; /* (layers of a group, parts, max_rank), to work in */
} Adapted;

typedef struct {
    int64_t first_layer, num_layers, in;
    int64_t out[4];
} Group;

typedef struct {
    const Adapted *adapted;
    const Group *group;
    const OpenMP *omp;
    const void *x; /* (rows, in) */
    int64_t x_stride;
    void *y[4]; /* by layer (rows, out) */
    int64_t y_stride[4];
    int64_t next;
} Call;

INLINE float sum_of(Floats x) {
    float sum = 0;
    for (int j = 0; j < 4; j++) sum += (x[j] + x[j + 4]) + (x[j + 8] + x[j + 12]);
    return sum;
}

INLINE float dot(const void *x, const void *a, int64_t n, int is_bf16) {
    int64_t i = 0;
    float sum = 0;
    Floats sums[4] = {0};
#if defined(__AVX512BF16__) && defined(__AVX512F__)
    __m512 pairs[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()};
    const uint16_t *one = (const uint16_t *)x, *other = (const uint16_t *)a;
    for (; is_bf16 && i + 128 <= n; i += 128)
        for (int j = 0; j < 4; j++)
            pairs[j] = _mm512_dpbf16_ps(pairs[j], (__m512bh)_mm512_loadu_si512(one + i + 32 * j), (__m512bh)_mm512_loadu_si512(other + i + 32 * j));
    sum = _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(pairs[0], pairs[1]), _mm512_add_ps(pairs[2], pairs[3])));
    if (i == n) return sum;
#endif
    for (; i + 4 * LANES <= n; i += 4 * LANES)
        for (int j = 0; j < 4; j++) sums[j] += load(x, i + LANES * j, is_bf16) * load(a, i + LANES * j, is_bf16);
    for (; i < n; i++) sum += read_at(x, i, is_bf16) * read_at(a, i, is_bf16);
    return sum + sum_of((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

/* Where a layer's share of what a part's `a` makes of its row is kept. */
INLINE float *low_of(const Adapted *d, int64_t layer, int64_t part) { return d->low + (layer * d->num_parts + part) * d->max_rank; }

/* low = scale x a^T for the parts from `begin` to `end`, all of the row x, in one layer */
INLINE void shrink(const Adapted *d, const Group *g, int64_t layer, int64_t begin, int64_t end, const void *x, int is_bf16) {
    for (int64_t i = begin; i < end; i++) {
        const Weights *w = d->parts[i].weights + g->first_layer + layer;
        float *low = low_of(d, layer, i), scale = w->scale * d->parts[i].scale;
        for (int64_t r = 0; w->a && r < w->rank; r++) low[r] = scale * dot(x, at(w->a, r * g->in, is_bf16), g->in, is_bf16);
    }
}

/* y += low b for the parts from `begin` to `end`, all of the row y, in one layer */
INLINE void expand(const Adapted *d, const Group *g, int64_t layer, int64_t begin, int64_t end, void *y, int is_bf16) {
    int64_t out = g->out[layer], is_changed = 0;
    for (int64_t i = begin; i < end; i++) is_changed |= d->parts[i].weights[g->first_layer + layer].a != 0;
    for (int64_t first = 0; is_changed && first < out; first += BLOCK) {
        Floats sums[BLOCK / LANES] = {0};
        for (int64_t i = begin; i < end; i++) {
            const Weights *w = d->parts[i].weights + g->first_layer + layer;
            const void *b = at(w->b, first * w->rank, is_bf16);
            const float *low = low_of(d, layer, i);
            for (int64_t r = 0; w->a && r < w->rank; r++)
                for (int j = 0; j < BLOCK / LANES; j++) sums[j] += low[r] * load(b, r * BLOCK + j * LANES, is_bf16);
        }
        float change[BLOCK];
        memcpy(change, sums, sizeof change);
        void *own = (void *)at(y, first, is_bf16);
        for (int64_t i = 0, n = out - first < BLOCK ? out - first : BLOCK; i < n; i++)
            write_at(own, i, read_at(own, i, is_bf16) + change[i], is_bf16);
    }
}

INLINE void add_row(const Call *c, int64_t begin, int64_t end, int is_bf16) {
    const Adapted *d = c->adapted;
    int64_t row = d->parts[begin].row;
    for (int64_t layer = 0; layer < c->group->num_layers; layer++) {
        shrink(d, c->group, layer, begin, end, at(c->x, row * c->x_stride, is_bf16), is_bf16);
        expand(d, c->group, layer, begin, end, (void *)at(c->y[layer], row * c->y_stride[layer], is_bf16), is_bf16);
    }
}

/* Row after row, whichever is next: a thread that is held up by others' work holds up no more than its own row. */
static void add_rows(Call *c) {
    const Adapted *d = c->adapted;
    int64_t wanted = __atomic_fetch_add(&c->next, 1, __ATOMIC_RELAXED);
    for (int64_t at_row = 0, begin = 0, end; begin < d->num_parts; at_row++, begin = end) {
        for (end = begin + 1; end < d->num_parts && d->parts[end].row == d->parts[begin].row;) end++;
        if (at_row != wanted) continue;
        if (d->is_bf16) add_row(c, begin, end, 1);
        else add_row(c, begin, end, 0);
        wanted = __atomic_fetch_add(&c->next, 1, __ATOMIC_RELAXED);
    }
}

static void add_in_thread(void *data) { add_rows((Call *)data); }

void add_adapters(Call *c) {
    c->next = 0;
    if (c->adapted->num_threads > 1) c->omp->parallel(add_in_thread, c, (unsigned)c->adapted->num_threads, 0);
    else add_rows(c);
}

/* ---- norms: y = x / rms(x) gain ----------------------------------------------------------------------------------------------------- */

INLINE void norm_row(const void *x, const float *gain, void *y, int64_t n, float eps, int is_bf16) {
    float sum = 0;
    Floats squares[4] = {0};
    int64_t i = 0;
    for (; i + 4 * LANES <= n; i += 4 * LANES)
        for (int j = 0; j < 4; j++) squares[j] += load(x, i + LANES * j, is_bf16) * load(x, i + LANES * j, is_bf16);
    for (; i < n; i++) sum += read_at(x, i, is_bf16) * read_at(x, i, is_bf16);
    sum += sum_of((squares[0] + squares[1]) + (squares[2] + squares[3]));
    float inverse = 1.0f / sqrtf(sum / n + eps);
    for (i = 0; i < n; i++) write_at(y, i, read_at(x, i, is_bf16) * inverse * gain[i], is_bf16);
}

/* x (rows, heads, n), the last two contiguous within a row -> y, contiguous */
void rms_norm(const void *x, int64_t row_stride, const float *gain, void *y, int64_t num_rows, int64_t num_heads, int64_t n, float eps, int is_bf16) {
    for (int64_t row = 0; row < num_rows; row++)
        for (int64_t head = 0; head < num_heads; head++) {
            int64_t from = row * row_stride + head * n, to = (row * num_heads + head) * n;
            if (is_bf16) norm_row(at(x, from, 1), gain, (void *)at(y, to, 1), n, eps, 1);
            else norm_row(at(x, from, 0), gain, (void *)at(y, to, 0), n, eps, 0);
        }
}

/* exp as in the Cephes library (Moshier): 2^n times a polynomial, to 2 units in the last place; below -87 it is next to nothing */
INLINE float exp_of(float x) {
    x = x < -87.0f ? -87.0f : x;
    float n = (x * 1.44269504f + 12582912.0f) - 12582912.0f, f = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = ((((1.9875691500e-4f * f + 1.3981999507e-3f) * f + 8.3334519073e-3f) * f + 4.1665795894e-2f) * f + 1.6666665459e-1f) * f + 5.0000001201e-1f;
    int32_t bits = ((int32_t)n + 127) << 23;
    float power;
    memcpy(&power, &bits, 4);
    return (p * f * f + f + 1.0f) * power;
}

/* ---- between two products ----------------------------------------------------------------------------------------------------------- */

INLINE void add_and_norm_row(void *hidden, const void *mixed, const float *mixed_gain, float mixed_eps, const float *gain, float eps, void *y, int64_t n, int is_bf16) {
    if (mixed_gain) norm_row(mixed, mixed_gain, y, n, mixed_eps, is_bf16), mixed = y;
    for (int64_t i = 0; i < n; i++) write_at(hidden, i, read_at(hidden, i, is_bf16) + read_at(mixed, i, is_bf16), is_bf16);
    norm_row(hidden, gain, y, n, eps, is_bf16);
}

/* hidden += mixed, or its norm where there is a gain for it; y = the norm of that. All (rows, n), contiguous. */
void add_and_norm(void *hidden, const void *mixed, const float *mixed_gain, float mixed_eps, const float *gain, float eps, void *y, int64_t num_rows, int64_t n, int is_bf16) {
    for (int64_t row = 0; row < num_rows; row++) {
        void *h = (void *)at(hidden, row * n, is_bf16), *out = (void *)at(y, row * n, is_bf16);
        const void *m = at(mixed, row * n, is_bf16);
        if (is_bf16) add_and_norm_row(h, m, mixed_gain, mixed_eps, gain, eps, out, n, 1);
        else add_and_norm_row(h, m, mixed_gain, mixed_eps, gain, eps, out, n, 0);
    }
}

/* gelu in its tanh form is x / (1 + exp(-2 u)), u = sqrt(2 / pi) (x + 0.044715 x^3) (Hendrycks and Gimpel 2016, arXiv:1606.08415) */
INLINE float activate(float x, int is_silu) {
    float exponent = is_silu ? -x : -1.5957691216f * (x + 0.044715f * x * x * x);
    return x / (1.0f + exp_of(exponent > 87.0f ? 87.0f : exponent));
}

INLINE void gate_row(const void *gate, const void *up, void *y, int64_t n, int is_silu, int is_bf16) {
    for (int64_t i = 0; i < n; i++) write_at(y, i, activate(read_at(gate, i, is_bf16), is_silu), is_bf16);
    for (int64_t i = 0; i < n; i++) write_at(y, i, read_at(y, i, is_bf16) * read_at(up, i, is_bf16), is_bf16);
}

/* y = activation(gate) up, rounded between both as torch does; gate and up (rows, n), contiguous but for their rows */
void gate(const void *gate, const void *up, int64_t row_stride, void *y, int64_t num_rows, int64_t n, int is_silu, int is_bf16) {
    for (int64_t row = 0; row < num_rows; row++) {
        int64_t from = row * row_stride;
        if (is_bf16) gate_row(at(gate, from, 1), at(up, from, 1), (void *)at(y, row * n, 1), n, is_silu, 1);
        else gate_row(at(gate, from, 0), at(up, from, 0), (void *)at(y, row * n, 0), n, is_silu, 0);
    }
}

/* ---- attention of a few tokens, a row each, over their sequences' blocks ---------------------------------------------------------------- */

typedef struct {
    const void *x; /* (rows, heads, head_dim), the last two contiguous within a row */
    int64_t stride;
    const float *gain; /* of a norm over each head, or null */
    float eps;
} Heads;

typedef struct {
    Heads query, key, value;
    const void *cos, *sin;         /* (rows, num_turned), the first half of sin negated */
    void *keys, *values;           /* pools (groups, blocks, block_len, head_dim) */
    const int32_t *tables, *lens;  /* (rows, max_blocks) the blocks of each row's sequence; (rows) its tokens, up to the row's own */
    void *y;                       /* (rows, heads, head_dim) */
    float *scores;                 /* (threads, HEADS, max_len), to work in */
    int64_t *places;               /* (threads, max_len) */
    const OpenMP *omp;
    int64_t num_rows, num_heads, num_groups, head_dim, num_turned, group_stride, block_len, max_blocks, window, max_len, num_threads, is_bf16;
    float scaling, softcap;
    int32_t next;
} Attention;

enum { MAX_HEAD_DIM = 512, HEADS = 4 }; /* heads of a group that read its keys and values together */

/* A head of a row, normed and turned to its place (Su et al. 2021, arXiv:2104.09864). */
INLINE void prepare_head(const Attention *c, const Heads *heads, int64_t row, int64_t head, void *out, int is_bf16) {
    float normed[MAX_HEAD_DIM];
    int64_t n = c->head_dim, half = c->num_turned / 2;
    const void *x = at(heads->x, row * heads->stride + head * n, is_bf16);
    if (heads->gain) norm_row(x, heads->gain, out, n, heads->eps, is_bf16), x = out;
    for (int64_t i = 0; i < n; i++) normed[i] = read_at(x, i, is_bf16);
    const void *cosine = at(c->cos, row * c->num_turned, is_bf16), *sine = at(c->sin, row * c->num_turned, is_bf16);
    for (int64_t i = 0; i < half; i++) {
        write_at(out, i, normed[i] * read_at(cosine, i, is_bf16) + normed[i + half] * read_at(sine, i, is_bf16), is_bf16);
        write_at(out, i + half, normed[i + half] * read_at(cosine, i + half, is_bf16) + normed[i] * read_at(sine, i + half, is_bf16), is_bf16);
    }
    for (int64_t i = c->num_turned; i < n; i++) write_at(out, i, normed[i], is_bf16);
}

/* scores of R heads, n numbers each, with a token's key; `stride` apart */
INLINE void score_heads(const int R, const void *queries, const void *key, int64_t n, float *scores, int64_t stride, int is_bf16) {
#if defined(__AVX512BF16__) && defined(__AVX512F__)
    if (is_bf16 && n % 32 == 0) {
        __m512 sums[HEADS];
        for (int r = 0; r < R; r++) sums[r] = _mm512_setzero_ps();
        for (int64_t i = 0; i < n; i += 32) {
            __m512bh own = (__m512bh)_mm512_loadu_si512((const uint16_t *)key + i);
            for (int r = 0; r < R; r++) sums[r] = _mm512_dpbf16_ps(sums[r], (__m512bh)_mm512_loadu_si512((const uint16_t *)queries + r * n + i), own);
        }
        for (int r = 0; r < R; r++) scores[r * stride] = _mm512_reduce_add_ps(sums[r]);
        return;
    }
#endif
    for (int r = 0; r < R; r++) scores[r * stride] = dot(at(queries, r * n, is_bf16), key, n, is_bf16);
}

/* mixed (R, n) = sums of score[t] value[t] over a sequence's tokens, a few numbers of a head at a time, so that they stay in registers */
INLINE void mix_values(const int R, const void *values, const int64_t *places, const float *scores, int64_t stride, int64_t first, int64_t len, int64_t n, float *mixed, int is_bf16) {
    int64_t i = 0;
    for (; i + 4 * LANES <= n; i += 4 * LANES) {
        Floats sums[HEADS][4] = {0};
        for (int64_t t = first; t < len; t++)
            for (int j = 0; j < 4; j++) {
                Floats own = load(values, places[t] + i + j * LANES, is_bf16);
                for (int r = 0; r < R; r++) sums[r][j] += scores[r * stride + t] * own;
            }
        for (int r = 0; r < R; r++) memcpy(mixed + r * n + i, sums[r], sizeof sums[r]);
    }
    for (; i < n; i++)
        for (int r = 0; r < R; r++) {
            float sum = 0;
            for (int64_t t = first; t < len; t++) sum += scores[r * stride + t] * read_at(values, places[t] + i, is_bf16);
            mixed[r * n + i] = sum;
        }
}

/* R heads from `head` on, of one group, over the tokens of a row from `first` on */
INLINE void attend_heads(const int R, const Attention *c, int64_t row, int64_t head, const void *keys, const void *values, int64_t first, float *scores, const int64_t *places, int is_bf16) {
    int64_t n = c->head_dim, len = c->lens[row], stride = c->max_len;
    float queries[HEADS * MAX_HEAD_DIM], mixed[HEADS * MAX_HEAD_DIM];
    for (int r = 0; r < R; r++) prepare_head(c, &c->query, row, head + r, (void *)at(queries, r * n, is_bf16), is_bf16);
    for (int64_t t = first; t < len; t++) score_heads(R, queries, at(keys, places[t], is_bf16), n, scores + t, stride, is_bf16);
    for (int r = 0; r < R; r++) {
        float *own = scores + r * stride, max = -INFINITY, sum = 0;
        for (int64_t t = first; t < len; t++) own[t] *= c->scaling;
        for (int64_t t = first; c->softcap && t < len; t++) own[t] = c->softcap * tanhf(own[t] / c->softcap);
        for (int64_t t = first; t < len; t++) max = own[t] > max ? own[t] : max;
        for (int64_t t = first; t < len; t++) own[t] = exp_of(own[t] - max);
        for (int64_t t = first; t < len; t++) sum += own[t];
        for (int64_t t = first; t < len; t++) own[t] /= sum;
    }
    mix_values(R, values, places, scores, stride, first, len, n, mixed, is_bf16);
    for (int64_t i = 0, out = (row * c->num_heads + head) * n; i < R * n; i++) write_at(c->y, out + i, mixed[i], is_bf16);
}

INLINE int64_t place_of(const Attention *c, int64_t row, int64_t t) {
    return (c->tables[row * c->max_blocks + t / c->block_len] * c->block_len + t % c->block_len) * c->head_dim;
}

/* A row's key and value go where its sequence keeps them. */
INLINE void keep_row(const Attention *c, int64_t row, int is_bf16) {
    int64_t n = c->head_dim, place = place_of(c, row, c->lens[row] - 1);
    for (int64_t g = 0; g < c->num_groups; g++) {
        int64_t own = g * c->group_stride + place;
        prepare_head(c, &c->key, row, g, (void *)at(c->keys, own, is_bf16), is_bf16);
        memcpy((void *)at(c->values, own, is_bf16), at(c->value.x, row * c->value.stride + g * n, is_bf16), n * (is_bf16 ? 2 : 4));
    }
}

/* A row attends to its sequence up to itself; all of that has been kept. */
INLINE void attend_row(const Attention *c, int64_t row, float *scores, int64_t *places, int is_bf16) {
    int64_t num_own = c->num_heads / c->num_groups, len = c->lens[row];
    int64_t first = c->window && len > c->window ? len - c->window : 0;
    for (int64_t t = first; t < len; t++) places[t] = place_of(c, row, t);
    for (int64_t g = 0; g < c->num_groups; g++) {
        const void *keys = at(c->keys, g * c->group_stride, is_bf16), *values = at(c->values, g * c->group_stride, is_bf16);
        int64_t h = g * num_own, end = h + num_own;
        for (; h + 4 <= end; h += 4) attend_heads(4, c, row, h, keys, values, first, scores, places, is_bf16);
        for (; h + 2 <= end; h += 2) attend_heads(2, c, row, h, keys, values, first, scores, places, is_bf16);
        for (; h < end; h++) attend_heads(1, c, row, h, keys, values, first, scores, places, is_bf16);
    }
}

static void attend_some(Attention *c, int64_t thread) {
    float *scores = c->scores + thread * HEADS * c->max_len;
    int64_t *places = c->places + thread * c->max_len;
    for (int64_t row; (row = __atomic_fetch_add(&c->next, 1, __ATOMIC_RELAXED)) < c->num_rows;)
        if (c->is_bf16) attend_row(c, row, scores, places, 1);
        else attend_row(c, row, scores, places, 0);
}

static void attend_in_thread(void *data) {
    Attention *c = (Attention *)data;
    attend_some(c, c->omp->thread_num());
}

void attend(Attention *c) {
    c->next = 0;
    for (int64_t row = 0; row < c->num_rows; row++)
        if (c->is_bf16) keep_row(c, row, 1);
        else keep_row(c, row, 0);
    if (c->num_threads > 1 && c->num_rows > 1) c->omp->parallel(attend_in_thread, c, (unsigned)c->num_threads, 0);
    else attend_some(c, 0);
}

/* ---- the likeliest token ------------------------------------------------------------------------------------------------------------ */

typedef struct {
    const void *logits; /* (rows, n), contiguous */
    int64_t *best;      /* (rows) */
    const OpenMP *omp;
    int64_t num_rows, n, num_threads, is_bf16, next;
} Choice;

INLINE Floats larger(Floats a, Floats b) {
    Words is_first = (Words)(a > b);
    return (Floats)(((Words)a & is_first) | ((Words)b & ~is_first));
}

/* The place of a row's maximum, the first of equals: the block that has it, then the place in the block. */
INLINE int64_t best_of(const void *x, int64_t n, int is_bf16) {
    enum { WIDE = 512 };
    int64_t best = 0, block = 0, i = 0;
    float max = -INFINITY;
    for (; i + WIDE <= n; i += WIDE) {
        Floats most[4];
        for (int j = 0; j < 4; j++) most[j] = load(x, i + j * LANES, is_bf16);
        for (int64_t k = 4 * LANES; k < WIDE; k += 4 * LANES)
            for (int j = 0; j < 4; j++) most[j] = larger(load(x, i + k + j * LANES, is_bf16), most[j]);
        Floats all = larger(larger(most[0], most[1]), larger(most[2], most[3]));
        float found = all[0];
        for (int j = 1; j < LANES; j++) found = all[j] > found ? all[j] : found;
        if (found > max) max = found, block = i;
    }
    for (best = block; best < block + WIDE && best < n && read_at(x, best, is_bf16) != max;) best++;
    for (; i < n; i++)
        if (read_at(x, i, is_bf16) > max) max = read_at(x, i, is_bf16), best = i;
    return best < n ? best : 0;
}

static void choose_in_thread(void *data) {
    Choice *c = (Choice *)data;
    for (int64_t row; (row = __atomic_fetch_add(&c->next, 1, __ATOMIC_RELAXED)) < c->num_rows;)
        c->best[row] = c->is_bf16 ? best_of(at(c->logits, row * c->n, 1), c->n, 1) : best_of(at(c->logits, row * c->n, 0), c->n, 0);
}

void choose(Choice *c) {
    c->next = 0;
    if (c->num_threads > 1 && c->num_rows > 1) c->omp->parallel(choose_in_thread, c, (unsigned)c->num_threads, 0);
    else choose_in_thread(c);
}

/* ---- a first call of everything, for a process that may be lost --------------------------------------------------------------------- */

static int is_near(float found, float wanted) { return fabsf(found - wanted) <= 1e-2f * (1 + fabsf(wanted)); }

int try_all(void) {
    enum { IN = 160, OUT = 8 };
    for (int is_bf16 = 0; is_bf16 < 2; is_bf16++) {
        float x[IN], gain[IN], a[IN], b[BLOCK], y[OUT], normed[IN], low[1];
        for (int i = 0; i < IN; i++) write_at(x, i, 0.5f, is_bf16), write_at(a, i, 0.25f, is_bf16), gain[i] = 2;
        for (int i = 0; i < BLOCK; i++) write_at(b, i, 0.5f, is_bf16);
        for (int i = 0; i < OUT; i++) write_at(y, i, 1, is_bf16);
        Weights weights = {a, b, 1, 2};
        Part part = {&weights, 0, 1};
        Adapted adapted = {&part, 1, 1, is_bf16, 1, low};
        Group group = {0, 1, IN, {OUT}};
        Call call = {&adapted, &group, 0, x, IN, {y}, {OUT}, 0};
        add_adapters(&call);
        rms_norm(x, IN, gain, normed, 1, 1, IN, 1e-6f, is_bf16);
        float keys[IN], values[IN], turn[2] = {0}, seen[IN], scores[HEADS];
        int64_t places[1];
        int32_t table = 0, len = 1;
        Attention alone = {.query = {x, IN, 0, 0}, .key = {a, IN, 0, 0}, .value = {a, IN, 0, 0}, .cos = turn, .sin = turn, .keys = keys,
                           .values = values, .tables = &table, .lens = &len, .y = seen, .scores = scores, .places = places, .num_rows = 1, .num_heads = 1,
                           .num_groups = 1, .head_dim = IN, .group_stride = IN, .block_len = 1, .max_blocks = 1, .max_len = 1,
                           .num_threads = 1, .is_bf16 = is_bf16, .scaling = 1};
        attend(&alone);
        for (int i = 0; i < IN; i++)
            if (!is_near(read_at(seen, i, is_bf16), 0.25f)) return 3;
        for (int i = 0; i < OUT; i++)
            if (!is_near(read_at(y, i, is_bf16), 1 + 0.5f * 0.25f * IN * 2 * 0.5f)) return 1;
        for (int i = 0; i < IN; i++)
            if (!is_near(read_at(normed, i, is_bf16), 2)) return 2;
        gate(a, a, IN, seen, 1, IN, 1, is_bf16);
        for (int i = 0; i < IN; i++)
            if (!is_near(read_at(seen, i, is_bf16), 0.0351362f)) return 4;
        add_and_norm(x, a, gain, 1e-6f, gain, 1e-6f, normed, 1, IN, is_bf16);
        for (int i = 0; i < IN; i++)
            if (!is_near(read_at(x, i, is_bf16), 2.5f) || !is_near(read_at(normed, i, is_bf16), 2)) return 5;
    }
    return 0;
}
