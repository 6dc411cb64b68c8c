/* SPDX-License-Identifier: Apache-2.0
 *
 * core/vm/control.h - the control socket of a running VM.
 *
 * A Unix stream socket DIR/NAME.sock, mode 0600, in a folder of the user's.
 * DIR is $XDG_RUNTIME_DIR/hvx, else /run/hvx for root, else /tmp/hvx-UID. A
 * request is one line of JSON, {"command": "stat", ...}; the answer is one
 * line, {"ok": true, ...} or {"ok": false, "error": "..."}. Commands that
 * write a file (screendump) want its descriptor with the request (SCM_RIGHTS).
 *
 * The server runs on the control loop; its handler runs with that loop's
 * lock, never with the VM lock.
 */
#ifndef HVX_CORE_CONTROL_H
#define HVX_CORE_CONTROL_H

#include "core/vm/loop.h"
#include <jansson.h>

#define HVX_CONTROL_MAX_REQUEST (64u << 10)
#define HVX_CONTROL_MAX_ANSWER (16u << 20)
#define HVX_CONTROL_MAX_CLIENTS 16u
#define HVX_CONTROL_MAX_NAME 40u
#define HVX_CONTROL_MAX_FDS 40u /* descriptors with one request */

struct hvx_control;

/* "a-z A-Z 0-9 . _ -", not starting with a dot, at most HVX_CONTROL_MAX_NAME. */
bool hvx_control_name_ok(const char *name);
/* The folder of the sockets, created when `create`; checked to be the user's own. */
HVX_WUR int hvx_control_dir(char *buf, size_t n, bool create, struct hvx_error *err);

/* handler fills `answer` (an object) and returns 0, or -errno and a message.
 * -EEXIST: a VM of this name is running. */
HVX_WUR int hvx_control_new(struct hvx_loop *loop, const char *name,
                            int (*handler)(void *opaque, const char *command, json_t *request, json_t *answer,
                                           struct hvx_error *err),
                            void *opaque, struct hvx_control **out, struct hvx_error *err);
void hvx_control_destroy(struct hvx_control *c);
/* In the handler only: the i-th descriptor that came with the request, from
 * now on the caller's; -1: there is none. What is not taken is closed. */
int hvx_control_take_fd(struct hvx_control *c, unsigned i);

/* For commands that take long. hvx_control_later(), in the handler, which then
 * returns 0, says that the answer comes by hvx_control_answer(); until then
 * lines of progress (objects without "ok") may be sent, and the client's further
 * requests wait. When the client goes away, also after the answer, `gone` is
 * called once, unless it was forgotten; from then on the handle is no more. */
struct hvx_control_client;
struct hvx_control_client *hvx_control_later(struct hvx_control *c, void (*gone)(void *opaque), void *opaque);
void hvx_control_progress(struct hvx_control_client *later, json_t *line); /* takes line */
/* takes answer; r < 0: err says why */
void hvx_control_answer(struct hvx_control_client *later, json_t *answer, int r, const struct hvx_error *err);
void hvx_control_forget(struct hvx_control_client *later);

/* --- the client ------------------------------------------------------------ */

/* Send a request to the VM `name` and wait for the answer, an object owned by
 * the caller. A socket that nobody listens on is removed (-ENOENT). */
HVX_WUR int hvx_control_call(const char *name, json_t *request, json_t **answer, struct hvx_error *err);
/* The same with descriptors for the VM to take, so that it need not open
 * anything itself. They stay the caller's own. */
HVX_WUR int hvx_control_call_fds(const char *name, json_t *request, const int *fds, unsigned n_fds, json_t **answer,
                                 struct hvx_error *err);
/* A conversation: several requests over one connection, and answers that take
 * long, with lines of progress on the way (progress may be NULL). */
struct hvx_talk;
HVX_WUR int hvx_talk_open(const char *name, struct hvx_talk **out, struct hvx_error *err);
HVX_WUR int hvx_talk(struct hvx_talk *t, json_t *request, int fd, void (*progress)(void *opaque, json_t *line),
                     void *opaque, json_t **answer, struct hvx_error *err); /* fd: goes along; -1 none */
void hvx_talk_close(struct hvx_talk *t);
/* Names that have a socket, NULL-terminated, owned by the caller (each and the list). */
char **hvx_control_list(void);

#endif
