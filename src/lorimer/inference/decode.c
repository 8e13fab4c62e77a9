/* A whole step of few rows, from their embeddings to their last hidden states, in one call: what kernels.c has, and products.
 *
 * Threads stay awake between the parts of a step and meet at barriers of a fraction of a microsecond; called one by one from Python, the 250
 * calls of a step cost as much as a fifth of it. Products read the panels that oneDNN packs weights into, so nothing is held twice. Needs
 * AVX-512 with its bfloat16 products; without them can_decode() says no. compiled_decoder.py lays out what is read here.
 */
#include "kernels.c"

#include <sched.h>

enum { PANEL = 64, TILE = 32, MAX_ROWS = 64, LINE = 16, PHASES = 9 }; /* columns of a panel; pairs of inputs at once; rows; integers of a cache line; times that threads meet in a layer */

typedef struct {
    const uint16_t *w;    /* (out / PANEL, in / 2, PANEL, 2) */
    const uint16_t *bias; /* (out), or null */
    int64_t in, out;
} Product;

typedef struct {
    Product qkv, out, gate_up, down;
    Group qkv_group, out_group, gate_up_group, down_group;
    const float *after_attention, *before_mlp, *after_mlp, *next; /* gains; the first and third may be null */
    float after_attention_eps, before_mlp_eps, after_mlp_eps, next_eps;
    Attention attention; /* what is the same in every step */
    int64_t turning;     /* which of a step's cos and sin */
    int64_t is_silu;
} Layer;

typedef struct {
    const Layer *layers;
    const Adapted *adapted; /* or null */
    const int32_t *first_parts; /* (rows + 1): where each row's parts begin */
    const OpenMP *omp;
    const int32_t *tables, *lens;
    const void *cos[4], *sin[4]; /* by kind of turning */
    uint16_t *hidden, *x, *qkv, *mixed, *gate_up, *middle, *y; /* (rows, ..) */
    float *scores;
    int64_t *places;
    int32_t *counters; /* (phases, 2, LINE): the next piece of work, and the threads that have none left */
    int64_t num_layers, num_rows, width, max_blocks, max_len, num_threads;
} Step;

#if defined(__AVX512BF16__) && defined(__AVX512F__)

int can_decode(void) { return 1; }

/* sums (R, PANEL) += x (R, in) w for a tile of a panel, the columns of R rows in registers; `lines` of what lies ahead are fetched for each pair */
INLINE void add_tile(const int R, const uint16_t *x, int64_t stride, const uint16_t *w, int64_t num_pairs, const char *ahead, const int lines, float *sums) {
    __m512 s[6][4];
    for (int r = 0; r < R; r++)
        for (int j = 0; j < 4; j++) s[r][j] = _mm512_loadu_ps(sums + r * PANEL + j * LANES);
    for (int64_t k = 0; k < num_pairs; k++) {
        __m512bh own[4];
        for (int j = 0; j < lines; j++) _mm_prefetch(ahead + 64 * (k * lines + j), _MM_HINT_T0);
        for (int j = 0; j < 4; j++) own[j] = (__m512bh)_mm512_loadu_si512(w + 2 * (k * PANEL + j * LANES));
        for (int r = 0; r < R; r++) {
            int32_t pair;
            memcpy(&pair, x + r * stride + 2 * k, 4);
            __m512bh both = (__m512bh)_mm512_set1_epi32(pair);
            for (int j = 0; j < 4; j++) s[r][j] = _mm512_dpbf16_ps(s[r][j], both, own[j]);
        }
    }
    for (int r = 0; r < R; r++)
        for (int j = 0; j < 4; j++) _mm512_storeu_ps(sums + r * PANEL + j * LANES, s[r][j]);
}

