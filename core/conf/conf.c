/* SPDX-License-Identifier: Apache-2.0
 *
 * hvx.conf through libconfuse, read twice: see conf.h.
 *
 * Every option of a section is a string for libconfuse, so that its value goes
 * through the one parser of option tables and its messages read alike for
 * hvx.conf and for the command line.
 */
#define _GNU_SOURCE
#include "core/conf/conf.h"

#include "core/conf/options.h"

#include <confuse.h>
#include <glob.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAX_LIST 128u

#ifndef HVX_PLUGIN_DIR
#define HVX_PLUGIN_DIR "/usr/local/lib/hvx/plugins"
#endif
#ifndef HVX_SYSCONFDIR
#define HVX_SYSCONFDIR "/usr/local/etc"
#endif

/* A section of the file and the options in it, as the first round learns them. */
struct learned {
    char name[64];
    unsigned n;
    char (*options)[64];
};

struct hvx_conf {
    char *path;
    struct learned sections[MAX_LIST];
    unsigned n_sections;
    char **plugins; /* NULL: not said */
    char **dirs;
};

/* libconfuse's callbacks have no pointer of the caller's: what the parse in
 * progress on this thread needs. */
static __thread struct {
    struct hvx_error *err;
    bool failed;
    const struct hvx_conf_section *sections;
    unsigned n_sections;
    char unknown[64], unknown_in[64]; /* the name that nothing has, and its section */
} parse;

/* --- messages ------------------------------------------------------------------ */
static void list_options(cfg_t *cfg, char *buf, size_t n)
{
    buf[0] = '\0';
    for (cfg_opt_t *o = cfg->opts; o && o->name; o++)
        snprintf(buf + strlen(buf), n - strlen(buf), "%s%s", *buf ? ", " : "", o->name);
}

HVX_PRINTF(2, 0)
static void on_error(cfg_t *cfg, const char *fmt, va_list ap)
{
    char what[200], known[220];
    if (parse.failed)
        return; /* the first one is the cause */
    parse.failed = true;
    vsnprintf(what, sizeof(what), fmt, ap);
    if (strncmp(what, "no such option", 14)) {
        hvx_fail(parse.err, -EINVAL, "%s:%d: %s", cfg->filename, cfg->line, what);
        return;
    }
    list_options(cfg, known, sizeof(known));
    bool root = !strcmp(cfg->name, "root");
    sscanf(what, "no such option '%63[^']", parse.unknown);
    snprintf(parse.unknown_in, sizeof(parse.unknown_in), "%s", root ? "" : cfg->name);
    const char *name = strchr(what, '\''); /* of: no such option 'x' */
    hvx_fail(parse.err, -ENOENT, "%s:%d: %s%sthere is no %s %s; there are: %s", cfg->filename, cfg->line,
             root ? "" : cfg->name, root ? "" : ": ", root ? "option or plugin" : "option", name ? name : "",
             *known ? known : "none");
}

/* --- values of a section --------------------------------------------------------------- */
static int on_value(cfg_t *cfg, cfg_opt_t *opt, const char *value, void *result)
{
    for (unsigned i = 0; i < parse.n_sections; i++) {
        const struct hvx_conf_section *s = &parse.sections[i];
        if (strcmp(s->name, cfg->name) || !s->config)
            continue;
        char where[300];
        snprintf(where, sizeof(where), "%.200s:%d: %.60s", cfg->filename, cfg->line, s->name);
        if (hvx_config_set(s->config, opt->name, value, where, parse.err) < 0) {
            parse.failed = true;
            return -1;
        }
    }
    *(const char **)result = value;
    return 0;
}

/* --- reading ------------------------------------------------------------------------------ */
static int parse_file(const struct hvx_conf *c, cfg_opt_t *opts, bool lenient, cfg_t **out,
                      struct hvx_error *err)
{
    cfg_t *cfg = cfg_init(opts, CFGF_NONE);
    if (!cfg)
        return hvx_fail(err, -ENOMEM, "reading %s: out of memory", c->path);
    cfg_set_error_function(cfg, on_error);
    struct hvx_error why = {.code = 0};
    parse.err = &why;
    parse.failed = false;
    parse.unknown[0] = '\0';
    errno = 0;
    int r = cfg_parse(cfg, c->path);
    int code = errno ? -errno : -EIO;
    parse.err = NULL;
    if (r == CFG_SUCCESS || (r == CFG_PARSE_ERROR && lenient && !parse.unknown[0])) {
        *out = cfg;
        return 0;
    }
    cfg_free(cfg);
    if (r == CFG_FILE_ERROR)
        return hvx_fail(err, code, "reading %s: %s; check --config and HVX_CONF", c->path, strerror(-code));
    return hvx_fail(err, why.code ? why.code : -EINVAL, "%s", why.code ? why.text : "hvx.conf does not parse");
}

