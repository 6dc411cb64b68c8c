# SPDX-License-Identifier: Apache-2.0
# Files of core/plugin, included by core/Makefile.am; paths are relative to core/.
core_plugin_sources = plugin/abi.c plugin/loader.c plugin/loader.h plugin/registry.c plugin/registry.h
