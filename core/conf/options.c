/* SPDX-License-Identifier: Apache-2.0
 *
 * Option tables: checking, parsing, lookups. Used by core and, compiled into
 * libhvxtest, by the fake host.
 */
#include "core/conf/options.h"

#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define OPTION_MAX_VALUE 4096u /* bytes of one value's text */
#define OPTION_MAX_COUNT 256u  /* entries of one table */

struct value {
    bool has;   /* a value is there: given or the default */
    bool given; /* by a person */
    int64_t number;
    char *text; /* owned; STRING and ENUM */
};

struct hvx_config {
    const struct hvx_option *table;
    unsigned n;
    struct value *values;
};

static const struct hvx_option no_options[1] = {{.name = NULL}};

static unsigned table_count(const struct hvx_option *table)
{
    unsigned n = 0;
    while (table[n].name)
        n++;
    return n;
}

const char *hvx_option_type_name(uint32_t type)
{
    switch (type) {
    case HVX_OPT_BOOL: return "bool";
    case HVX_OPT_INT: return "int";
    case HVX_OPT_SIZE: return "size";
    case HVX_OPT_STRING: return "string";
    case HVX_OPT_ENUM: return "enum";
    }
    return "unknown";
}

void hvx_format_size(int64_t bytes, char *buf, size_t n)
{
    static const char suffix[] = "\0KMGT";
    unsigned i = 0;
    while (bytes != 0 && bytes % 1024 == 0 && i < 4) {
        bytes /= 1024;
        i++;
    }
    snprintf(buf, n, "%" PRId64 "%.1s", bytes, suffix + i);
}

static int parse_int(const char *text, int64_t *out, char **end)
{
    if (*text == '\0' || *text == ' ')
        return -EINVAL;
    errno = 0;
    /* Octal is nobody's intention: base 16 after 0x, else 10. */
    const char *digits = text + (*text == '-' || *text == '+');
    int base = !strncasecmp(digits, "0x", 2) ? 16 : 10;
    long long v = strtoll(text, end, base);
    if (*end == text || errno == ERANGE)
        return errno == ERANGE ? -ERANGE : -EINVAL;
    *out = v;
    return 0;
}

int hvx_parse_size(const char *text, int64_t *out)
{
    char *end;
    int64_t v;
    int r = parse_int(text, &v, &end);
    if (r < 0)
        return r;
    static const char suffixes[] = "KMGT";
    if (*end) {
        const char *s = strchr(suffixes, *end >= 'a' ? *end - 32 : *end);
        if (!s || !*s)
            return -EINVAL;
        end++;
        if (!strcmp(end, "iB") || !strcmp(end, "B"))
            end += strlen(end);
        if (*end)
            return -EINVAL;
        if (__builtin_mul_overflow(v, (int64_t)1 << (10 * (s - suffixes + 1)), &v))
            return -ERANGE;
    }
    *out = v;
    return 0;
}

static bool choice_is_valid(const char *choices, const char *value)
{
    size_t n = strlen(value);
    for (const char *p = choices; p; p = strchr(p, '|') ? strchr(p, '|') + 1 : NULL)
        if (!strncmp(p, value, n) && (p[n] == '|' || p[n] == '\0') && n)
            return true;
    return false;
}

static int parse_bool(const char *value, int64_t *out)
{
    static const char *const yes[] = {"yes", "on", "true", "1"}, *const no[] = {"no", "off", "false", "0"};
    for (unsigned i = 0; i < 4; i++) {
        if (!strcasecmp(value, yes[i]) || !strcasecmp(value, no[i])) {
            *out = !strcasecmp(value, yes[i]);
            return 0;
        }
    }
    return -EINVAL;
}

static int range_error(const struct hvx_option *o, const char *value, const char *where, struct hvx_error *err)
{
    char lo[32], hi[32];
    if (o->type == HVX_OPT_SIZE) {
        hvx_format_size(o->min, lo, sizeof(lo));
        hvx_format_size(o->max, hi, sizeof(hi));
    } else {
        snprintf(lo, sizeof(lo), "%" PRId64, o->min);
        snprintf(hi, sizeof(hi), "%" PRId64, o->max);
    }
    return hvx_fail(err, -ERANGE, "%s: %s=%.80s is out of range; give %s to %s", where, o->name, value, lo, hi);
}

