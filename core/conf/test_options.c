/* SPDX-License-Identifier: Apache-2.0
 *
 * Option tables: values, ranges, lists, and the words of each error.
 */
#include "core/conf/options.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static const struct hvx_option table[] = {
    {.name = "port", .type = HVX_OPT_INT, .min = -1, .max = 65535, .def = "-1", .help = "TCP port"},
    {.name = "free", .type = HVX_OPT_INT},
    {.name = "cache", .type = HVX_OPT_SIZE, .min = 4096, .max = 1ll << 40, .def = "64K"},
    {.name = "name", .type = HVX_OPT_STRING},
    {.name = "mode", .type = HVX_OPT_ENUM, .choices = "fast|faster|off", .def = "fast"},
    {.name = "quick", .type = HVX_OPT_BOOL, .def = "on"},
    {.name = NULL},
};

static struct hvx_config *make(void)
{
    struct hvx_config *c = NULL;
    assert_int_equal(hvx_config_new(table, &c), 0);
    return c;
}

/* The whole message: a person reads it. */
static void refuses(const char *text, int code, const char *message)
{
    struct hvx_config *c = make();
    struct hvx_error err = {.code = 0};
    assert_int_equal(hvx_config_parse(c, text, "--device x", &err), code);
    assert_string_equal(err.text, message);
    assert_int_equal(err.code, code);
    hvx_config_destroy(c);
}

static void defaults_are_filled_in(void **state)
{
    (void)state;
    struct hvx_config *c = make();
    assert_int_equal(hvx_config_int(c, "port"), -1);
    assert_int_equal(hvx_config_int(c, "cache"), 65536);
    assert_null(hvx_config_string(c, "name"));
    assert_string_equal(hvx_config_string(c, "mode"), "fast");
    assert_true(hvx_config_bool(c, "quick"));
    assert_false(hvx_config_is_set(c, "quick"));
    hvx_config_destroy(c);
    hvx_config_destroy(NULL);
}

static void values_are_parsed(void **state)
{
    (void)state;
    struct hvx_config *c = make();
    struct hvx_error err;
    assert_int_equal(hvx_config_parse(c, "port=0x50,cache=2MiB,name=a,,b=c,mode=faster,quick=no", "t", &err), 0);
    assert_int_equal(hvx_config_int(c, "port"), 80);
    assert_int_equal(hvx_config_int(c, "cache"), 2 << 20);
    assert_string_equal(hvx_config_string(c, "name"), "a,b=c");
    assert_string_equal(hvx_config_string(c, "mode"), "faster");
    assert_false(hvx_config_bool(c, "quick"));
    assert_true(hvx_config_is_set(c, "quick"));
    assert_int_equal(hvx_config_parse(c, "quick,name=", "t", &err), 0);
    assert_true(hvx_config_bool(c, "quick"));
    assert_string_equal(hvx_config_string(c, "name"), "");
    assert_int_equal(hvx_config_parse(c, "free=-9223372036854775808", "t", &err), 0);
    assert_true(hvx_config_int(c, "free") == INT64_MIN);
    assert_int_equal(hvx_config_parse(c, "port=010", "t", &err), 0);
    assert_int_equal(hvx_config_int(c, "port"), 10);
    assert_int_equal(hvx_config_parse(c, NULL, "t", &err), 0);
    hvx_config_destroy(c);
}

static void errors_say_what_to_give(void **state)
{
    (void)state;
    refuses("port=65536", -ERANGE, "--device x: port=65536 is out of range; give -1 to 65535");
    refuses("port=-2", -ERANGE, "--device x: port=-2 is out of range; give -1 to 65535");
    refuses("port=99999999999999999999", -ERANGE,
            "--device x: port=99999999999999999999 is out of range; give -1 to 65535");
    refuses("free=99999999999999999999", -ERANGE, "--device x: free=99999999999999999999 does not fit 64 bits");
    refuses("port=12ab", -EINVAL, "--device x: port=12ab is not a whole number");
    refuses("port=", -EINVAL, "--device x: port= is not a whole number");
    refuses("cache=4X", -EINVAL, "--device x: cache=4X is not a size; give bytes, or a number with K, M, G or T");
    refuses("cache=-4K", -EINVAL, "--device x: cache=-4K is not a size; give bytes, or a number with K, M, G or T");
    refuses("cache=1", -ERANGE, "--device x: cache=1 is out of range; give 4K to 1T");
    refuses("cache=9000000T", -ERANGE, "--device x: cache=9000000T is out of range; give 4K to 1T");
    refuses("mode=fas", -EINVAL, "--device x: mode=fas is not known; give one of fast|faster|off");
    refuses("mode=", -EINVAL, "--device x: mode= is not known; give one of fast|faster|off");
    refuses("quick=maybe", -EINVAL,
            "--device x: quick=maybe is not a yes or no; give yes, no, on, off, true or false");
    refuses("sped=1", -ENOENT,
            "--device x: there is no option 'sped'; there are: port, free, cache, name, mode, quick");
    refuses("port", -EINVAL, "--device x: option port needs a value: port=...");
    refuses("port=1,,,name=x", -EINVAL, "--device x: port=1, is not a whole number");
    refuses(",port=1", -EINVAL, "--device x: nothing between two commas; a comma in a value is doubled");
}