static char **list_new(void)
{
    return calloc(MAX_LIST + 1, sizeof(char *));
}

static void list_free(char **list)
{
    for (char **p = list; p && *p; p++)
        free(*p);
    free(list);
}

static int list_add(char **list, const char *text, size_t n)
{
    unsigned i = 0;
    while (list[i])
        i++;
    if (i == MAX_LIST)
        return -E2BIG;
    list[i] = strndup(text, n);
    return list[i] ? 0 : -ENOMEM;
}

static cfg_opt_t *learned_options(const struct learned *l)
{
    cfg_opt_t *opts = calloc(l->n + 1, sizeof(*opts));
    for (unsigned i = 0; opts && i < l->n; i++)
        opts[i] = (cfg_opt_t)CFG_STR(l->options[i], NULL, CFGF_NODEFAULT);
    if (opts)
        opts[l->n] = (cfg_opt_t)CFG_END();
    return opts;
}

static int learn(struct hvx_conf *c)
{
    if (!*parse.unknown_in) {
        if (c->n_sections == MAX_LIST)
            return -E2BIG;
        snprintf(c->sections[c->n_sections++].name, sizeof(c->sections[0].name), "%s", parse.unknown);
        return 0;
    }
    for (unsigned i = 0; i < c->n_sections; i++) {
        struct learned *l = &c->sections[i];
        if (strcmp(l->name, parse.unknown_in))
            continue;
        char(*grown)[64] = l->n < MAX_LIST ? realloc(l->options, (l->n + 1) * sizeof(*grown)) : NULL;
        if (!grown)
            return -E2BIG;
        l->options = grown;
        snprintf(l->options[l->n++], sizeof(*grown), "%s", parse.unknown);
        return 0;
    }
    return -E2BIG;
}

/* The first round does not know the plugins, and so neither their sections nor
 * the options in them (libconfuse's own flags for that, IGNORE_UNKNOWN and
 * KEYSTRVAL, lose their way in sections): each time the parser meets an
 * unknown name, learn it and start again. Whatever else is wrong will be found,
 * and said better, in the second round. */
static int parse_top(struct hvx_conf *c, cfg_t **out, struct hvx_error *err)
{
    for (;;) {
        cfg_opt_t opts[MAX_LIST + 3] = {
            CFG_STR_LIST("plugins", NULL, CFGF_NODEFAULT),
            CFG_STR("plugin_dir", NULL, CFGF_NODEFAULT),
        };
        cfg_opt_t *subs[MAX_LIST];
        int r = 0;
        for (unsigned i = 0; i < c->n_sections; i++) {
            subs[i] = learned_options(&c->sections[i]);
            if (!subs[i])
                r = -ENOMEM;
            opts[i + 2] = (cfg_opt_t)CFG_SEC(c->sections[i].name, subs[i], CFGF_NODEFAULT);
        }
        unsigned n = c->n_sections;
        opts[n + 2] = (cfg_opt_t)CFG_END();
        if (r == 0)
            r = parse_file(c, opts, true, out, err);
        for (unsigned i = 0; i < n; i++)
            free(subs[i]);
        if (r == 0 || r == -ENOMEM || !parse.unknown[0] || learn(c) < 0)
            return r;
    }
}

static int read_top(struct hvx_conf *c, char **configured_dir, struct hvx_error *err)
{
    cfg_t *cfg;
    int r = parse_top(c, &cfg, err);
    if (r < 0)
        return r;
    if (cfg_opt_size(cfg_getopt(cfg, "plugins")) || cfg_getopt(cfg, "plugins")->flags & CFGF_MODIFIED) {
        c->plugins = list_new();
        r = c->plugins ? 0 : -ENOMEM;
        for (unsigned i = 0; r == 0 && i < cfg_size(cfg, "plugins"); i++) {
            const char *name = cfg_getnstr(cfg, "plugins", i);
            if (strchr(name, '/'))
                r = hvx_fail(err, -EINVAL, "%s: plugins: '%s' is a path; give names such as cpu-bt, and the folder as "
                             "plugin_dir", c->path, name);
            else
                r = list_add(c->plugins, name, strlen(name));
        }
    }
    const char *dir = cfg_size(cfg, "plugin_dir") ? cfg_getstr(cfg, "plugin_dir") : NULL;
    if (r == 0 && dir) {
        if (dir[0] != '/')
            r = hvx_fail(err, -EINVAL, "%s: plugin_dir = %s is not an absolute path", c->path, dir);
        else if (!(*configured_dir = strdup(dir)))
            r = -ENOMEM;
    }
    cfg_free(cfg);
    return r;
}

