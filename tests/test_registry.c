/* SPDX-License-Identifier: Apache-2.0
 *
 * hvx.conf and the registry with real plugin files (tests/plugins/sample.c),
 * initialised by the fake host.
 */
#define _GNU_SOURCE
#include "core/plugin/registry.h"

#include <hvx/test.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static char conf_path[] = "/tmp/hvx-test-conf-XXXXXX";

static void write_conf(const char *text)
{
    FILE *f = fopen(conf_path, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

/* What the log said, warnings only. */
static char warning[600];
static struct hvx_host host;
static unsigned n_fini;

HVX_PRINTF(3, 4)
static void note(int level, const char *who, const char *fmt, ...)
{
    va_list ap;
    (void)who;
    va_start(ap, fmt);
    if (level == HVX_LOG_WARN && fmt)
        vsnprintf(warning, sizeof(warning), fmt, ap);
    if (fmt && strstr(fmt, "fini at level"))
        n_fini++;
    va_end(ap);
}

static int load(const char *text, struct hvx_conf **conf, struct hvx_registry **reg, struct hvx_error *err)
{
    warning[0] = '\0';
    n_fini = 0;
    host = *hvxtest_host();
    host.log = note;
    if (text)
        write_conf(text);
    int r = hvx_conf_load(text ? conf_path : NULL, conf, err);
    if (r < 0)
        return r;
    r = hvx_registry_new(*conf, &host, reg, err);
    if (r < 0)
        hvx_conf_destroy(*conf);
    return r;
}

static void unload(struct hvx_conf *conf, struct hvx_registry *reg)
{
    hvx_registry_destroy(reg);
    hvx_conf_destroy(conf);
}

/* The message after "hvx.conf's path:". */
static void refuses(const char *text, const char *message)
{
    struct hvx_conf *conf;
    struct hvx_registry *reg;
    struct hvx_error err = {.code = 0};
    assert_true(load(text, &conf, &reg, &err) < 0);
    char *at = strstr(err.text, conf_path);
    const char *rest = at ? at + strlen(conf_path) : err.text;
    if (strncmp(rest, message, strlen(message)))
        fail_msg("expected \"%s\", got \"%s\"", message, err.text);
}

static void without_a_file_all_are_enabled(void **state)
{
    (void)state;
    struct hvx_conf *conf;
    struct hvx_registry *reg;
    struct hvx_error err;
    assert_int_equal(load(NULL, &conf, &reg, &err), 0);
    assert_null(hvx_conf_path(conf));
    assert_non_null(hvx_registry_plugin(reg, 3)); /* two engines and two device plugins */
    assert_null(hvx_registry_plugin(reg, 4));
    assert_true(hvx_registry_find(reg, "dev-sample")->ready);
    assert_non_null(hvx_registry_device(reg, "sample"));
    assert_null(hvx_registry_device(reg, "simple"));
    assert_ptr_equal(hvx_registry_device_by_role(reg, HVX_ROLE_RNG), hvx_registry_device(reg, "sample"));
    assert_null(hvx_registry_device_by_role(reg, HVX_ROLE_DISK));
    unload(conf, reg);
    assert_int_equal(n_fini, 3);
}

static void engines_come_by_rank(void **state)
{
    (void)state;
    struct hvx_conf *conf;
    struct hvx_registry *reg;
    struct hvx_error err;
    char names[64];
    assert_int_equal(load(NULL, &conf, &reg, &err), 0);
    assert_string_equal(hvx_registry_engine_at(reg, 0)->plugin->name, "cpu-second");
    assert_string_equal(hvx_registry_engine_at(reg, 1)->plugin->name, "cpu-sample");
    assert_null(hvx_registry_engine_at(reg, 2));
    assert_ptr_equal(hvx_registry_engine(reg, "sample"), hvx_registry_engine_at(reg, 1));
    assert_ptr_equal(hvx_registry_engine(reg, "cpu-second"), hvx_registry_engine_at(reg, 0));
    assert_null(hvx_registry_engine(reg, "kvm"));
    hvx_registry_engine_names(reg, names, sizeof(names));
    assert_string_equal(names, "second, sample");
    unload(conf, reg);
}

static void sections_reach_the_plugin(void **state)
{
    (void)state;
    struct hvx_conf *conf;
    struct hvx_registry *reg;
    struct hvx_error err;
    int r = load("# a site\nplugins = {dev-sample}\ndev-sample {\n  level = 7\n  cache = 64K\n  mode = \"slow\"\n}\n"
                 "cpu-sample { level = 2 }\n", &conf, &reg, &err);
    if (r < 0)
        fail_msg("%s", err.text);
    const struct hvx_plugin_entry *e = hvx_registry_find(reg, "dev-sample");
    assert_int_equal(hvx_config_int(e->config, "level"), 7);
    assert_int_equal(hvx_config_int(e->config, "cache"), 65536);
    assert_string_equal(hvx_config_string(e->config, "mode"), "slow");
    /* Not enabled: described, not started. */
    assert_false(hvx_registry_find(reg, "cpu-sample")->ready);
    assert_null(hvx_registry_engine_at(reg, 0));
    unload(conf, reg);
    assert_int_equal(n_fini, 1);
}

static void errors_name_file_and_line(void **state)
{
    (void)state;
    refuses("dev-sample {\n  levle = 7\n}\n", ":2: dev-sample: there is no option 'levle'; there are: level, mode, cache, "
                                             "fail");
    refuses("\n\nlevel = 7\n", ":3: there is no option or plugin 'level'; there are: plugins, plugin_dir, cpu-sample, ");
    refuses("dev-sample {\n\n  level = 70\n}\n", ":3: dev-sample: level=70 is out of range; give 0 to 9");
    refuses("dev-sample { mode = quick }\n", ":1: dev-sample: mode=quick is not known; give one of fast|slow");
    refuses("dev-sample {\n  level =\n", ":");
    refuses("# {\n/* { */ plugins = {dev-sample}\ndev-sample {\n  level = 7\n", ":3: the '{' here is not closed");
    refuses("plugins = {dev-sample, dev-none}\n", " enables the plugin dev-none, but there is no dev-none.so in ");
    refuses("plugins = {\"/usr/lib/x.so\"}\n", ": plugins: '/usr/lib/x.so' is a path; give names");
    refuses("plugin_dir = lib/hvx\n", ": plugin_dir = lib/hvx is not an absolute path");
    refuses("plugins = {dev-sample}\ndev-sample { fail = yes }\n", "plugin dev-sample does not start: it was told to fail");
}

static void a_missing_file_is_an_error(void **state)
{
    (void)state;
    struct hvx_conf *conf;
    struct hvx_error err;
    assert_int_equal(hvx_conf_load("/nonexistent/hvx.conf", &conf, &err), -ENOENT);
    assert_string_equal(err.text, "reading /nonexistent/hvx.conf: No such file or directory; check --config and HVX_CONF");
}

static void a_found_but_broken_plugin_is_only_a_warning(void **state)
{
    (void)state;
    struct hvx_conf *conf;
    struct hvx_registry *reg;
    struct hvx_error err;
    assert_int_equal(load("dev-sample { fail = yes }\n", &conf, &reg, &err), 0);
    assert_string_equal(warning, "plugin dev-sample does not start: it was told to fail");
    assert_false(hvx_registry_find(reg, "dev-sample")->ready);
    assert_null(hvx_registry_device(reg, "sample"));
    assert_true(hvx_registry_find(reg, "cpu-sample")->ready);
    unload(conf, reg);
}

static void no_plugins_at_all_can_be_said(void **state)
{
    (void)state;
    struct hvx_conf *conf;
    struct hvx_registry *reg;
    struct hvx_error err;
    assert_int_equal(load("plugins = {}\n", &conf, &reg, &err), 0);
    assert_false(hvx_registry_find(reg, "dev-sample")->enabled);
    assert_null(hvx_registry_device_at(reg, 0));
    unload(conf, reg);
}

static void two_registries_live_side_by_side(void **state)
{
    (void)state;
    struct hvx_conf *c1, *c2;
    struct hvx_registry *r1, *r2;
    struct hvx_error err;
    assert_int_equal(load("dev-sample { level = 1 }\n", &c1, &r1, &err), 0);
    assert_int_equal(load("dev-sample { level = 2 }\n", &c2, &r2, &err), 0);
    assert_ptr_not_equal(hvx_registry_find(r1, "dev-sample")->ctx, hvx_registry_find(r2, "dev-sample")->ctx);
    unload(c1, r1);
    assert_int_equal(hvx_config_int(hvx_registry_find(r2, "dev-sample")->config, "level"), 2);
    unload(c2, r2);
}

static int setup(void **state)
{
    (void)state;
    char dir[4096], *builddir = getenv("top_builddir");
    int fd = mkstemp(conf_path);
    if (fd < 0 || !builddir)
        return -1;
    close(fd);
    snprintf(dir, sizeof(dir), "%s/tests/plugins/.libs", builddir);
    setenv("HVX_PLUGIN_DIR", dir, 1);
    unsetenv("HVX_CONF");
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    return unlink(conf_path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(without_a_file_all_are_enabled),
        cmocka_unit_test(engines_come_by_rank),
        cmocka_unit_test(sections_reach_the_plugin),
        cmocka_unit_test(errors_name_file_and_line),
        cmocka_unit_test(a_missing_file_is_an_error),
        cmocka_unit_test(a_found_but_broken_plugin_is_only_a_warning),
        cmocka_unit_test(no_plugins_at_all_can_be_said),
        cmocka_unit_test(two_registries_live_side_by_side),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