/* Parse one value; *text is newly allocated for STRING and ENUM. */
static int parse_value(const struct hvx_option *o, const char *value, const char *where, int64_t *number, char **text,
                       struct hvx_error *err)
{
    int64_t v = 0;
    char *end = NULL, *copy = NULL;
    int r = 0;
    if (strlen(value) > OPTION_MAX_VALUE)
        return hvx_fail(err, -E2BIG, "%s: the value of %s is longer than %u bytes", where, o->name, OPTION_MAX_VALUE);
    switch (o->type) {
    case HVX_OPT_BOOL:
        if (parse_bool(value, &v) < 0)
            return hvx_fail(err, -EINVAL, "%s: %s=%.80s is not a yes or no; give yes, no, on, off, true or false",
                            where, o->name, value);
        break;
    case HVX_OPT_INT:
        r = parse_int(value, &v, &end);
        if (r == -EINVAL || (r == 0 && *end))
            return hvx_fail(err, -EINVAL, "%s: %s=%.80s is not a whole number", where, o->name, value);
        break;
    case HVX_OPT_SIZE:
        r = hvx_parse_size(value, &v);
        if (r == -EINVAL || (r == 0 && v < 0 && o->min >= 0))
            return hvx_fail(err, -EINVAL, "%s: %s=%.80s is not a size; give bytes, or a number with K, M, G or T",
                            where, o->name, value);
        break;
    case HVX_OPT_ENUM:
        if (!choice_is_valid(o->choices, value))
            return hvx_fail(err, -EINVAL, "%s: %s=%.80s is not known; give one of %s", where, o->name, value,
                            o->choices);
        /* fall through */
    case HVX_OPT_STRING:
        copy = strdup(value);
        if (!copy)
            return hvx_fail(err, -ENOMEM, "%s: out of memory", where);
        break;
    default:
        return hvx_fail(err, -EINVAL, "%s: option %s has the unknown type %u", where, o->name, o->type);
    }
    if ((o->type == HVX_OPT_INT || o->type == HVX_OPT_SIZE) &&
        (r == -ERANGE || ((o->min || o->max) && (v < o->min || v > o->max))))
        return o->min || o->max ? range_error(o, value, where, err)
                                : hvx_fail(err, -ERANGE, "%s: %s=%.80s does not fit 64 bits", where, o->name, value);
    *number = v;
    *text = copy;
    return 0;
}

int hvx_options_check(const struct hvx_option *table, const char *what, struct hvx_error *err)
{
    for (unsigned i = 0; table && table[i].name; i++) {
        const struct hvx_option *o = &table[i];
        if (i >= OPTION_MAX_COUNT)
            return hvx_fail(err, -EINVAL, "%s: its option table has more than %u entries; is the NULL name that ends "
                            "it missing?", what, OPTION_MAX_COUNT);
        if (!*o->name || strpbrk(o->name, "=, \t\n{}()+\"'#"))
            return hvx_fail(err, -EINVAL, "%s: option %u has the unusable name '%.40s'", what, i, o->name);
        if (o->type < HVX_OPT_BOOL || o->type > HVX_OPT_ENUM)
            return hvx_fail(err, -EINVAL, "%s: option %s has the unknown type %u", what, o->name, o->type);
        if (o->type == HVX_OPT_ENUM && (!o->choices || !*o->choices))
            return hvx_fail(err, -EINVAL, "%s: option %s is an enum without choices", what, o->name);
        if (o->min > o->max)
            return hvx_fail(err, -EINVAL, "%s: option %s has its minimum above its maximum", what, o->name);
        for (unsigned k = 0; k < i; k++)
            if (!strcmp(table[k].name, o->name))
                return hvx_fail(err, -EINVAL, "%s: option %s is declared twice", what, o->name);
        if (o->def) {
            int64_t number;
            char *text = NULL, where[160];
            snprintf(where, sizeof(where), "%.100s: default of an option", what);
            int r = parse_value(o, o->def, where, &number, &text, err);
            free(text);
            if (r < 0)
                return r;
        }
    }
    return 0;
}

int hvx_config_new(const struct hvx_option *table, struct hvx_config **out)
{
    struct hvx_config *c = calloc(1, sizeof(*c));
    if (!c)
        return -ENOMEM;
    c->table = table ? table : no_options;
    c->n = table_count(c->table);
    c->values = calloc(c->n + 1, sizeof(*c->values));
    int r = c->values ? 0 : -ENOMEM;
    for (unsigned i = 0; r == 0 && i < c->n; i++) {
        if (!c->table[i].def)
            continue;
        r = parse_value(&c->table[i], c->table[i].def, "default", &c->values[i].number, &c->values[i].text, NULL);
        c->values[i].has = r == 0;
    }
    if (r < 0) {
        hvx_config_destroy(c);
        return r;
    }
    *out = c;
    return 0;
}

void hvx_config_destroy(struct hvx_config *c)
{
    if (!c)
        return;
    for (unsigned i = 0; c->values && i < c->n; i++)
        free(c->values[i].text);
    free(c->values);
    free(c);
}

const struct hvx_option *hvx_config_table(const struct hvx_config *c)
{
    return c->table;
}

