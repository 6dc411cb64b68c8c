/* SPDX-License-Identifier: Apache-2.0
 *
 * Stand-in for libFuzzer's main(): replays files, then a few thousand
 * deterministic pseudo-random inputs. A fuzz_* program linked with this is an
 * ordinary test; linked with -fsanitize=fuzzer it is a fuzzer.
 *
 *   fuzz_foo              $srcdir/DIR/corpus/fuzz_foo/, then random inputs
 *   fuzz_foo FILE|DIR..   just these
 */
#include <dirent.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv) __attribute__((weak));

#define RANDOM_INPUTS 2000
#define LARGEST_INPUT (1u << 20)

static int replay_file(const char *path)
{
    FILE *f = fopen(path, "rb");
    uint8_t *buf = malloc(LARGEST_INPUT);
    if (!f || !buf) {
        fprintf(stderr, "replay: cannot read %s: %s\n", path, strerror(errno));
        exit(99);
    }
    size_t n = fread(buf, 1, LARGEST_INPUT, f);
    fclose(f);
    /* An exact-size copy, so that ASan sees a read past the end. */
    uint8_t *exact = malloc(n ? n : 1);
    memcpy(exact, buf, n);
    free(buf);
    LLVMFuzzerTestOneInput(exact, n);
    free(exact);
    return 1;
}

static int replay_path(const char *path)
{
    struct stat st;
    if (stat(path, &st) < 0)
        return 0;
    if (!S_ISDIR(st.st_mode))
        return replay_file(path);
    int n = 0;
    struct dirent **names;
    int count = scandir(path, &names, NULL, alphasort);
    for (int i = 0; i < count; i++) {
        if (names[i]->d_name[0] != '.') {
            char sub[4096];
            snprintf(sub, sizeof(sub), "%s/%s", path, names[i]->d_name);
            n += replay_path(sub);
        }
        free(names[i]);
    }
    if (count >= 0)
        free(names);
    return n;
}

static uint64_t next_random(uint64_t *s)
{
    *s ^= *s << 13;
    *s ^= *s >> 7;
    *s ^= *s << 17;
    return *s;
}

static void random_inputs(unsigned count)
{
    uint64_t s = 0x9e3779b97f4a7c15u;
    for (unsigned i = 0; i < count; i++) {
        size_t n = next_random(&s) % (i % 16 == 0 ? 4096 : 256);
        uint8_t *p = malloc(n ? n : 1);
        for (size_t k = 0; k < n; k++)
            p[k] = (uint8_t)(next_random(&s) >> 32);
        LLVMFuzzerTestOneInput(p, n);
        free(p);
    }
}

int main(int argc, char **argv)
{
    if (LLVMFuzzerInitialize)
        LLVMFuzzerInitialize(&argc, &argv);
    int n = 0;
    if (argc > 1) {
        for (int i = 1; i < argc; i++)
            n += replay_path(argv[i]);
        printf("%d inputs replayed\n", n);
        return n ? 0 : 99;
    }
    const char *src = getenv("srcdir");
    const char *base = strrchr(argv[0], '/');
    base = base ? base + 1 : argv[0];
    if (!strncmp(base, "lt-", 3))
        base += 3;
    /* image/fuzz_x keeps its corpus in image/corpus/fuzz_x. */
    char dir[1024] = "", path[4096];
    const char *start = strncmp(argv[0], "./", 2) ? argv[0] : argv[0] + 2;
    if (start[0] != '/' && base > start)
        snprintf(dir, sizeof(dir), "%.*s", (int)(base - start), start);
    snprintf(path, sizeof(path), "%s/%scorpus/%s", src ? src : ".", dir, base);
    n = replay_path(path);
    random_inputs(RANDOM_INPUTS);
    printf("%d corpus inputs from %s and %d random ones replayed\n", n, path, RANDOM_INPUTS);
    return 0;
}
