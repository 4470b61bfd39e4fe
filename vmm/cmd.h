/*
 * cmd.h - the subcommands of the program
 *
 * Layer:     vmm
 * Threading: main thread; each returns the exit status of the process.
 * argv[0] is the subcommand's name.
 */
#ifndef VMM_CMD_H
#define VMM_CMD_H

#include "io/base/error.h"

int cmd_run(int argc, char **argv);
int cmd_export(int argc, char **argv);
int cmd_ctl(int argc, char **argv);
int cmd_check(int argc, char **argv);
int cmd_info(int argc, char **argv);
int cmd_copy(int argc, char **argv);
int cmd_bench(int argc, char **argv);

/* "penstock: MESSAGE" on stderr */
void cmd_complain(const char *fmt, ...) PRINTF(1, 2);

#endif