static void a_bad_list_changes_nothing(void **state)
{
    (void)state;
    struct hvx_config *c = make();
    struct hvx_error err;
    assert_int_equal(hvx_config_parse(c, "port=7,mode=none", "t", &err), -EINVAL);
    assert_int_equal(hvx_config_int(c, "port"), -1);
    hvx_config_destroy(c);
}

static void a_long_value_is_refused(void **state)
{
    (void)state;
    struct hvx_config *c = make();
    struct hvx_error err;
    char text[6000];
    memset(text, 'x', sizeof(text));
    memcpy(text, "name=", 5);
    text[sizeof(text) - 1] = '\0';
    assert_int_equal(hvx_config_parse(c, text, "t", &err), -E2BIG);
    hvx_config_destroy(c);
}

static void required_options_are_missed(void **state)
{
    (void)state;
    static const struct hvx_option need[] = {
        {.name = "drive", .type = HVX_OPT_STRING, .flags = HVX_OPTF_REQUIRED, .help = "the disk"}, {.name = NULL}};
    struct hvx_config *c = NULL;
    struct hvx_error err;
    assert_int_equal(hvx_config_new(need, &c), 0);
    assert_int_equal(hvx_config_check(c, "--device disk", &err), -EINVAL);
    assert_string_equal(err.text, "--device disk: option drive (the disk) is required");
    assert_int_equal(hvx_config_set(c, "drive", "disk0", "t", &err), 0);
    assert_int_equal(hvx_config_check(c, "--device disk", &err), 0);
    hvx_config_destroy(c);
    assert_int_equal(hvx_config_new(NULL, &c), 0);
    assert_int_equal(hvx_config_set(c, "a", "b", "t", &err), -ENOENT);
    assert_string_equal(err.text, "t: there is no option 'a'; it has no options at all");
    hvx_config_destroy(c);
}

static void unsound_tables_are_found(void **state)
{
    (void)state;
    struct hvx_error err;
    static const struct hvx_option type[] = {{.name = "a", .type = 77}, {.name = NULL}};
    static const struct hvx_option name[] = {{.name = "a b", .type = HVX_OPT_INT}, {.name = NULL}};
    static const struct hvx_option choices[] = {{.name = "a", .type = HVX_OPT_ENUM}, {.name = NULL}};
    static const struct hvx_option range[] = {{.name = "a", .type = HVX_OPT_INT, .min = 3, .max = 2}, {.name = NULL}};
    static const struct hvx_option def[] = {{.name = "a", .type = HVX_OPT_INT, .max = 2, .def = "3"}, {.name = NULL}};
    assert_int_equal(hvx_options_check(table, "t", &err), 0);
    assert_int_equal(hvx_options_check(NULL, "t", &err), 0);
    assert_int_equal(hvx_options_check(type, "t", &err), -EINVAL);
    assert_int_equal(hvx_options_check(name, "t", &err), -EINVAL);
    assert_int_equal(hvx_options_check(choices, "t", &err), -EINVAL);
    assert_int_equal(hvx_options_check(range, "t", &err), -EINVAL);
    assert_int_equal(hvx_options_check(def, "t", &err), -ERANGE);
}

static void sizes_print_back(void **state)
{
    (void)state;
    static const int64_t sizes[] = {0, 1, 512, 1024, 1536, 4096, 1 << 20, 3ll << 30, 1ll << 40, 5ll << 50};
    for (unsigned i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        char buf[32];
        int64_t back = -1;
        hvx_format_size(sizes[i], buf, sizeof(buf));
        assert_int_equal(hvx_parse_size(buf, &back), 0);
        assert_true(back == sizes[i]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(defaults_are_filled_in),    cmocka_unit_test(values_are_parsed),
        cmocka_unit_test(errors_say_what_to_give),   cmocka_unit_test(a_bad_list_changes_nothing),
        cmocka_unit_test(a_long_value_is_refused),   cmocka_unit_test(required_options_are_missed),
        cmocka_unit_test(unsound_tables_are_found),  cmocka_unit_test(sizes_print_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
