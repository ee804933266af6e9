#include "columns.h"

#include <assert.h>
#include <string.h>

#include "bytes.h"

enum {
    USABLE = PAGES_BYTES - PAGES_RESERVED,
    TABLE_LEAF = 13,
    INDEX_LEAF = 10,
    PAGE_HEADER_BYTES = 8,
    CELLS_AT = 3, /* in the header of a page, big-endian */
    TABLE_PAYLOAD_MAX = USABLE - 35,
    INDEX_PAYLOAD_MAX = (USABLE - 12) * 64 / 255 - 23, /* more goes to other pages */
    COLUMNS_MAX = 16,
    CELL_BYTES_MAX = USABLE + 32,
    NUMBER_BYTES_MAX = 10,
};

/* What comes one behind the other; then three for each column. */
enum {
    HEADS,   /* a byte for each page, IS_RAW or IS_LEAF; of a leaf its header as well */
    RAWS,    /* pages that are not taken apart */
    PLACES,  /* of cells: how far before the cell before it each ends */
    ROW_IDS, /* differences */
    RECORDS, /* the headers of records, as they are */
    RESTS,   /* bytes of leaves in no cell */
    FIXED,
    SECTIONS = FIXED + 3 * COLUMNS_MAX,
};

enum { IS_RAW, IS_LEAF };

/* Of a column: what its numbers are written as; what its blobs are. */
enum { IS_DELTA = 1, IS_PAIRS = 2, IS_WORDS = 4 };

enum { HEAD_BYTES = COLUMNS_MAX + 2 * SECTIONS };

static_assert(COLUMNS_BYTES_MAX <= UINT16_MAX, "the size of a section has 2 bytes");

static int numbers_of(int column)
{
    return FIXED + 3 * column;
}

static int blobs_of(int column)
{
    return FIXED + 3 * column + 1; /* or the first numbers of their pairs, or words */
}

static int seconds_of(int column)
{
    return FIXED + 3 * column + 2;
}

/* --- numbers ------------------------------------------------------------------------------- */

static uint16_t big16(const uint8_t *at)
{
    return (uint16_t)(at[0] << 8 | at[1]);
}

/* SQLite's: up to 9 bytes, big-endian. Returns their number; 0: the end comes first. */
static size_t read_varint(const uint8_t *at, const uint8_t *end, uint64_t *value)
{
    *value = 0;
    for (size_t i = 0; i < 9 && at + i < end; i++) {
        if (i == 8) {
            *value = *value << 8 | at[i];
            return 9;
        }
        *value = *value << 7 | (at[i] & 0x7f);
        if (at[i] < 0x80)
            return i + 1;
    }
    return 0;
}

static size_t write_varint(uint8_t *at, uint64_t value)
{
    uint8_t digits[9];
    size_t count = 0;

    if (value >> 56) {
        at[8] = (uint8_t)value;
        value >>= 8;
        for (int i = 7; i >= 0; i--, value >>= 7)
            at[i] = (uint8_t)(value | 0x80);
        return 9;
    }
    do {
        digits[count++] = (uint8_t)(value & 0x7f);
        value >>= 7;
    } while (value);
    for (size_t i = 0; i < count; i++)
        at[i] = (uint8_t)(digits[count - 1 - i] | (i + 1 < count ? 0x80 : 0));
    return count;
}

static uint64_t folded(uint64_t value)
{
    return value << 1 ^ (value >> 63 ? UINT64_MAX : 0);
}

static uint64_t unfolded(uint64_t value)
{
    return value >> 1 ^ (value & 1 ? UINT64_MAX : 0);
}

/* Ours: little-endian, 7 bits a byte. */
static size_t encode(uint8_t at[NUMBER_BYTES_MAX], uint64_t value)
{
    size_t count = 0;

    for (; value >= 0x80; value >>= 7)
        at[count++] = (uint8_t)(value | 0x80);
    at[count++] = (uint8_t)value;
    return count;
}

/* --- records ------------------------------------------------------------------------------- */

struct value {
    int column;
    bool is_number; /* else bytes */
    size_t size;
};

