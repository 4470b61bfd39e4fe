/*
 * fuzz-replay.c - a fuzzer's corpus and some inputs of its own making, one after the other
 */
#include "io/base/tests/fuzz-replay.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include "io/base/test.h"

#define RANDOM_BYTES 8192

unsigned fuzz_replay_corpus(FuzzTarget *target, const char *path, unsigned min_files)
{
    static uint8_t input[FUZZ_INPUT_MAX_BYTES];
    DIR *dir = opendir(path);
    struct dirent *entry;
    unsigned nb_files = 0;

    ASSERT_TRUE(dir != NULL);
    while ((entry = readdir(dir)) != NULL) {
        if (entry->d_name[0] != '.') {
            AUTO_FD int fd = openat(dirfd(dir), entry->d_name, O_RDONLY | O_CLOEXEC);
            ssize_t len_bytes = read(fd, input, sizeof(input));

            ASSERT_GE(len_bytes, 0);
            target(input, (size_t)len_bytes);
            nb_files++;
        }
    }
    closedir(dir);
    EXPECT_GE(nb_files, min_files);
    return nb_files;
}

void fuzz_replay_random(FuzzTarget *target, unsigned action_bytes, unsigned long rounds)
{
    static uint8_t input[RANDOM_BYTES];
    const char *asked = getenv("FUZZ_ROUNDS");
    uint64_t seed = 1;

    rounds = asked ? strtoul(asked, NULL, 0) : rounds;
    for (unsigned long round = 0; round < rounds; round++) {
        for (size_t i = 0; i < sizeof(input); i++) {
            seed = seed * 6364136223846793005u + 1442695040888963407u;
            input[i] = (uint8_t)(seed >> 56);
            if (i % action_bytes != 0 && (seed >> 40 & 3) != 0) {
                input[i] &= (uint8_t)(seed >> 48);
                input[i] = seed >> 42 & 1 ? 0 : input[i];
            }
        }
        target(input, seed >> 33 & 1 ? sizeof(input) : sizeof(input) / 8);
    }
}
