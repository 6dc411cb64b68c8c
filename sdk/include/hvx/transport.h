/* SPDX-License-Identifier: Apache-2.0
 *
 * hvx/transport.h - overlay links of hSwitch. Reserved: the family exists so
 * that the loader knows it; its operations arrive with hSwitch.
 */
#ifndef HVX_TRANSPORT_H
#define HVX_TRANSPORT_H
#include <hvx/plugin.h>
HVX_EXTERN_C_BEGIN
struct hvx_transport_ops {
    uint32_t size;
    uint32_t reserved;
};
HVX_EXTERN_C_END
#endif