struct record {
    size_t header_bytes;
    size_t body_bytes;
    size_t count; /* of values that have bytes */
    struct value values[COLUMNS_MAX];
};

static bool read_type(uint64_t type, int column, struct record *record)
{
    static const uint8_t sizes[] = {0, 1, 2, 3, 4, 6, 8, 8, 0, 0};

    if (type == 10 || type == 11 || type > 2 * USABLE + 13)
        return false;
    size_t size = type < 10 ? sizes[type] : (size_t)(type - 12) / 2;
    if (size > 0)
        record->values[record->count++] = (struct value){column, type < 10, size};
    record->body_bytes += size;
    return true;
}

static bool read_record(const uint8_t *at, const uint8_t *end, struct record *record)
{
    uint64_t header_bytes, type;
    size_t used = read_varint(at, end, &header_bytes);

    *record = (struct record){.header_bytes = (size_t)header_bytes};
    if (used == 0 || header_bytes < used || header_bytes > (uint64_t)(end - at))
        return false;
    const uint8_t *header_end = at + header_bytes;
    at += used;
    for (int column = 0; at < header_end; column++) {
        used = read_varint(at, header_end, &type);
        if (used == 0 || column == COLUMNS_MAX || !read_type(type, column, record))
            return false;
        at += used;
    }
    return record->body_bytes <= USABLE;
}

static uint64_t read_big(const uint8_t *at, size_t size)
{
    uint64_t value = at[0] & 0x80 ? UINT64_MAX : 0;

    for (size_t i = 0; i < size; i++)
        value = value << 8 | at[i];
    return value;
}

static void write_big(uint8_t *at, size_t size, uint64_t value)
{
    for (size_t i = size; i > 0; i--, value >>= 8)
        at[i - 1] = (uint8_t)value;
}

struct cell {
    uint64_t row_id; /* of a table */
    const uint8_t *header;
    const uint8_t *body;
    size_t bytes; /* of the cell */
    struct record record;
};

static bool read_cell(const uint8_t *page, size_t at, struct cell *cell)
{
    const uint8_t *end = page + USABLE, *from = page + at;
    bool is_table = page[0] == TABLE_LEAF;
    uint64_t payload;
    size_t used = read_varint(from, end, &payload);

    if (used == 0 || payload > (is_table ? TABLE_PAYLOAD_MAX : INDEX_PAYLOAD_MAX))
        return false;
    cell->header = from + used;
    if (is_table) {
        used = read_varint(cell->header, end, &cell->row_id);
        cell->header += used;
    }
    if (used == 0 || payload > (uint64_t)(end - cell->header))
        return false;
    if (!read_record(cell->header, cell->header + payload, &cell->record))
        return false;
    cell->body = cell->header + cell->record.header_bytes;
    cell->bytes = (size_t)(cell->header - from) + (size_t)payload;
    return cell->record.header_bytes + cell->record.body_bytes == payload;
}

static size_t cells_of(const uint8_t *page)
{
    return big16(page + CELLS_AT);
}

static size_t pointers_end(const uint8_t *page)
{
    return PAGE_HEADER_BYTES + 2 * cells_of(page);
}

static bool is_regular(const uint8_t *page)
{
    struct cell cell;

    if ((page[0] != TABLE_LEAF && page[0] != INDEX_LEAF) || pointers_end(page) > USABLE)
        return false;
    for (size_t i = 0; i < cells_of(page); i++) {
        size_t at = big16(page + PAGE_HEADER_BYTES + 2 * i);
        if (at < pointers_end(page) || at >= USABLE || !read_cell(page, at, &cell))
            return false;
    }
    return true;
}

/* --- splitting ----------------------------------------------------------------------------- */

