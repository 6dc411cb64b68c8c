# SPDX-License-Identifier: Apache-2.0
# Files of core/image, included by core/Makefile.am; paths are relative to core/.
core_image_sources = image/blk.h image/front.h image/blk.c image/blk_open.c image/blk_chain.c \
    image/workers.h image/workers.c image/image.h image/image.c image/raw.c \
    image/sg.h image/file.h image/file_posix.c image/file_lock.c image/file_mem.c image/bufpool.c \
    image/qcow2.h image/qcow2_open.c image/qcow2_create.c image/qcow2_cache.c image/qcow2_meta.c \
    image/qcow2_refcount.c image/qcow2_map.c image/qcow2_read.c image/qcow2_write.c image/qcow2_zero.c \
    image/qcow2_check.c image/cmd.h image/cmd_image.c image/cmd_convert.c
core_image_sources += image/mark.c

check_PROGRAMS += image/test_qcow2 image/test_blk
image_test_qcow2_SOURCES = image/test_qcow2.c image/test_util.h
image_test_blk_SOURCES = image/test_blk.c image/test_util.h
check_PROGRAMS += image/test_qemu image/fuzz_qcow2
image_test_qemu_SOURCES = image/test_qemu.c image/test_util.h
image_fuzz_qcow2_SOURCES = image/fuzz_qcow2.c
image_fuzz_qcow2_LDADD = libhvxcore.a $(FUZZ_LIBS) $(LDADD)
dist_check_SCRIPTS += image/test_image_cmd.sh
dist_man_MANS += image/hvx-image.1
EXTRA_DIST += image/make-corpus
# Made by image/make-corpus; named one by one, as make dist wants it.
EXTRA_DIST += image/corpus/fuzz_qcow2/shared-with-compressed image/corpus/fuzz_qcow2/backing image/corpus/fuzz_qcow2/bitmap image/corpus/fuzz_qcow2/compressed-zlib \
    image/corpus/fuzz_qcow2/compressed-zstd image/corpus/fuzz_qcow2/extended-l2 image/corpus/fuzz_qcow2/lazy \
    image/corpus/fuzz_qcow2/patch-l1 image/corpus/fuzz_qcow2/patch-l2 image/corpus/fuzz_qcow2/prealloc \
    image/corpus/fuzz_qcow2/snapshot image/corpus/fuzz_qcow2/v2-512 image/corpus/fuzz_qcow2/v3-1k-refcount1 \
    image/corpus/fuzz_qcow2/v3-512 image/corpus/fuzz_qcow2/v3-512-refcount64
