# SPDX-License-Identifier: Apache-2.0
# Tests over several modules; paths are relative to tests/.
include $(srcdir)/kernels/sources.mk
include $(srcdir)/guest/sources.mk
include $(srcdir)/boot/sources.mk