/* A tile through all rows, six at most at once. Each pass fetches its share of the next tile, or memory would rest while processors count. */
INLINE void add_all_rows(const int lines, int64_t rows, const uint16_t *x, int64_t stride, const uint16_t *w, int64_t num_pairs, float *sums) {
    int64_t num_passes = (rows + 5) / 6;
    for (int64_t pass = 0, row = 0; pass < num_passes; pass++) {
        int64_t own = (rows - row + num_passes - pass - 1) / (num_passes - pass);
        const uint16_t *from = x + row * stride;
        const char *ahead = (const char *)(w + 2 * PANEL * num_pairs) + pass * lines * 64 * num_pairs;
        float *to = sums + row * PANEL;
        switch (own) {
        case 1: add_tile(1, from, stride, w, num_pairs, ahead, lines, to); break;
        case 2: add_tile(2, from, stride, w, num_pairs, ahead, lines, to); break;
        case 3: add_tile(3, from, stride, w, num_pairs, ahead, lines, to); break;
        case 4: add_tile(4, from, stride, w, num_pairs, ahead, lines, to); break;
        case 5: add_tile(5, from, stride, w, num_pairs, ahead, lines, to); break;
        default: add_tile(6, from, stride, w, num_pairs, ahead, lines, to);
        }
        row += own;
    }
}

/* One panel of y (rows, out) = x (rows, in) w, a tile of the weights at a time through all rows: memory is read once, the cache again. */
static void multiply_panel(const Product *p, int64_t panel, const uint16_t *x, uint16_t *y, int64_t rows) {
    float sums[MAX_ROWS * PANEL];
    memset(sums, 0, rows * PANEL * sizeof *sums);
    for (int64_t k = 0, pairs = p->in / 2; k < pairs; k += TILE) {
        const uint16_t *w = p->w + (panel * pairs + k) * 2 * PANEL;
        int64_t num_pairs = pairs - k < TILE ? pairs - k : TILE;
        if (rows <= 6) add_all_rows(4, rows, x + 2 * k, p->in, w, num_pairs, sums);
        else if (rows <= 18) add_all_rows(2, rows, x + 2 * k, p->in, w, num_pairs, sums);
        else add_all_rows(1, rows, x + 2 * k, p->in, w, num_pairs, sums);
    }
    for (int64_t row = 0; row < rows; row++)
        for (int64_t j = 0, n = panel * PANEL; j < PANEL; j++)
            y[row * p->out + n + j] = narrow(sums[row * PANEL + j] + (p->bias ? widen(p->bias[n + j]) : 0));
}

typedef struct {
    const Step *step;
    int32_t *counter;
    int num_threads;
} Worker;

INLINE int64_t take(Worker *w) { return __atomic_fetch_add(w->counter, 1, __ATOMIC_RELAXED); }

/* Wait for the others; what comes next has counters of its own. */
static void meet(Worker *w) {
    int32_t *arrived = w->counter + LINE;
    w->counter += 2 * LINE;
    if (__atomic_add_fetch(arrived, 1, __ATOMIC_ACQ_REL) == w->num_threads) return;
    for (int64_t spins = 0; __atomic_load_n(arrived, __ATOMIC_ACQUIRE) < w->num_threads; spins++)
        if (spins < 20000) _mm_pause();
        else sched_yield(); /* another process has our processor's sibling: let it end sooner */
}

/* y = x w, and what the adapters' a make of x beside it */
static void multiply(Worker *w, const Product *p, const Group *g, const uint16_t *x, uint16_t *y) {
    const Step *s = w->step;
    int64_t num_shrunk = s->adapted ? s->num_rows : 0, num_panels = p->out / PANEL;
    for (int64_t i; (i = take(w)) < num_shrunk + num_panels;) {
        if (i >= num_shrunk) {
            multiply_panel(p, i - num_shrunk, x, y, s->num_rows);
            continue;
        }
        for (int64_t layer = 0; layer < g->num_layers; layer++)
            shrink(s->adapted, g, layer, s->first_parts[i], s->first_parts[i + 1], x + i * p->in, 1);
    }
    meet(w);
}

INLINE void expand_row(const Step *s, const Group *g, int64_t row, uint16_t *y) {
    for (int64_t layer = 0; s->adapted && layer < g->num_layers; y += g->out[layer++])
        expand(s->adapted, g, layer, s->first_parts[row], s->first_parts[row + 1], y, 1);
}

