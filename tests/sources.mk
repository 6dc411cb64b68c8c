# SPDX-License-Identifier: Apache-2.0
# Tests over several modules; paths are relative to tests/.
