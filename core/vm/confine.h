/* SPDX-License-Identifier: Apache-2.0
 *
 * core/vm/confine.h - giving up what a running VM does not need.
 *
 * A guest that breaks out of a device model or of the translator finds itself
 * in a process that can compute, use the descriptors it has, and end:
 *
 *   no new privileges, no capabilities, in every thread;
 *   seccomp: an allow-list of system calls, with looks at arguments where they
 *     matter (no executable mapping, threads but no processes, no path, no
 *     socket, ioctl by number). io_uring rings are restricted to reads and
 *     writes where they are made (core/image), for ring requests bypass seccomp;
 *   Landlock, where the kernel has it: no file, no TCP port.
 *
 * What needs more is done by somebody else. User networking, which opens
 * sockets whenever the guest does, runs in a process of its own under
 * HVX_CONFINE_NET (core/net/user.c). Files that exist only while a VM runs are
 * removed by a process that can do nothing else (tidy.h). A client that wants a
 * file written opens it and passes the descriptor over the control socket.
 *
 * Order of use: hvx_confine_plan() before any thread that is to be confined;
 * hvx_confine_thread() at the start of each thread; hvx_confine_process() once,
 * on the control thread, when all is open and no guest instruction has run.
 * Without a plan (tests, --no-confinement) all of them do nothing.
 *
 * The process stays dumpable: what it holds of the guest is marked as not for
 * core files (ram.c), and a crash without a core file is hard to mend. Who may
 * attach a debugger is decided by the host (uid, yama).
 */
#ifndef HVX_CORE_CONFINE_H
#define HVX_CORE_CONFINE_H

#include <hvx/base.h>

enum hvx_confine_profile {
    HVX_CONFINE_VM = 0,  /* the VM's process */
    HVX_CONFINE_NET = 1, /* user networking: also sockets of AF_INET and AF_INET6; /etc/resolv.conf by its one name */
    HVX_CONFINE_TIDY = 2, /* removes files, no more */
};

/* From now on threads and processes confine themselves; `name` is the VM's, for messages. */
void hvx_confine_plan(const char *name);
bool hvx_confine_planned(void);
/* Capabilities and Landlock of the calling thread. */
void hvx_confine_thread(void);
/* The rest, for all threads of the process. A violation ends it with SIGSYS
 * after a message. *how (may be NULL) gets a line about what is in force. */
HVX_WUR int hvx_confine_process(enum hvx_confine_profile profile, char *how, size_t how_size, struct hvx_error *err);
/* Is this process confined? */
bool hvx_confined(void);

#endif
