/*
 * fuzz-replay.h - what fuzzers do as ordinary tests
 *
 * Layer:     io/base, for the tests of all folders
 * Threading: within a TEST.
 */
#ifndef IO_BASE_TESTS_FUZZ_REPLAY_H
#define IO_BASE_TESTS_FUZZ_REPLAY_H

#include <stddef.h>
#include <stdint.h>

#include "io/base/compiler.h"

#define FUZZ_INPUT_MAX_BYTES 65536 /* of a file; more of one is left out */

typedef int FuzzTarget(const uint8_t *data, size_t len_bytes);

/* fuzz_replay_corpus - run @target, a fuzzer or what makes variants for one, on each file in @path;
 * fails the test when there are fewer than @min_files. Returns how many there are. */
unsigned fuzz_replay_corpus(FuzzTarget *target, const char *path, unsigned min_files) NONNULL(1, 2);

/*
 * fuzz_replay_random - run @target on seeded inputs made of actions of @action_bytes, of which the
 * first is any byte and the others are often 0: small numbers are where things happen. As many
 * as @rounds, or FUZZ_ROUNDS in the environment.
 */
void fuzz_replay_random(FuzzTarget *target, unsigned action_bytes, unsigned long rounds) NONNULL(1);

#endif
