/* SPDX-License-Identifier: Apache-2.0
 *
 * hvx/store.h - storage backends. Reserved: the family exists so
 * that the loader knows it; its operations arrive with the image store.
 */
#ifndef HVX_STORE_H
#define HVX_STORE_H
#include <hvx/plugin.h>
HVX_EXTERN_C_BEGIN
struct hvx_store_ops {
    uint32_t size;
    uint32_t reserved;
};
HVX_EXTERN_C_END
#endif
