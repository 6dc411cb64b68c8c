# SPDX-License-Identifier: Apache-2.0
# Included by every Makefile.am: flags, and how tests run.
AM_CFLAGS = $(HVX_CFLAGS)
AM_LDFLAGS = $(HVX_LDFLAGS)

# Every test runs under tests/driver, which counts the cases that a test
# prints as TAP (cmocka does) and otherwise judges by the exit status: 0 pass,
# 77 skip, 99 hard error, else fail.
AM_TESTS_ENVIRONMENT = CMOCKA_MESSAGE_OUTPUT=TAP; export CMOCKA_MESSAGE_OUTPUT; \
    top_srcdir='$(abs_top_srcdir)'; export top_srcdir; top_builddir='$(abs_top_builddir)'; export top_builddir; \
    CC='$(CC)'; export CC; CXX='$(CXX)'; export CXX;
LOG_DRIVER = $(SHELL) $(top_srcdir)/tests/driver
TEST_EXTENSIONS = .sh .py
SH_LOG_DRIVER = $(LOG_DRIVER)
PY_LOG_DRIVER = $(LOG_DRIVER)
SH_LOG_COMPILER = $(SHELL)
PY_LOG_COMPILER = python3

check_PROGRAMS =
dist_check_SCRIPTS =
TESTS = $(check_PROGRAMS) $(dist_check_SCRIPTS)
# What a program outside core/ links to use libhvxcore.
CORE_CFLAGS = $(LIBEVENT_CFLAGS) $(CONFUSE_CFLAGS) $(JANSSON_CFLAGS) $(PNG_CFLAGS) $(ZLIB_CFLAGS) $(ZSTD_CFLAGS) \
    $(XXHASH_CFLAGS) $(URING_CFLAGS) $(SECCOMP_CFLAGS) -pthread
CORE_SYSTEM_LIBS = $(LTDL_LIBS) $(CONFUSE_LIBS) $(LIBEVENT_LIBS) $(JANSSON_LIBS) $(PNG_LIBS) $(ZLIB_LIBS) $(ZSTD_LIBS) \
    $(XXHASH_LIBS) $(URING_LIBS) $(SLIRP_LIBS) $(SECCOMP_LIBS) -lm
HVXTEST_LIBS = $(top_builddir)/sdk/libhvxtest.a $(CMOCKA_LIBS)
CLEANFILES =
EXTRA_DIST =
dist_man_MANS =
