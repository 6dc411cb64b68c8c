/* SPDX-License-Identifier: Apache-2.0
 *
 * spec.c - parsing what was given to --net.
 */
#define _GNU_SOURCE
#include "core/net/port.h"

#include <arpa/inet.h>
#include <stdlib.h>
#include <string.h>

static int parse_mac(const char *s, uint8_t mac[6], struct hvx_error *err)
{
    unsigned b[6];
    char more;
    if (sscanf(s, "%2x:%2x:%2x:%2x:%2x:%2x%c", &b[0], &b[1], &b[2], &b[3], &b[4], &b[5], &more) != 6)
        return hvx_fail(err, -EINVAL, "--net: mac=%s is not a MAC address; write it like 52:54:00:12:34:56", s);
    if (b[0] & 1)
        return hvx_fail(err, -EINVAL, "--net: mac=%s is a multicast address (its first byte is odd); use one like "
                        "52:54:00:12:34:56", s);
    for (unsigned i = 0; i < 6; i++)
        mac[i] = (uint8_t)b[i];
    return 0;
}

static bool parse_addr(const char *s, uint32_t *out)
{
    struct in_addr a;
    if (!*s) {
        *out = 0;
        return true;
    }
    if (!inet_aton(s, &a))
        return false;
    *out = ntohl(a.s_addr);
    return true;
}

static bool parse_port(const char *s, uint16_t *out)
{
    char *end;
    unsigned long v = strtoul(s, &end, 10);
    if (*s < '0' || *s > '9' || *end || !v || v > 65535)
        return false;
    *out = (uint16_t)v;
    return true;
}

/* tcp|udp:[HOSTADDR]:HOSTPORT-[GUESTADDR]:GUESTPORT */
static int parse_hostfwd(const char *s, struct hvx_net_spec *spec, struct hvx_error *err)
{
    char copy[128];
    struct hvx_net_hostfwd f = {0};
    if (spec->n_fwd == HVX_NET_MAX_HOSTFWD)
        return hvx_fail(err, -E2BIG, "--net: more than %u port forwards", HVX_NET_MAX_HOSTFWD);
    if (strlen(s) < sizeof(copy)) {
        strcpy(copy, s);
        char *host = strchr(copy, ':'), *guest = strchr(copy, '-');
        char *host_port = host ? strchr(host + 1, ':') : NULL, *guest_port = guest ? strchr(guest + 1, ':') : NULL;
        if (host && guest && host_port && guest_port && host_port < guest) {
            *host++ = *host_port++ = *guest++ = *guest_port++ = 0;
            f.udp = !strcmp(copy, "udp");
            if ((f.udp || !strcmp(copy, "tcp")) && parse_addr(host, &f.host_addr) && parse_addr(guest, &f.guest_addr) &&
                parse_port(host_port, &f.host_port) && parse_port(guest_port, &f.guest_port)) {
                spec->fwd[spec->n_fwd++] = f;
                return 0;
            }
        }
    }
    return hvx_fail(err, -EINVAL,
                    "--net: hostfwd=%s is not understood; write tcp|udp:[HOSTADDR]:HOSTPORT-[GUESTADDR]:GUESTPORT, "
                    "for example hostfwd=tcp:127.0.0.1:2222-:22",
                    s);
}

static int parse_net(const char *s, struct hvx_net_spec *spec, struct hvx_error *err)
{
    char copy[64];
    char *slash, *end;
    if (strlen(s) < sizeof(copy)) {
        strcpy(copy, s);
        slash = strchr(copy, '/');
        if (slash) {
            *slash = 0;
            unsigned long bits = strtoul(slash + 1, &end, 10);
            /* Hosts .2, .3 and .15 must fit. */
            if (slash[1] && !*end && bits >= 8 && bits <= 27 && *copy && parse_addr(copy, &spec->net)) {
                spec->mask = ~0u << (32 - bits);
                if (!(spec->net & ~spec->mask))
                    return 0;
            }
        }
    }
    return hvx_fail(err, -EINVAL, "--net: net=%s is not a network; write it like 10.0.2.0/24 (prefix 8 to 27)", s);
}

static int parse_onoff(const char *key, const char *s, bool *out, struct hvx_error *err)
{
    bool on = !strcmp(s, "on") || !strcmp(s, "yes") || !strcmp(s, "true");
    if (!on && strcmp(s, "off") && strcmp(s, "no") && strcmp(s, "false"))
        return hvx_fail(err, -EINVAL, "--net: %s=%s: say on or off", key, s);
    *out = on;
    return 0;
}

static int parse_key(const char *key, const char *value, struct hvx_net_spec *spec, struct hvx_error *err)
{
    bool user = spec->kind == HVX_NET_USER, tap = spec->kind == HVX_NET_TAP;
    if (!strcmp(key, "mac") && (user || tap)) {
        spec->has_mac = true;
        return parse_mac(value, spec->mac, err);
    }
    if (user && !strcmp(key, "hostfwd"))
        return parse_hostfwd(value, spec, err);
    if (user && !strcmp(key, "net"))
        return parse_net(value, spec, err);
    if (user && !strcmp(key, "restrict"))
        return parse_onoff(key, value, &spec->restricted, err);
    if (tap && !strcmp(key, "ifname")) {
        if (!*value || strlen(value) >= sizeof(spec->ifname))
            return hvx_fail(err, -EINVAL, "--net: ifname=%s: an interface name has 1 to 15 characters", value);
        strcpy(spec->ifname, value);
        return 0;
    }
    if ((tap || user) && !strcmp(key, "fd")) {
        char *end;
        long v = strtol(value, &end, 10);
        if (!*value || *end || v < 0 || v > 1 << 20)
            return hvx_fail(err, -EINVAL, "--net: fd=%s is not a descriptor number", value);
        spec->fd = (int)v;
        return 0;
    }
    return hvx_fail(err, -EINVAL, "--net: unknown option %s; %s", key,
                    user  ? "user knows hostfwd, mac, net and restrict"
                    : tap ? "tap knows ifname, mac and fd"
                          : "none takes no options");
}

int hvx_net_parse(const char *text, struct hvx_net_spec *out, struct hvx_error *err)
{
    struct hvx_net_spec spec = {.net = 0x0a000200, .mask = 0xffffff00, .fd = -1};
    char copy[4096], *save = NULL;
    if (strlen(text) >= sizeof(copy))
        return hvx_fail(err, -E2BIG, "--net: the specification is longer than %zu characters", sizeof(copy) - 1);
    strcpy(copy, text);
    char *word = strtok_r(copy, ",", &save);
    if (word && !strcmp(word, "user"))
        spec.kind = HVX_NET_USER;
    else if (word && !strcmp(word, "tap"))
        spec.kind = HVX_NET_TAP;
    else if (!word || strcmp(word, "none"))
        return hvx_fail(err, -EINVAL, "--net: \"%s\" is unknown; it is user, tap or none", word ? word : "");
    while ((word = strtok_r(NULL, ",", &save))) {
        char *value = strchr(word, '=');
        if (!value)
            return hvx_fail(err, -EINVAL, "--net: %s needs a value (%s=...)", word, word);
        *value++ = 0;
        int r = parse_key(word, value, &spec, err);
        if (r)
            return r;
    }
    *out = spec;
    return 0;
}
