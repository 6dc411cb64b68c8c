# SPDX-License-Identifier: Apache-2.0
# Files of core/image, included by core/Makefile.am; paths are relative to core/.
core_image_sources = image/blk.h image/blk.c image/workers.h image/workers.c image/image.h image/image.c image/raw.c \
    image/sg.h image/file.h image/file_posix.c image/file_lock.c image/file_mem.c image/bufpool.c \
    image/qcow2.h image/qcow2_open.c image/qcow2_create.c image/qcow2_cache.c image/qcow2_meta.c \
    image/qcow2_refcount.c image/qcow2_map.c image/qcow2_read.c image/qcow2_write.c image/qcow2_zero.c \
    image/qcow2_check.c image/cmd.h image/cmd_image.c image/cmd_convert.c

check_PROGRAMS += image/test_qcow2 image/test_blk
image_test_qcow2_SOURCES = image/test_qcow2.c image/test_util.h
image_test_blk_SOURCES = image/test_blk.c image/test_util.h