struct splitter {
    uint8_t *out; /* NULL: sizes are counted */
    size_t sizes[SECTIONS];
    size_t starts[SECTIONS];
    size_t delta_sizes[COLUMNS_MAX]; /* of its numbers as differences; sizes has them as they are */
    size_t pair_sizes[COLUMNS_MAX];  /* of its blobs as pairs of numbers */
    size_t word_sizes[COLUMNS_MAX];  /* as words */
    uint8_t unfit[COLUMNS_MAX];      /* flags that do not suit some of its blobs */
    uint8_t flags[COLUMNS_MAX];
    uint64_t numbers[COLUMNS_MAX]; /* the last one of the column */
    uint32_t firsts[COLUMNS_MAX];  /* the last one of its pairs */
    uint64_t row_id;
};

static void put(struct splitter *to, int section, const uint8_t *bytes, size_t size)
{
    if (to->out)
        memcpy(to->out + to->starts[section] + to->sizes[section], bytes, size);
    to->sizes[section] += size;
}

static void put_number(struct splitter *to, int section, uint64_t value)
{
    uint8_t bytes[NUMBER_BYTES_MAX];

    put(to, section, bytes, encode(bytes, folded(value)));
}

static void split_number(struct splitter *to, int column, uint64_t value)
{
    uint8_t bytes[NUMBER_BYTES_MAX];
    uint64_t difference = value - to->numbers[column];

    to->delta_sizes[column] += encode(bytes, folded(difference));
    put_number(to, numbers_of(column), to->flags[column] & IS_DELTA ? difference : value);
    to->numbers[column] = value;
}

/* One of 4 bytes: the beginning of a digest, and an index has those in order. */
static void split_word(struct splitter *to, int column, const uint8_t *blob)
{
    uint8_t bytes[NUMBER_BYTES_MAX];
    uint32_t word = (uint32_t)read_big(blob, 4);
    uint64_t difference = (uint64_t)word - to->firsts[column];

    to->firsts[column] = word;
    to->word_sizes[column] += encode(bytes, folded(difference));
    if (to->flags[column] & IS_WORDS)
        put_number(to, blobs_of(column), difference);
}

static void split_pairs(struct splitter *to, int column, const uint8_t *blob, size_t size)
{
    uint8_t bytes[NUMBER_BYTES_MAX];

    for (size_t at = 0; at + 8 <= size; at += 8) {
        uint64_t difference = (uint64_t)load32(blob + at) - to->firsts[column];
        uint32_t second = load32(blob + at + 4);
        to->firsts[column] = load32(blob + at);
        to->pair_sizes[column] += encode(bytes, folded(difference)) + encode(bytes, folded(second));
        if (to->flags[column] & IS_PAIRS) {
            put_number(to, blobs_of(column), difference);
            put_number(to, seconds_of(column), second);
        }
    }
}

static void split_blob(struct splitter *to, int column, const uint8_t *blob, size_t size)
{
    if (!(to->flags[column] & (IS_PAIRS | IS_WORDS)))
        put(to, blobs_of(column), blob, size);
    to->unfit[column] |= size == 4 ? IS_PAIRS : IS_WORDS;
    if (size % 8 != 0)
        to->unfit[column] |= IS_PAIRS;
    if (size == 4)
        split_word(to, column, blob);
    else
        split_pairs(to, column, blob, size);
}

static void split_cell(struct splitter *to, const struct cell *cell)
{
    const uint8_t *at = cell->body;

    put(to, RECORDS, cell->header, cell->record.header_bytes);
    for (size_t i = 0; i < cell->record.count; i++) {
        const struct value *value = &cell->record.values[i];
        if (value->is_number)
            split_number(to, value->column, read_big(at, value->size));
        else
            split_blob(to, value->column, at, value->size);
        at += value->size;
    }
}

