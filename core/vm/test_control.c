/* SPDX-License-Identifier: Apache-2.0
 *
 * core/vm/test_control.c - the control socket, both sides.
 */
#define _GNU_SOURCE
#include "core/vm/control.h"
#include "core/vm/control_path.h"

#include <stdarg.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

struct fixture {
    char dir[40];
    struct hvx_loop *loop;
    pthread_t thread;
    struct hvx_control *control;
};

static int handler(void *opaque, const char *command, json_t *request, json_t *answer, struct hvx_error *err)
{
    (void)opaque;
    if (!strcmp(command, "echo")) {
        json_object_set(answer, "echo", json_object_get(request, "text"));
        return 0;
    }
    if (!strcmp(command, "large")) {
        json_t *list = json_array();
        for (unsigned i = 0; i < 200000; i++)
            json_array_append_new(list, json_integer(i));
        json_object_set_new(answer, "list", list);
        return 0;
    }
    return hvx_fail(err, -EINVAL, "unknown command '%s'", command);
}

static void *run(void *opaque)
{
    hvx_loop_run(opaque);
    return NULL;
}

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));
    struct hvx_error err;

    strcpy(f->dir, "/tmp/hvx-test-run-XXXXXX");
    assert_non_null(mkdtemp(f->dir));
    setenv("XDG_RUNTIME_DIR", f->dir, 1);
    assert_int_equal(hvx_loop_new(&f->loop, &err), 0);
    if (hvx_control_new(f->loop, "one", handler, f, &f->control, &err) < 0)
        fail_msg("%s", err.text);
    pthread_create(&f->thread, NULL, run, f->loop);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    char cmd[80];

    hvx_loop_stop(f->loop);
    pthread_join(f->thread, NULL);
    hvx_control_destroy(f->control);
    hvx_loop_destroy(f->loop);
    snprintf(cmd, sizeof(cmd), "%s/hvx", f->dir);
    assert_int_equal(rmdir(cmd), 0); /* and so: no socket is left */
    rmdir(f->dir);
    free(f);
    return 0;
}

static int call(const char *vm, const char *command, const char *text, json_t **answer, struct hvx_error *err)
{
    json_t *request = json_pack("{s:s, s:s}", "command", command, "text", text);
    int r = hvx_control_call(vm, request, answer, err);

    json_decref(request);
    return r;
}

static void requests_are_answered(void **state)
{
    struct hvx_error err;
    json_t *answer;

    (void)state;
    for (unsigned i = 0; i < 100; i++) {
        assert_int_equal(call("one", "echo", "h\xc3\xa4\n\"x", &answer, &err), 0);
        assert_string_equal(json_string_value(json_object_get(answer, "echo")), "h\xc3\xa4\n\"x");
        json_decref(answer);
    }
    assert_int_equal(call("one", "large", "", &answer, &err), 0);
    assert_int_equal(json_array_size(json_object_get(answer, "list")), 200000);
    json_decref(answer);
    assert_true(call("one", "fly", "", &answer, &err) < 0);
    assert_non_null(strstr(err.text, "fly"));
}

static void absent_vms_are_named_and_leftovers_removed(void **state)
{
    struct fixture *f = *state;
    struct sockaddr_un a;
    struct hvx_error err;
    json_t *answer;
    char **list;
    int fd;

    assert_int_equal(call("two", "echo", "", &answer, &err), -ENOENT);
    assert_non_null(strstr(err.text, "two"));
    /* A process that died leaves a socket that nobody listens on. */
    assert_int_equal(hvx_control_address("dead", true, &a, &err), 0);
    fd = socket(AF_UNIX, SOCK_STREAM, 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&a, sizeof(a)), 0);
    close(fd);
    list = hvx_control_list();
    assert_string_equal(list[0], "dead");
    assert_string_equal(list[1], "one");
    assert_null(list[2]);
    assert_int_equal(call("dead", "echo", "", &answer, &err), -ENOENT);
    assert_int_equal(access(a.sun_path, F_OK), -1);
    for (unsigned i = 0; list[i]; i++)
        free(list[i]);
    free(list);
    (void)f;
}

static void the_socket_is_the_users_alone(void **state)
{
    struct fixture *f = *state;
    struct sockaddr_un a;
    struct hvx_error err;
    struct stat st;
    char dir[60];

    assert_int_equal(hvx_control_address("one", false, &a, &err), 0);
    assert_int_equal(stat(a.sun_path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    snprintf(dir, sizeof(dir), "%s/hvx", f->dir);
    assert_int_equal(stat(dir, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0700);
    chmod(dir, 0777); /* somebody else's doing */
    assert_int_equal(hvx_control_address("one", false, &a, &err), -EPERM);
    chmod(dir, 0700);
}

static void names_are_checked_and_unique(void **state)
{
    struct fixture *f = *state;
    struct hvx_control *again = NULL;
    struct hvx_error err;

    assert_false(hvx_control_name_ok(""));
    assert_false(hvx_control_name_ok("../x"));
    assert_false(hvx_control_name_ok(".x"));
    assert_false(hvx_control_name_ok("12345678901234567890123456789012345678901"));
    assert_true(hvx_control_name_ok("web-1.test"));
    assert_int_equal(hvx_control_new(f->loop, "one", handler, f, &again, &err), -EEXIST);
    assert_null(again);
}

/* Garbage, silence, too long lines, too many clients, early hang-ups: the
 * server answers or drops, and still serves the next one. */
static void bad_clients_do_no_harm(void **state)
{
    static const char *const garbage[] = {"\n", "{}\n", "[1,2]\n", "{\"command\":7}\n", "{\"command\":\"echo\"\n",
                                          "\xff\xfe\n", "{\"command\":\"large\"}\n"};
    struct sockaddr_un a;
    struct hvx_error err;
    static char longline[1 << 20];
    json_t *answer;
    int idle[40];

    (void)state;
    assert_int_equal(hvx_control_address("one", false, &a, &err), 0);
    for (unsigned i = 0; i < sizeof(garbage) / sizeof(garbage[0]); i++) {
        int fd = socket(AF_UNIX, SOCK_STREAM, 0);
        assert_int_equal(connect(fd, (struct sockaddr *)&a, sizeof(a)), 0);
        assert_int_equal(send(fd, garbage[i], strlen(garbage[i]), MSG_NOSIGNAL), strlen(garbage[i]));
        close(fd); /* without reading the answer */
    }
    memset(longline, 'x', sizeof(longline));
    for (unsigned i = 0; i < 40; i++) {
        idle[i] = socket(AF_UNIX, SOCK_STREAM, 0);
        connect(idle[i], (struct sockaddr *)&a, sizeof(a));
    }
    (void)!send(idle[0], longline, sizeof(longline), MSG_NOSIGNAL);
    for (unsigned i = 0; i < 40; i++)
        close(idle[i]);
    while (call("one", "echo", "still here", &answer, &err) < 0)
        usleep(1000); /* places get free as the server notices */
    assert_string_equal(json_string_value(json_object_get(answer, "echo")), "still here");
    json_decref(answer);
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(requests_are_answered),
        T(absent_vms_are_named_and_leftovers_removed),
        T(the_socket_is_the_users_alone),
        T(names_are_checked_and_unique),
        T(bad_clients_do_no_harm),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