static int find(const struct hvx_config *c, const char *name)
{
    for (unsigned i = 0; i < c->n; i++)
        if (!strcmp(c->table[i].name, name))
            return (int)i;
    return -1;
}

static int unknown_option(const struct hvx_config *c, const char *name, const char *where, struct hvx_error *err)
{
    char known[300] = "";
    for (unsigned i = 0; i < c->n; i++) {
        size_t used = strlen(known);
        snprintf(known + used, sizeof(known) - used, "%s%s", i ? ", " : "", c->table[i].name);
    }
    if (!c->n)
        return hvx_fail(err, -ENOENT, "%s: there is no option '%.60s'; it has no options at all", where, name);
    return hvx_fail(err, -ENOENT, "%s: there is no option '%.60s'; there are: %s", where, name, known);
}

static int set_value(struct hvx_config *c, const char *name, const char *value, const char *where, bool dry_run,
                     struct hvx_error *err)
{
    int i = find(c, name);
    if (i < 0)
        return unknown_option(c, name, where, err);
    if (!value) {
        if (c->table[i].type != HVX_OPT_BOOL)
            return hvx_fail(err, -EINVAL, "%s: option %s needs a value: %s=...", where, name, name);
        value = "yes";
    }
    int64_t number;
    char *text = NULL;
    int r = parse_value(&c->table[i], value, where, &number, &text, err);
    if (r < 0)
        return r;
    if (dry_run) {
        free(text);
        return 0;
    }
    struct value *v = &c->values[i];
    free(v->text);
    *v = (struct value){.has = true, .given = true, .number = number, .text = text};
    return 0;
}

int hvx_config_set(struct hvx_config *c, const char *name, const char *value, const char *where, struct hvx_error *err)
{
    return set_value(c, name, value, where, false, err);
}

/* Cut the next item off *text into buf, undoing doubled commas. */
static bool next_item(const char **text, char *buf)
{
    const char *p = *text;
    if (!*p)
        return false;
    for (; *p; p++) {
        if (*p == ',') {
            if (p[1] != ',')
                break;
            p++;
        }
        *buf++ = *p;
    }
    *buf = '\0';
    *text = *p ? p + 1 : p;
    return true;
}

static int parse_list(struct hvx_config *c, const char *text, char *buf, const char *where, bool dry_run,
                      struct hvx_error *err)
{
    while (next_item(&text, buf)) {
        if (!*buf)
            return hvx_fail(err, -EINVAL, "%s: nothing between two commas; a comma in a value is doubled", where);
        char *value = strchr(buf, '=');
        if (value)
            *value++ = '\0';
        int r = set_value(c, buf, value, where, dry_run, err);
        if (r < 0)
            return r;
    }
    return 0;
}

int hvx_config_parse(struct hvx_config *c, const char *text, const char *where, struct hvx_error *err)
{
    if (!text || !*text)
        return 0;
    char *buf = malloc(strlen(text) + 1);
    if (!buf)
        return hvx_fail(err, -ENOMEM, "%s: out of memory", where);
    /* All or nothing: one round to check, one to set. */
    int r = parse_list(c, text, buf, where, true, err);
    if (r == 0)
        r = parse_list(c, text, buf, where, false, err);
    free(buf);
    return r;
}

int hvx_config_check(const struct hvx_config *c, const char *where, struct hvx_error *err)
{
    for (unsigned i = 0; i < c->n; i++)
        if ((c->table[i].flags & HVX_OPTF_REQUIRED) && !c->values[i].has)
            return hvx_fail(err, -EINVAL, "%s: option %s (%s) is required", where, c->table[i].name,
                            c->table[i].help ? c->table[i].help : hvx_option_type_name(c->table[i].type));
    return 0;
}

static const struct value *lookup(const struct hvx_config *c, const char *name, uint32_t type1, uint32_t type2)
{
    int i = find(c, name);
    assert(i >= 0 && "a plugin asked for an option that its table does not declare");
    assert((!type1 || c->table[i].type == type1 || c->table[i].type == type2) && "option asked for by the wrong type");
    (void)type1;
    (void)type2;
    return &c->values[i];
}

bool hvx_config_bool(const struct hvx_config *c, const char *name)
{
    return lookup(c, name, HVX_OPT_BOOL, HVX_OPT_BOOL)->number != 0;
}

int64_t hvx_config_int(const struct hvx_config *c, const char *name)
{
    return lookup(c, name, HVX_OPT_INT, HVX_OPT_SIZE)->number;
}

const char *hvx_config_string(const struct hvx_config *c, const char *name)
{
    return lookup(c, name, HVX_OPT_STRING, HVX_OPT_ENUM)->text;
}

bool hvx_config_is_set(const struct hvx_config *c, const char *name)
{
    return lookup(c, name, 0, 0)->given;
}