static void decode_layer(Worker *w, const Layer *l, float *scores, int64_t *places) {
    const Step *s = w->step;
    int64_t n = s->width, wide = l->qkv.out, middle = l->down.in;
    Attention a = l->attention;
    a.query.x = s->qkv, a.key.x = s->qkv + a.num_heads * a.head_dim, a.value.x = s->qkv + (a.num_heads + a.num_groups) * a.head_dim;
    a.query.stride = a.key.stride = a.value.stride = wide;
    a.cos = s->cos[l->turning], a.sin = s->sin[l->turning], a.tables = s->tables, a.lens = s->lens, a.y = s->mixed;
    a.num_rows = s->num_rows, a.max_blocks = s->max_blocks, a.max_len = s->max_len;

    multiply(w, &l->qkv, &l->qkv_group, s->x, s->qkv);
    for (int64_t row; (row = take(w)) < s->num_rows;) {
        expand_row(s, &l->qkv_group, row, s->qkv + row * wide);
        keep_row(&a, row, 1);
    }
    meet(w); /* a row may attend to another of its sequence */
    for (int64_t row; (row = take(w)) < s->num_rows;) attend_row(&a, row, scores, places, 1);
    meet(w);
    multiply(w, &l->out, &l->out_group, s->mixed, s->y);
    for (int64_t row; (row = take(w)) < s->num_rows;) {
        expand_row(s, &l->out_group, row, s->y + row * n);
        add_and_norm_row(s->hidden + row * n, s->y + row * n, l->after_attention, l->after_attention_eps, l->before_mlp, l->before_mlp_eps, s->x + row * n, n, 1);
    }
    meet(w);
    multiply(w, &l->gate_up, &l->gate_up_group, s->x, s->gate_up);
    for (int64_t row; (row = take(w)) < s->num_rows;) {
        uint16_t *both = s->gate_up + row * 2 * middle;
        expand_row(s, &l->gate_up_group, row, both);
        if (l->is_silu) gate_row(both, both + middle, s->middle + row * middle, middle, 1, 1);
        else gate_row(both, both + middle, s->middle + row * middle, middle, 0, 1);
    }
    meet(w);
    multiply(w, &l->down, &l->down_group, s->middle, s->y);
    for (int64_t row; (row = take(w)) < s->num_rows;) {
        expand_row(s, &l->down_group, row, s->y + row * n);
        add_and_norm_row(s->hidden + row * n, s->y + row * n, l->after_mlp, l->after_mlp_eps, l->next, l->next_eps, s->x + row * n, n, 1);
    }
    meet(w);
}

static void decode_in_thread(void *data) {
    const Step *s = (const Step *)data;
    int thread = s->num_threads > 1 ? s->omp->thread_num() : 0;
    Worker w = {s, s->counters, s->num_threads > 1 ? s->omp->num_threads() : 1};
    for (int64_t i = 0; i < s->num_layers; i++) decode_layer(&w, s->layers + i, s->scores + thread * HEADS * s->max_len, s->places + thread * s->max_len);
}

/* hidden (rows, width), and x, its norm, become those after the last layer. */
void decode(Step *s) {
    memset(s->counters, 0, s->num_layers * PHASES * 2 * LINE * sizeof *s->counters);
    if (s->num_threads > 1) s->omp->parallel(decode_in_thread, s, (unsigned)s->num_threads, 0);
    else decode_in_thread(s);
}

typedef struct {
    const Product *product;
    const OpenMP *omp;
    const uint16_t *x;
    uint16_t *y;
    int64_t num_rows, num_threads, next;
} Single;

static void multiply_in_thread(void *data) {
    Single *s = (Single *)data;
    int64_t num_panels = s->product->out / PANEL, own = num_panels / (8 * s->num_threads) + 1;
    if (own > 8) own = 8;
    for (int64_t first; (first = __atomic_fetch_add(&s->next, own, __ATOMIC_RELAXED)) < num_panels;)
        for (int64_t panel = first; panel < first + own && panel < num_panels; panel++) multiply_panel(s->product, panel, s->x, s->y, s->num_rows);
}

/* One product alone: x (rows, in) -> y (rows, out). */
void multiply_alone(Single *s) {
    s->next = 0;
    if (s->num_threads > 1) s->omp->parallel(multiply_in_thread, s, (unsigned)s->num_threads, 0);
    else multiply_in_thread(s);
}

#else

int can_decode(void) { return 0; }
void decode(Step *s) { (void)s; }
void multiply_alone(void *s) { (void)s; }

#endif