static void split_page(struct splitter *to, const uint8_t *page)
{
    uint8_t is_covered[USABLE] = {0};
    const uint8_t kind = is_regular(page) ? IS_LEAF : IS_RAW;
    size_t end = USABLE;
    struct cell cell;

    put(to, HEADS, &kind, 1);
    if (kind == IS_RAW) {
        put(to, RAWS, page, USABLE);
        return;
    }
    put(to, HEADS, page, PAGE_HEADER_BYTES);
    for (size_t i = 0; i < cells_of(page); i++) {
        size_t at = big16(page + PAGE_HEADER_BYTES + 2 * i);
        read_cell(page, at, &cell);
        if (page[0] == TABLE_LEAF) {
            put_number(to, ROW_IDS, cell.row_id - to->row_id);
            to->row_id = cell.row_id;
        }
        put_number(to, PLACES, (uint64_t)end - (at + cell.bytes));
        split_cell(to, &cell);
        memset(is_covered + at, 1, cell.bytes);
        end = at;
    }
    for (size_t at = pointers_end(page); at < USABLE; at++) {
        if (!is_covered[at])
            put(to, RESTS, page + at, 1);
    }
}

/*
 * By the sizes that were counted. Differences have to be shorter by an eighth: of a column that
 * others are differences of, the same bytes come twice when it is written as it is.
 */
static void choose(struct splitter *to)
{
    for (int column = 0; column < COLUMNS_MAX; column++) {
        size_t blobs = to->sizes[blobs_of(column)], numbers = to->sizes[numbers_of(column)];
        if (to->delta_sizes[column] < numbers - numbers / 8)
            to->flags[column] |= IS_DELTA;
        if (!(to->unfit[column] & IS_PAIRS) && to->pair_sizes[column] < blobs)
            to->flags[column] |= IS_PAIRS;
        if (!(to->unfit[column] & IS_WORDS) && to->word_sizes[column] < blobs)
            to->flags[column] |= IS_WORDS;
    }
}

static void split_pages(struct splitter *to, const uint8_t *group)
{
    memset(to->sizes, 0, sizeof to->sizes);
    memset(to->numbers, 0, sizeof to->numbers);
    memset(to->firsts, 0, sizeof to->firsts);
    to->row_id = 0;
    for (size_t i = 0; i < COLUMNS_PAGES; i++)
        split_page(to, group + i * PAGES_BYTES);
}

size_t columns_split(const uint8_t group[COLUMNS_GROUP_BYTES], uint8_t columns[COLUMNS_BYTES_MAX])
{
    struct splitter to = {0};
    size_t total = HEAD_BYTES;

    split_pages(&to, group);
    choose(&to);
    split_pages(&to, group);
    for (int section = 0; section < SECTIONS; section++) {
        to.starts[section] = total;
        total += to.sizes[section];
    }
    if (total > COLUMNS_BYTES_MAX)
        return 0;
    memcpy(columns, to.flags, COLUMNS_MAX);
    for (int section = 0; section < SECTIONS; section++)
        store16(columns + COLUMNS_MAX + 2 * section, (uint16_t)to.sizes[section]);
    to.out = columns;
    split_pages(&to, group);
    return total;
}

/* --- joining ------------------------------------------------------------------------------- */

struct joiner {
    const uint8_t *at[SECTIONS];
    const uint8_t *end[SECTIONS];
    const uint8_t *flags;
    uint64_t numbers[COLUMNS_MAX];
    uint32_t firsts[COLUMNS_MAX];
    uint64_t row_id;
    bool failed; /* a section ended too soon: what was taken from it is zeros */
};

static const uint8_t *take(struct joiner *from, int section, size_t size)
{
    static const uint8_t zeros[CELL_BYTES_MAX];
    const uint8_t *bytes = from->at[section];

    assert(size <= sizeof zeros);
    if ((size_t)(from->end[section] - bytes) < size) {
        from->failed = true;
        return zeros;
    }
    from->at[section] += size;
    return bytes;
}

static uint64_t take_number(struct joiner *from, int section)
{
    uint64_t value = 0;

    for (unsigned shift = 0; shift < 7 * NUMBER_BYTES_MAX; shift += 7) {
        uint8_t byte = *take(from, section, 1);
        value |= (uint64_t)(byte & 0x7f) << shift;
        if (byte < 0x80)
            return unfolded(value);
    }
    from->failed = true;
    return 0;
}

static void join_number(struct joiner *from, int column, uint8_t *into, size_t size)
{
    uint64_t value = take_number(from, numbers_of(column));

    if (from->flags[column] & IS_DELTA)
        value += from->numbers[column];
    from->numbers[column] = value;
    write_big(into, size, value);
}