/* libconfuse takes the end of the file for the end of a section: a file that
 * was cut short would be half obeyed. Returns the line of a brace that is not
 * closed, 0 when all are. */
static int unclosed_line(FILE *f)
{
    int stack[16], depth = 0, line = 1, quote = 0;
    for (int c, last = 0; (c = getc(f)) != EOF; last = c) {
        if (c == '\n')
            line++;
        if (quote) { /* in a string, or in a comment up to a line end or a star and slash */
            if (quote == '#' ? c == '\n' : quote == '*' ? last == '*' && c == '/' : c == quote && last != '\\')
                quote = 0;
            else if (c == '\\' && last == '\\')
                c = 0;
        } else if (c == '#' || (c == '/' && last == '/')) {
            quote = '#';
        } else if (c == '*' && last == '/') {
            quote = '*';
            c = 0;
        } else if (c == '"' || c == '\'') {
            quote = c;
        } else if (c == '{' && depth < 16) {
            stack[depth++] = line;
        } else if (c == '}' && depth > 0) {
            depth--;
        }
    }
    return depth ? stack[depth - 1] : 0;
}

static int check_closed(const struct hvx_conf *c, struct hvx_error *err)
{
    FILE *f = fopen(c->path, "re");
    if (!f)
        return hvx_fail(err, -errno, "reading %s: %s", c->path, strerror(errno));
    int line = unclosed_line(f);
    fclose(f);
    return line ? hvx_fail(err, -EINVAL, "%s:%d: the '{' here is not closed; was the file cut short?", c->path, line) : 0;
}

/* --- where plugins are ------------------------------------------------------------------------ */
/* This program sits in BUILD/core (or below): use BUILD/plugins/NAME/.libs. */
static int build_tree_dirs(char **dirs)
{
    char exe[PATH_MAX], pattern[PATH_MAX + 32];
    ssize_t n = readlink("/proc/self/exe", exe, sizeof(exe) - 1);
    if (n <= 0)
        return 0;
    exe[n] = '\0';
    for (int up = 0; up < 4; up++) {
        char *slash = strrchr(exe, '/');
        if (!slash || slash == exe)
            return 0;
        *slash = '\0';
        snprintf(pattern, sizeof(pattern), "%s/config.status", exe);
        if (access(pattern, F_OK) < 0)
            continue;
        snprintf(pattern, sizeof(pattern), "%s/plugins/*/.libs", exe);
        glob_t g;
        int r = 0;
        if (glob(pattern, GLOB_ONLYDIR, NULL, &g) == 0) {
            for (size_t i = 0; r == 0 && i < g.gl_pathc; i++)
                r = list_add(dirs, g.gl_pathv[i], strlen(g.gl_pathv[i]));
            globfree(&g);
        }
        return r;
    }
    return 0;
}

static int find_dirs(struct hvx_conf *c, const char *configured_dir, struct hvx_error *err)
{
    c->dirs = list_new();
    if (!c->dirs)
        return -ENOMEM;
    const char *env = getenv("HVX_PLUGIN_DIR");
    int r = 0;
    if (env && *env) {
        for (const char *p = env; r == 0 && p; p = strchr(p, ':') ? strchr(p, ':') + 1 : NULL) {
            size_t n = strcspn(p, ":");
            if (n && p[0] != '/')
                return hvx_fail(err, -EINVAL, "HVX_PLUGIN_DIR: %.*s is not an absolute path", (int)n, p);
            if (n)
                r = list_add(c->dirs, p, n);
        }
        return r;
    }
    if (configured_dir)
        return list_add(c->dirs, configured_dir, strlen(configured_dir));
    r = build_tree_dirs(c->dirs);
    return r < 0 || c->dirs[0] ? r : list_add(c->dirs, HVX_PLUGIN_DIR, strlen(HVX_PLUGIN_DIR));
}

