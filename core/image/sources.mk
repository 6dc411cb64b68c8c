# SPDX-License-Identifier: Apache-2.0
# Files of core/image, included by core/Makefile.am; paths are relative to core/.
core_image_sources = image/blk.h