static void join_blob(struct joiner *from, int column, uint8_t *into, size_t size)
{
    if (!(from->flags[column] & (IS_PAIRS | IS_WORDS))) {
        memcpy(into, take(from, blobs_of(column), size), size);
        return;
    }
    if (from->flags[column] & IS_WORDS) {
        from->failed |= size != 4;
        from->firsts[column] += (uint32_t)take_number(from, blobs_of(column));
        write_big(into, size, from->firsts[column]);
        return;
    }
    from->failed |= size % 8 != 0;
    for (size_t at = 0; at + 8 <= size; at += 8) {
        from->firsts[column] += (uint32_t)take_number(from, blobs_of(column));
        store32(into + at, from->firsts[column]);
        store32(into + at + 4, (uint32_t)take_number(from, seconds_of(column)));
    }
}

/* Bytes of the cell; 0: there is none. */
static size_t join_cell(struct joiner *from, bool is_table, uint8_t cell[CELL_BYTES_MAX])
{
    struct record record;

    if (!read_record(from->at[RECORDS], from->end[RECORDS], &record) ||
        record.header_bytes + record.body_bytes > USABLE)
        return 0;
    size_t used = write_varint(cell, record.header_bytes + record.body_bytes);
    if (is_table) {
        from->row_id += take_number(from, ROW_IDS);
        used += write_varint(cell + used, from->row_id);
    }
    memcpy(cell + used, take(from, RECORDS, record.header_bytes), record.header_bytes);
    used += record.header_bytes;
    for (size_t i = 0; i < record.count; i++) {
        const struct value *value = &record.values[i];
        if (value->is_number)
            join_number(from, value->column, cell + used, value->size);
        else
            join_blob(from, value->column, cell + used, value->size);
        used += value->size;
    }
    return used;
}

static bool join_leaf(struct joiner *from, uint8_t *page)
{
    uint8_t is_covered[USABLE] = {0};
    uint8_t cell[CELL_BYTES_MAX];
    uint64_t end = USABLE;

    memcpy(page, take(from, HEADS, PAGE_HEADER_BYTES), PAGE_HEADER_BYTES);
    if (pointers_end(page) > USABLE)
        return false;
    for (size_t i = 0; i < cells_of(page); i++) {
        size_t size = join_cell(from, page[0] == TABLE_LEAF, cell);
        uint64_t at = end - take_number(from, PLACES) - size;
        if (size == 0 || size > USABLE || at < pointers_end(page) || at > USABLE - size)
            return false;
        memcpy(page + at, cell, size);
        memset(is_covered + at, 1, size);
        write_big(page + PAGE_HEADER_BYTES + 2 * i, 2, at);
        end = at;
    }
    for (size_t at = pointers_end(page); at < USABLE; at++) {
        if (!is_covered[at])
            page[at] = *take(from, RESTS, 1);
    }
    return !from->failed;
}

static bool join_page(struct joiner *from, uint8_t *page)
{
    if (*take(from, HEADS, 1) == IS_LEAF)
        return join_leaf(from, page);
    memcpy(page, take(from, RAWS, USABLE), USABLE);
    return !from->failed;
}

bool columns_join(const uint8_t *columns, size_t size, uint8_t group[COLUMNS_GROUP_BYTES])
{
    struct joiner from = {.flags = columns};

    if (size < HEAD_BYTES)
        return false;
    size_t start = HEAD_BYTES;
    for (int section = 0; section < SECTIONS; section++) {
        size_t bytes = load16(columns + COLUMNS_MAX + 2 * section);
        if (bytes > size - start)
            return false;
        from.at[section] = columns + start;
        start += bytes;
        from.end[section] = columns + start;
    }
    memset(group, 0, COLUMNS_GROUP_BYTES);
    for (size_t i = 0; i < COLUMNS_PAGES; i++) {
        if (!join_page(&from, group + i * PAGES_BYTES))
            return false;
    }
    return true;
}