/* --- the interface ------------------------------------------------------------------------------ */
int hvx_conf_load(const char *path, struct hvx_conf **out, struct hvx_error *err)
{
    struct hvx_conf *c = calloc(1, sizeof(*c));
    char *configured_dir = NULL;
    struct hvx_error why = {.code = 0};
    if (!c)
        return hvx_fail(err, -ENOMEM, "reading hvx.conf: out of memory");
    const char *env = getenv("HVX_CONF");
    int r = 0;
    if (!path && env && *env)
        path = env;
    if (!path && access(HVX_SYSCONFDIR "/hvx.conf", F_OK) == 0)
        path = HVX_SYSCONFDIR "/hvx.conf";
    if (path) {
        c->path = strdup(path);
        r = c->path ? read_top(c, &configured_dir, &why) : -ENOMEM;
        if (r == 0)
            r = check_closed(c, &why);
    }
    if (r == 0)
        r = find_dirs(c, configured_dir, &why);
    free(configured_dir);
    if (r < 0) {
        hvx_conf_destroy(c);
        return hvx_fail(err, r, "%s", why.code ? why.text : "reading hvx.conf: out of memory, or too long a list");
    }
    *out = c;
    return 0;
}

void hvx_conf_destroy(struct hvx_conf *c)
{
    if (!c)
        return;
    list_free(c->plugins);
    list_free(c->dirs);
    for (unsigned i = 0; i < c->n_sections; i++)
        free(c->sections[i].options);
    free(c->path);
    free(c);
}

const char *hvx_conf_path(const struct hvx_conf *c)
{
    return c->path;
}

const char *const *hvx_conf_plugins(const struct hvx_conf *c)
{
    return (const char *const *)c->plugins;
}

const char *const *hvx_conf_plugin_dirs(const struct hvx_conf *c)
{
    return (const char *const *)c->dirs;
}

/* libconfuse's table for one section; the caller frees it. */
static cfg_opt_t *section_options(const struct hvx_conf *c, const struct hvx_conf_section *s)
{
    /* A plugin that cannot be loaded cannot say which options it has. */
    for (unsigned i = 0; !s->config && i < c->n_sections; i++)
        if (!strcmp(c->sections[i].name, s->name))
            return learned_options(&c->sections[i]);
    const struct hvx_option *table = s->config ? hvx_config_table(s->config) : NULL;
    unsigned n = 0;
    while (table && table[n].name)
        n++;
    cfg_opt_t *opts = calloc(n + 1, sizeof(*opts));
    for (unsigned i = 0; opts && i < n; i++)
        opts[i] = (cfg_opt_t)CFG_STR_CB(table[i].name, NULL, CFGF_NODEFAULT, on_value);
    if (opts)
        opts[n] = (cfg_opt_t)CFG_END();
    return opts;
}

int hvx_conf_sections(const struct hvx_conf *c, const struct hvx_conf_section *sections, unsigned n,
                      struct hvx_error *err)
{
    if (!c->path)
        return 0;
    cfg_opt_t *opts = calloc(n + 3, sizeof(*opts)), **subs = calloc(n + 1, sizeof(*subs));
    int r = opts && subs ? 0 : hvx_fail(err, -ENOMEM, "reading %s: out of memory", c->path);
    if (r == 0) {
        opts[0] = (cfg_opt_t)CFG_STR_LIST("plugins", NULL, CFGF_NODEFAULT);
        opts[1] = (cfg_opt_t)CFG_STR("plugin_dir", NULL, CFGF_NODEFAULT);
    }
    for (unsigned i = 0; r == 0 && i < n; i++) {
        subs[i] = section_options(c, &sections[i]);
        if (!subs[i])
            r = hvx_fail(err, -ENOMEM, "reading %s: out of memory", c->path);
        opts[i + 2] = (cfg_opt_t)CFG_SEC(sections[i].name, subs[i], CFGF_NODEFAULT);
    }
    if (r == 0) {
        cfg_t *cfg;
        opts[n + 2] = (cfg_opt_t)CFG_END();
        parse.sections = sections;
        parse.n_sections = n;
        r = parse_file(c, opts, false, &cfg, err);
        parse.sections = NULL;
        parse.n_sections = 0;
        if (r == 0)
            cfg_free(cfg);
    }
    for (unsigned i = 0; subs && i < n; i++)
        free(subs[i]);
    free(subs);
    free(opts);
    return r;
}
